"""The options that several commands share, and the reading of their values."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dive.errors import DiveError, checks

if TYPE_CHECKING:
    from dive.backbone.load import Backbone
    from dive.data import Skipped, Study


def as_path(name: str | Path) -> Path:
    """The path of a file or folder, checked as in Python."""
    try:
        return checks.path("the name", name)
    except DiveError as error:
        raise typer.BadParameter(str(error)) from None


BackboneOption = Annotated[
    str, typer.Option("--backbone", help="Folder of save_pretrained, or a hub id.")
]
StudiesOption = Annotated[
    str,
    typer.Option(
        "--studies",
        help="JSON lines, one study per line, paths relative to it; or mimic-cxr:ROOT, "
        "chexpert-plus:ROOT, iu-xray:ROOT, r2gen:FILE.",
    ),
]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Split of a dataset: train, validation or test.")
]
ImagesRootOption = Annotated[
    Path | None,
    typer.Option(
        "--images-root",
        parser=as_path,
        metavar="FOLDER",
        help="Folder of the images, if not ROOT; the paths in JSON lines are relative to it.",
    ),
]
ReportsRootOption = Annotated[
    Path | None,
    typer.Option(
        "--reports-root",
        parser=as_path,
        metavar="FOLDER",
        help="Folder of a dataset's reports, if not ROOT.",
    ),
]
DropComparisonsOption = Annotated[
    bool,
    typer.Option("--drop-comparisons", help="Drop sentences that compare with a prior."),
]
ReadOption = Annotated[
    list[str] | None,
    typer.Option(
        "--read",
        help="Any other argument of dive.data.open_studies, as NAME=VALUE (views=PA, "
        "min_words=5, strip_placeholders=true ...).",
    ),
]
ReferencesOption = Annotated[
    str, typer.Option("--references", help="JSON lines or a dataset, as in dive distill.")
]
ComparedOption = Annotated[
    str, typer.Option("--target", help="Section compared: findings, impression or both.")
]
MeteorSynonymsOption = Annotated[
    bool,
    typer.Option(
        help="METEOR: match WordNet's synonyms, too (needs its data, see dive doctor), or words "
        "and stems alone.",
    ),
]
RadgraphAnnotationsOption = Annotated[
    Path | None,
    typer.Option(
        parser=as_path,
        metavar="FILE",
        help="RadGraph: a file of annotations of all texts; no model is run.",
    ),
]
TargetOption = Annotated[
    str, typer.Option("--target", help="Sections to write: findings, impression or both.")
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="The instruction to the model. Default: by --target.")
]
TemplateOption = Annotated[
    Path | None,
    typer.Option(
        "--template",
        parser=as_path,
        metavar="FILE",
        help="A Jinja chat template in place of the model's own.",
    ),
]
TemplateDateOption = Annotated[
    str | None,
    typer.Option(
        "--template-date",
        metavar="YYYY-MM-DD",
        help="The date for a chat template that prints one. Default: that of the adapter's "
        "training, else today.",
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16, float32.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:1 ..., or map: layers spread over all devices "
        "(device_map='auto').",
    ),
]
ImageTokensOption = Annotated[
    str | None,
    typer.Option(
        "--max-image-tokens",
        help="The most tokens per image, or 'none'. Default 576, or that of the adapter's "
        "training.",
    ),
]
OnErrorOption = Annotated[
    str,
    typer.Option(
        "--on-error",
        help="fail at the first bad study, or skip it and list it next to the output "
        "(skipped.jsonl in an adapter's folder, reports.skipped.jsonl next to reports.jsonl).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def quiet_libraries() -> None:
    """Switch transformers' own progress bars and advice off; its errors still show."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # through our handler, which makes control characters visible
    logging.disable_default_handler()
    logging.enable_propagation()


def open_backbone(path: str, dtype: str, device: str) -> "Backbone":
    import dive

    quiet_libraries()
    if device == "map":
        return dive.load_backbone(path, dtype=dtype, device_map="auto")
    return dive.load_backbone(path, dtype=dtype, device=device)


