"""The inside of an adapter, report by report, for the page of `dive report`.

A report is read again as the model wrote it: the prompt that `dive.generate` makes for this
adapter, then the report's tokens. One forward runs with the adapter and one without it, and for
every token of the report, and for the end of the turn after it, the page is given

- the probability of that token, given all before it, with the adapter and without it;
- the probability that the turn ended there instead: of all tokens that end it, added up. The last
  token is this end, so that both probabilities are the same there;
- per steered layer, the strength of the edit: the norm of (output - input) of the operator, with
  its scale and `norm_preserving`, over the norm of the input;
- the mixing weights phi(down u + bias) of the strongest vectors, of the strongest layers.

Probabilities are by softmax over all logits: decoding that samples, penalises or forbids tokens has
others. The text is tokenised anew, as in training. Where a model did not write the tokens that
training would have, or decoding stopped amid a word, these are the probabilities of the same text
in other tokens. "Without" is the frozen backbone with the same prompt and the same report before
each token. It is not what the backbone would write alone.

Layers, and vectors in them, are chosen once for all studies, so that studies can be compared: the
`LAYERS` layers with the largest mean strength over all tokens, and in each the `VECTORS` vectors
with the largest mean of |weight| times the norm of their column of `up`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dive.adapter.adapter import SteeringAdapter, as_adapter
from dive.adapter.attach import unsteered
from dive.backbone.as_backbone import as_backbone
from dive.backbone.load import Backbone
from dive.backbone.model_lock import model_lock
from dive.backbone.modes import evaluating
from dive.backbone.structure import Head, output_head
from dive.data.datasets.json_lines import Skipped
from dive.data.skipping import Skipping
from dive.data.study import Study
from dive.decode.steered import attached_for
from dive.errors import DiveError, checks
from dive.errors.private import public_name
from dive.generation.generate_reports import prompter_for, shown_demonstrations
from dive.generation.prefetch import Job, Prompts
from dive.generation.report_writer import progress_bar
from dive.page.grids import grid_of
from dive.page.inside import Inside, inside_of, layers_of
from dive.page.schema import Explained, Explanation, Mixing
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter, Response

LAYERS = 4  # whose mixing weights are on the page
VECTORS = 16  # of each of these layers
_AHEAD = 2  # studies whose images are decoded while the model runs


@torch.no_grad()
def explain(
    backbone: Backbone | PreTrainedModel,
    adapter: SteeringAdapter | str | Path,
    studies: Sequence[Study],
    reports: Sequence[str],
    *,
    indices: Sequence[int],
    method: int,
    name: str | None = None,
    prompt: str | None = None,
    demonstrations: Sequence[Study] | None = None,
    target: str | None = None,
    max_image_tokens: int | str | None = "auto",
    template: str | Path | None = None,
    template_date: Any = None,
    processor: Any = None,
    progress: bool | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
) -> Explained:
    """The inside of an adapter over reports that a method wrote with it; see this module.

    The model's hooks, modes and weights are the same afterwards, whatever ends the call.

    Args:
        backbone, adapter, prompt, demonstrations, target, max_image_tokens, template,
            template_date, processor, progress: as for `dive.generate`, with the values that the
            reports were written with.
        studies: with their images. reports: one text per study, which may be empty; then only the
            end of the turn is explained. indices: of the studies on the page.
        method: the index of the method on the page. name: of the adapter; default: its folder's.
        on_error: "fail" raises for the first study that cannot be explained: its images are gone or
            damaged, its report has a special token or does not fit the model's context after the
            prompt (it is never cut), its numbers are not finite. "skip" leaves it out and records
            it in `skipped`: fewer studies than given are returned.

    Raises:
        DiveError: an adapter of another backbone, or with numbers that are not finite; lists of
            different lengths, or empty ones; a backbone without a plain output head, as in
            training; or as `on_error` says.
    """
    backbone = as_backbone(backbone, processor)
    skipping = Skipping(on_error, skipped)
    _check_lists(studies, reports, indices)
    name = _name_of(adapter) if name is None else checks.text("name", name)
    adapter = as_adapter(adapter)
    # before the prompter, which would warn of what another backbone explains
    adapter.check_backbone(backbone.model)
    prompter = prompter_for(
        backbone,
        adapter,
        prompt=prompt,
        target=target,
        max_image_tokens=max_image_tokens,
        template=template,
        template_date=template_date,
    )
    shown = shown_demonstrations(demonstrations, prompter)
    answers = _answers(prompter, studies, reports, skipping)
    jobs = [Job(index, studies[index], prompter, adapter) for index in answers]
    with progress_bar(len(jobs), 1, progress, "reports explained") as bar:
        found = _all_inside(jobs, answers, shown, skipping, bar)
    layers = layers_of(adapter)
    chosen = _strongest(adapter, list(found.values()))
    return {
        "method": method,
        "adapter": name,
        "layers": layers,
        "studies": [
            _explanation(indices[index], pieces_of(prompter, answers[index]), one, layers, chosen)
            for index, one in found.items()
        ],
    }


def _check_lists(studies: Sequence[Study], reports: Sequence[str], indices: Sequence[int]) -> None:
    lengths = {"studies": len(studies), "reports": len(reports), "indices": len(indices)}
    if len({*lengths.values()}) > 1:
        given = ", ".join(f"{count} {each}" for each, count in lengths.items())
        raise DiveError(f"explain: got {given}, want as many of each")
    if not studies:
        raise DiveError("explain: there is no study, want one or more")
    for number, (study, report) in enumerate(zip(studies, reports, strict=True)):
        if not isinstance(study, Study):
            kind = type(study).__name__
            raise DiveError(f"explain: item {number} of studies is a {kind}, want a Study")
        if not isinstance(report, str):
            kind = type(report).__name__
            raise DiveError(f"explain: item {number} of reports is a {kind}, want a text")


def _name_of(adapter: Any) -> str:
    """The name of an adapter's folder or on the hub; of one in memory it is not known."""
    return public_name(str(adapter)) if checks.names_a_path(adapter) else "adapter"


