"""Processors of video-capable models where transformers cannot make a video processor.

Its video processors need torchvision. Films are images, so a processor is composed from the image
processor, the tokenizer and the chat template: the model's own processor class without its video
part, which expands image tokens by the same code as the real one.
"""

import logging
from typing import Any

from transformers import AutoProcessor, AutoTokenizer

# from where it is defined: what `transformers` itself exports under this name wants torchvision in
# its earlier versions of 5
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

logger = logging.getLogger("dive")

VIDEO = "video_processor"


def processor_without_video(source: str, config: Any, options: dict[str, Any]) -> Any:
    """The processor in `source` (folder or hub id), without its video part where it has one.

    `options` are revision, token and trust_remote_code, as `from_pretrained` takes them.
    """
    known = type(config) in PROCESSOR_MAPPING
    base: Any = PROCESSOR_MAPPING[type(config)] if known else None
    if base is None or VIDEO not in base.get_attributes():
        return AutoProcessor.from_pretrained(source, **options)
    settings, _ = base.get_processor_dict(source, **options)
    if base.get_attributes() != ["image_processor", "tokenizer", VIDEO]:
        raise ValueError(f"{base.__name__} wants torchvision: {', '.join(base.get_attributes())}")
    parts = [
        AutoImageProcessor.from_pretrained(source, **options),
        AutoTokenizer.from_pretrained(source, **options),
    ]
    processor = _without_video(base).from_args_and_dict(parts, settings)
    logger.warning(
        "%s: torchvision is not installed, so %s is composed of image processor, tokenizer and "
        "chat template (images only, no video)",
        source,
        base.__name__,
    )
    return processor


def _without_video(base: Any) -> Any:
    """A subclass of the processor class that has no video part, to run and to save."""

    class ImageOnly(base):
        video_processor = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEO]

    ImageOnly.__name__ = ImageOnly.__qualname__ = base.__name__
    return ImageOnly
