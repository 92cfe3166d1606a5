"""A study as vLLM's request: the token ids that `dive.generate` feeds, and its films.

vLLM is given the prompt with one placeholder per image and the films, and expands it by its own
processor. The result must be dive's prompt, id by id, with the same pixels, or the study is
refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.private import refused
from dive.prompting.prompter import Prompter
from dive.vllm.installed import OTHERS

# vLLM's prompts (vllm.inputs.TokensPrompt) to its engine's inputs, expanded
Render = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass(frozen=True)
class EngineRequest:
    """A prompt as vLLM's engine takes it.

    inputs: what `LLMEngine.add_request` takes. token_ids: the whole prompt.
    """

    inputs: Mapping[str, Any] = field(repr=False)
    token_ids: list[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.token_ids)


class RequestMaker:
    """Makes the requests of one engine.

    render: of vLLM. most: tokens of prompt and report together in that engine (max_model_len).
    """

    def __init__(self, render: Render, most: int) -> None:
        self.render, self.most = render, most

    def make(
        self, prompter: Prompter, study: Study, demonstrations: Sequence[Study] = ()
    ) -> EngineRequest:
        """The request for a study, whose images are opened here.

        Raises:
            DiveError: as `Prompter.encode`, or a prompt that leaves no token for the report within
                the engine's max_model_len, or of which vLLM makes other tokens or pixels than dive.
        """
        images = [image for one in (*demonstrations, study) for image in one.load_images()]
        encoded = prompter.encode(study, demonstrations)
        wanted = encoded["input_ids"][0].tolist()
        if len(wanted) >= self.most:
            shown = f" with {len(demonstrations)} demonstrations" if demonstrations else ""
            raise DiveError(
                f"{study.where}: the prompt{shown} has {len(wanted)} tokens, and the engine's "
                f"max_model_len is {self.most}, want a larger one"
            )
        given: dict[str, Any] = {"prompt_token_ids": wanted}
        if prompter.sees:
            given = {
                "prompt_token_ids": prompter.ids_before_expansion(study, demonstrations),
                "multi_modal_data": {"image": images},
                "mm_processor_kwargs": flat(prompter.image_settings),
            }
        try:
            [inputs] = self.render([given])
        except MemoryError:
            raise
        except Exception as error:  # vLLM's processors may raise anything
            what = f"{study.where}: vLLM refuses the prompt"
            raise refused(what, error, (*demonstrations, study)) from error
        self._compare(inputs, encoded, wanted, study)
        return EngineRequest(inputs, wanted)

    def _compare(
        self,
        inputs: Mapping[str, Any],
        encoded: Mapping[str, Tensor],
        wanted: list[int],
        study: Any,
    ) -> None:
        made = list(inputs["prompt_token_ids"])
        if made != wanted:
            at = next(
                (
                    at
                    for at, (one, other) in enumerate(zip(made, wanted, strict=False))
                    if one != other
                ),
                min(len(made), len(wanted)),
            )
            raise DiveError(
                f"{study.where}: vLLM makes {len(made)} tokens of the prompt and dive "
                f"{len(wanted)}, which differ from token {at} on: vLLM expands images of this "
                f"backbone in another way; {OTHERS}"
            )
        if "pixel_values" in encoded and differ(inputs, encoded["pixel_values"]):
            raise DiveError(
                f"{study.where}: vLLM's processor makes other pixels of the images than the "
                f"backbone's; {OTHERS}"
            )


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A processor's arguments without the groups (images_kwargs) that vLLM does not take."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= value if name.endswith("_kwargs") else {name: value}
    return found


def differ(inputs: Mapping[str, Any], wanted: Tensor) -> bool:
    """Whether vLLM's pixels are known to be others than `wanted`, in the dtype that vLLM keeps.

    False where they cannot be compared: another padding of tiles, or not normalised yet (uint8).
    """
    items = (inputs.get("mm_kwargs") or {}).get("image") or []
    pixels = [None if one is None else one.get_data().get("pixel_values") for one in items]
    found = [one for one in pixels if isinstance(one, Tensor) and one.is_floating_point()]
    if not found or len(found) < len(pixels):
        return False
    made = torch.cat([one.flatten() for one in found])
    if made.numel() != wanted.numel():
        return False
    return not torch.equal(made, wanted.flatten().to(made.dtype))