def _answers(
    prompter: Prompter, studies: Sequence[Study], reports: Sequence[str], skipping: Skipping
) -> dict[int, Response]:
    """The reports in tokens by the index of their study, without those that have none."""
    answers = {}
    for index, (study, report) in enumerate(zip(studies, reports, strict=True)):
        try:
            answers[index] = prompter.response_of(report.strip(), study.where)
        except DiveError as error:
            skipping.skip_or_raise(study.id, study.source, error)
    return answers


def _all_inside(
    jobs: list[Job],
    answers: dict[int, Response],
    shown: Demonstrations | None,
    skipping: Skipping,
    bar: Any,
) -> dict[int, Inside]:
    """The inside of the reports that can be read, by the index of their study."""
    found: dict[int, Inside] = {}
    if not jobs:
        return found
    prompter, adapter = jobs[0].prompter, jobs[0].adapter
    model = prompter.backbone.model
    head = _head_of(model)
    with (
        evaluating(model),
        ThreadPoolExecutor(max_workers=1) as pool,
        attached_for(model, [adapter]) as attachment,
    ):
        assert attachment is not None  # there is an adapter
        prompts = Prompts(jobs, shown, pool, _AHEAD, skipping.on_error, skipping.skipped, bar)
        for job, encoded in prompts:
            ids = answers[job.index].ids
            try:
                # not the end itself, after which nothing is predicted
                inputs = prompter.to_device(prompter.with_response(encoded, ids[:-1]))
                found[job.index] = inside_of(attachment, head, inputs, ids, prompter.eos_token_ids)
            except DiveError as error:
                study = job.study
                reason = DiveError(f"{study.where}: {error}")
                skipping.skip_or_raise(study.id, study.source, reason)
            bar(1)
        if prompts.error is not None:
            raise prompts.error
    return found


def _head_of(model: Any) -> Head:
    """The head, checked against the logits of the model without any adapter."""
    with model_lock(model), unsteered(model):
        return output_head(model)


def pieces_of(prompter: Prompter, response: Response) -> list[str]:
    """The tokens of a report as text, and the name of the token that ends the turn.

    Those before the last one make up the text, white space between tokens included. Where several
    tokens share a letter, as bytes do, the first has it and the others are empty.
    """
    pieces, at, text = [], 0, response.text
    for _, end in response.offsets:
        pieces.append(text[at : max(at, end)])
        at = max(at, end)
    if pieces:
        pieces[-1] += text[at:]
    return [*pieces, str(prompter.tokenizer.convert_ids_to_tokens(response.ids[-1]))]


def _strongest(adapter: SteeringAdapter, found: Sequence[Inside]) -> dict[int, list[int]]:
    """The vectors on the page by the number of their layer among the steered ones.

    Layers are in the order in which they run, vectors from the strongest to the weakest.
    """
    if not found or adapter.config.rank == 0:
        return {}
    strength = torch.cat([one.strength for one in found], dim=1).mean(1)
    sizes = [one.weights.abs().sum(1) for one in found]
    total = torch.stack(sizes).sum(0)  # [L, R]; the number of tokens changes no order
    chosen = {}
    for at in sorted(_largest(strength, LAYERS)):
        layer: Any = adapter.layers[str(layers_of(adapter)[at])]
        column = torch.linalg.vector_norm(layer.up.detach().float(), dim=0).cpu()
        chosen[at] = _largest(total[at] * column, VECTORS)
    return chosen


def _largest(values: Tensor, count: int) -> list[int]:
    """The indices of the largest values, the largest first; equal ones in their order."""
    return values.argsort(descending=True, stable=True)[:count].tolist()


def _explanation(
    study: int, tokens: list[str], found: Inside, layers: list[int], chosen: dict[int, list[int]]
) -> Explanation:
    """One study of the page."""
    return {
        "study": study,
        "tokens": tokens,
        "probability": found.probability.tolist(),
        "probability_without": found.probability_without.tolist(),
        "end": found.end.tolist(),
        "end_without": found.end_without.tolist(),
        "strength": grid_of(found.strength),
        "mixing": [
            Mixing(
                layer=layers[at],
                vectors=vectors,
                weights=grid_of(found.weights[at, :, vectors].T, signed=True),
            )
            for at, vectors in chosen.items()
        ],
    }