def image_budget(text: str | None, default: Any) -> Any:
    """The value of --max-image-tokens, as `Prompter` takes it."""
    if text is None:
        return default
    if text.lower() == "none":
        return None
    if not text.isdigit() or int(text) < 1:
        raise DiveError(f"--max-image-tokens is {text!r}, want a whole number >= 1 or none")
    return int(text)


_DTYPE = re.compile(r"auto|bfloat16|half|double|float(\d+(_\w+)?)?")


def check_values(
    *,
    target: str | None = None,
    on_error: str = "fail",
    dtype: str = "auto",
    engine: str = "auto",
    max_image_tokens: str | None = None,
) -> None:
    """DiveError for an unknown value, before torch and transformers are imported."""
    from dive.data import check_target
    from dive.data.skipping import check_on_error

    if target is not None:
        check_target(target)
    check_on_error(on_error, None)
    image_budget(max_image_tokens, None)
    if not _DTYPE.fullmatch(dtype):
        raise DiveError(f"--dtype is {dtype!r}, want auto, bfloat16, float16, float32 ...")
    if engine not in (*checks.ENGINES, "vllm"):
        known = ", ".join(checks.ENGINES)
        raise DiveError(f"engine is {engine!r}, want one of {known}, vllm")


def pairs(given: list[str] | None, known: Iterable[str], option: str) -> dict[str, Any]:
    """NAME=VALUE pairs as a dict. A value is JSON if possible (16, true, [0, 1]), else text."""
    found: dict[str, Any] = {}
    for pair in given or []:
        name, sign, value = pair.partition("=")
        if not sign or name not in known:
            raise DiveError(
                f"{option} is {pair!r}, want NAME=VALUE with one of {', '.join(sorted(known))}"
            )
        if name in found:
            raise DiveError(f"{option} {name} is given twice; leave one out")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


_READ = (
    "views", "max_images", "min_words", "sections", "last_paragraph", "labels",
    "strip_placeholders", "check_files", "seed",
)  # fmt: skip


def reading(
    split: str | None,
    images_root: Path | None,
    reports_root: Path | None,
    drop_comparisons: bool,
    read: list[str] | None,
) -> dict[str, Any]:
    """The arguments of `dive.data.open_studies`, from the options above."""
    return {
        "split": split,
        "images": images_root,
        "reports": reports_root,
        "drop_comparisons": drop_comparisons,
        **pairs(read, _READ, "--read"),
    }


def open_all(spec: str, **options: Any) -> "list[Study]":
    """Every study of a file or dataset. For a dataset, what was kept and why is printed."""
    from dive.data.open import open_studies, parse_spec
    from dive.errors.console import to_stderr

    studies = open_studies(spec, **options)
    found = list(studies)
    if parse_spec(spec)[0] != "jsonl":
        to_stderr().print(str(studies.summary))
    return found


def number_or_file(text: str, option: str) -> int | float | str:
    """A value such as `4` or `0.1`, or the name of a file or dataset."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if ":" not in text and not checks.path(option, text).is_file():
        raise DiveError(f"{option} is {text!r}, want a number, a file or a dataset")
    return text


def demonstrations_of(
    text: str | None, target: str, option: str = "--demonstrations"
) -> "int | list[Study] | None":
    """A number of demonstrations, or the studies of a JSON lines file."""
    if text is None:
        return None
    given = number_or_file(text, option)
    if isinstance(given, str):
        return open_all(given, target=target)
    if not isinstance(given, int) or given < 1:
        raise DiveError(f"{option} is {text!r}, want a whole number >= 1 or a file")
    return given


def write_skipped(skipped: "Skipped", path: Path) -> str:
    """Write the list of skipped studies as JSON lines. Returns a line about it, "" for none."""
    if not len(skipped):
        path.unlink(missing_ok=True)  # of an earlier run
        return ""
    skipped.write(path)
    return f"{len(skipped)} skipped, see {path}"
