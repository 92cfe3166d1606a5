"""Settings of image processors, and processors where transformers cannot make them.

Its video processors need torchvision. Radiographs are images, so without it a processor is composed
from the image processor, the tokenizer and the chat template: the model's own processor class
without its video part, which expands image tokens by the same code as the real one. Pixtral's
processor (Mistral 3) has no video part, but its module cannot be imported; `_PixtralImages` stands
in for it.
"""

import logging
import math
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto import processing_auto

# from where it is defined: what `transformers` itself exports under this name needs torchvision in
# earlier versions of 5
from transformers.models.auto.image_processing_auto import AutoImageProcessor

logger = logging.getLogger("dive")

VIDEO = "video_processor"

# Settings that make image processors cut one image into tiles, each with its own tokens.
_TILING = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")


def budget_kwargs(processor: Any, max_image_tokens: int | None) -> dict[str, Any]:
    """Arguments for the processor so that an image has at most `max_image_tokens` tokens.

    Larger images are scaled down where the processor keeps an image's size; switches for tiling are
    turned off. {} where there is no such setting, or nothing to change.
    """
    if max_image_tokens is None:
        return {}
    images = processor.image_processor
    patch, merge = getattr(images, "patch_size", None), getattr(images, "merge_size", None)
    if isinstance(patch, int) and isinstance(merge, int):
        # sizes of these processors (the Qwen-VL line's) are areas in pixels
        budget = max_image_tokens * (patch * merge) ** 2
        size = dict(images.size)
        if size["longest_edge"] <= budget:
            return {}
        shortest = min(size["shortest_edge"], budget)
        return {"images_kwargs": {"size": {"shortest_edge": shortest, "longest_edge": budget}}}
    merge = getattr(processor, "spatial_merge_size", None)
    if isinstance(merge, int):
        # Pixtral's size is an edge: a square of that edge has the budget's tokens
        edge = math.isqrt(max_image_tokens) * processor.patch_size * merge
        longest = dict(images.size).get("longest_edge")
        if longest is None or longest <= edge:
            return {}
        return {"images_kwargs": {"size": {"longest_edge": edge}}}
    # passed even where the image processor has it off: InternVL's processor asks for it by default
    tiled = {name: False for name in _TILING if hasattr(images, name)}
    return {"images_kwargs": tiled} if tiled else {}


def processor_without_video(source: str, config: Any, options: dict[str, Any]) -> Any:
    """The processor in `source` (folder or hub id), without its video part where it has one.

    `options` are revision, token and trust_remote_code, as `from_pretrained` takes them.
    """
    base = _processor_class(config)
    if base is not _PixtralImages and (base is None or VIDEO not in base.get_attributes()):
        return AutoProcessor.from_pretrained(source, **options)
    settings, _ = base.get_processor_dict(source, **options)
    parts = [name for name in base.get_attributes() if name != VIDEO]
    if parts != ["image_processor", "tokenizer"]:
        raise ValueError(f"{base.__name__} needs torchvision: {', '.join(base.get_attributes())}")
    made = [
        AutoImageProcessor.from_pretrained(source, **options),
        AutoTokenizer.from_pretrained(source, **options),
    ]
    if VIDEO in base.get_attributes():
        settings[VIDEO] = None  # some classes have no default for it
    processor = _without_video(base).from_args_and_dict(made, settings)
    logger.warning(
        "%s: torchvision is not installed, so %s is composed of image processor, tokenizer and "
        "chat template (images only, no video)",
        source,
        type(processor).__name__,
    )
    return processor


def _processor_class(config: Any) -> Any:
    name = processing_auto.PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name == "PixtralProcessor":
        return _PixtralImages
    known = type(config) in processing_auto.PROCESSOR_MAPPING
    return processing_auto.PROCESSOR_MAPPING[type(config)] if known else None


def _without_video(base: Any) -> Any:
    """A subclass of the processor class that has no video part, to run and to save."""

    class ImageOnly(base):
        video_processor = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEO]

        # SmolVLM's own method uses its video processor even without a video
        apply_chat_template = ProcessorMixin.apply_chat_template

    ImageOnly.__name__ = ImageOnly.__qualname__ = getattr(base, "stands_for", base.__name__)
    return ImageOnly


class _PixtralImages(ProcessorMixin):
    """PixtralProcessor for images: one placeholder becomes rows of image tokens.

    A break token closes each row, and the token that ends the image the last one.
    """

    stands_for = "PixtralProcessor"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: Any = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **_more: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.image_token = image_token
        self.image_break_token = image_break_token
        self.image_end_token = image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        # a token covers spatial_merge_size^2 patches, so sizes are multiples of what it covers
        kwargs["patch_size"] = self.patch_size * self.spatial_merge_size
        return super()._process_images(images, **kwargs)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_kwargs: Any) -> str:
        cell = self.patch_size * self.spatial_merge_size
        rows, columns = (int(extent) // cell for extent in image_inputs["image_sizes"][image_idx])
        row = self.image_token * columns
        return (row + self.image_break_token) * (rows - 1) + row + self.image_end_token

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        return list(dict.fromkeys([*names, "image_sizes"]))
