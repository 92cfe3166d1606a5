"""`dive inspect tokens | prompt | dataset`: the input of a training."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from dive.cli.inspect_dataset import dataset
from dive.cli.options import (
    BackboneOption,
    DropComparisonsOption,
    ImagesRootOption,
    ImageTokensOption,
    JsonOption,
    PromptOption,
    ReadOption,
    ReportsRootOption,
    SplitOption,
    StudiesOption,
    TargetOption,
    TemplateDateOption,
    TemplateOption,
    check_values,
    demonstrations_of,
    image_budget,
    open_all,
    open_backbone,
    quiet_libraries,
    reading,
)
from dive.cli.tables import add_row, stdout, table
from dive.errors import DiveError
from dive.errors.console import PlainConsole, styled
from dive.errors.visible import visible, visible_json, visible_offsets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dive.decisive.mentions import Mention
    from dive.decisive.tokens import DecisiveTokens
    from dive.prompting.prompter import Prompter

inspect = typer.Typer(no_args_is_help=True, help="Show the input of a training.")
inspect.command()(dataset)

_STYLES = {"positive": "bold black on yellow", "uncertain": "black on cyan", "negative": "green"}


@inspect.command()
def tokens(
    file: Annotated[Path, typer.Argument(help="A report as text, or - for standard input.")],
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Count its tokens; without it, words are counted."),
    ] = None,
    pathology: Annotated[float, typer.Option(help="Weight of a pathology token.")] = 2.5,
    eos: Annotated[float, typer.Option(help="Weight of the end of the report.")] = 2.5,
    polarity: Annotated[str, typer.Option(help="positive or all.")] = "positive",
    modifiers: Annotated[
        bool, typer.Option(help="Weight severity, side and location with their finding.")
    ] = True,
    decisive: Annotated[
        str,
        typer.Option(
            "--decisive", help="lexicon, radgraph or radgraph:X, as in distill (but not visual)."
        ),
    ] = "lexicon",
    unit: Annotated[
        str, typer.Option("--unit", help="mention, clause or decision, as --decisive-unit.")
    ] = "mention",
    reports: Annotated[
        str | None,
        typer.Option(
            "--reports",
            metavar="FILE",
            help="Training studies, or a text file of reports parted by blank lines, from which "
            "decision tokens are learnt.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a report with its findings, and the share of tokens and of loss of each class."""
    from dive.data.language import warn_if_not_english
    from dive.decisive.tokens import DecisiveTokens
    from dive.radgraph import annotator_of
    from dive.training.config import VISUAL

    if decisive == VISUAL:
        raise DiveError(
            f"--decisive is {VISUAL!r}, whose weights need the study's image and a teacher, and "
            "here is a report alone, want lexicon, radgraph or radgraph:X"
        )
    _check_reports(unit, reports)
    text = _report_text(file)
    if decisive != "lexicon":
        text = text.strip()  # as training does
    tokenizer, offsets = _pieces(text, backbone)
    weigher = DecisiveTokens(
        tokenizer,
        annotator=None if decisive == "lexicon" else annotator_of(decisive, "--decisive"),
        pathology=pathology,
        eos=eos,
        polarity=polarity,
        modifiers=modifiers,
        unit=unit,
    )
    if reports is not None:
        weigher.fit(_training_reports(reports))
    if decisive == "lexicon":
        warn_if_not_english([text], "reports", "the lexicon")
    classes = weigher.label(text, offsets, len(offsets) + 1)
    pieces = "words" if tokenizer is None else "tokens"
    if as_json:
        print(visible_json(_as_json(text, weigher, classes, pieces)))
        return
    console = stdout()
    _print_report(console, text, weigher)
    _print_shares(console, weigher, classes, pieces)
    what = polarity if unit == "mention" else f"{unit}, present and absent"
    console.print(
        f"{len(classes)} {pieces} with the end; weights: pathology {pathology:g} ({what}), "
        f"end {eos:g}, others 1; the share of loss is by weight, as if every token cost the same",
        style="dim",
    )


def _check_reports(unit: str, reports: str | None) -> None:
    """DiveError where decision tokens lack the reports that they are learnt from, or others have
    reports that they do not need."""
    if unit == "decision" and reports is None:
        raise DiveError(
            "--unit decision: where a report decides is learnt from training reports; give them "
            "with --reports"
        )
    if unit != "decision" and reports is not None:
        raise DiveError(f"--reports is given with --unit {unit}, which needs none; leave it out")


def _training_reports(given: str) -> list[str]:
    """The reports of a file of studies, or of a text file with blank lines between reports."""
    if Path(given).suffix.lower() in (".txt", ".text"):
        try:
            text = _file_text(Path(given))
        except (OSError, UnicodeDecodeError) as error:
            raise DiveError(f"cannot read the reports {given}: {error}") from error
        return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    return [study.report("findings") for study in open_all(given, target="findings")]


def _pieces(text: str, backbone: str | None) -> tuple[Any, list[tuple[int, int]]]:
    """The tokenizer and the spans of tokens; without a backbone None and the spans of words."""
    if backbone is None:
        return None, [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    from dive.backbone.load import load_tokenizer

    quiet_libraries()
    tokenizer: Any = load_tokenizer(backbone)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tokenizer, encoded["offset_mapping"]


def _as_json(
    text: str, weigher: "DecisiveTokens", classes: "Sequence[int]", unit: str
) -> dict[str, Any]:
    from dive.decisive.tokens import CLASS_NAMES, share

    shares = share(classes, weigher.weights_of(classes))
    return {
        "unit": unit,
        "shares": {
            CLASS_NAMES[kind]: {"tokens": part[0], "loss": part[1]} for kind, part in shares.items()
        },
        "mentions": [
            {
                "text": text[m.start : m.end],
                "start": m.start,
                "end": m.end,
                "name": m.name,
                "class": m.cls,
                "polarity": m.polarity,
            }
            for m in weigher.mentions(text)
        ],
    }


def _print_report(console: Console, text: str, weigher: "DecisiveTokens") -> None:
    """The report with its findings in colour or brackets, and a table of them."""
    mentions = weigher.mentions(text)
    if console.color_system is None:  # a file or a pipe shows no styles
        console.out(visible(_bracketed(text, weigher.spans(text))), "\n\n[weighted]", sep="")
    else:
        console.print(_styled(text, weigher.spans(text), mentions))
        legend = Text("\n")
        for name, style in _STYLES.items():
            legend.append(f" {name} ", style=style)
            legend.append(" ")
        legend.append("weighted", style="underline")
        console.print(legend)
    found = table("finding", "class", "polarity", "words")
    for mention in mentions:
        words = " ... ".join(text[start:end] for start, end in mention.spans)
        add_row(found, mention.name, mention.cls, mention.polarity, " ".join(words.split()))
    console.print(found)


def _print_shares(
    console: Console, weigher: "DecisiveTokens", classes: "Sequence[int]", unit: str
) -> None:
    """The table of each class's share of the tokens and of the loss."""
    from dive.decisive.tokens import CLASS_NAMES, share

    held = table("class", f"% of {unit}", "% of loss")
    for kind, (of_tokens, of_loss) in share(classes, weigher.weights_of(classes)).items():
        add_row(held, CLASS_NAMES[kind], f"{100 * of_tokens:.1f}", f"{100 * of_loss:.1f}")
    console.print(held)


def _styled(
    text: str, weighted: "Sequence[tuple[int, int]]", mentions: "Sequence[Mention]"
) -> Text:
    made, offsets = styled(text), visible_offsets(text)
    for start, end in weighted:
        made.stylize("underline", offsets[start], offsets[end])
    for mention in mentions:
        for start, end in mention.spans:
            made.stylize(_STYLES[mention.polarity], offsets[start], offsets[end])
    return made


def _bracketed(text: str, weighted: "Sequence[tuple[int, int]]") -> str:
    """The report with the weighted spans in brackets."""
    pieces, last = [], 0
    for start, end in weighted:
        pieces += [text[last:start], f"[{text[start:end]}]"]
        last = end
    return "".join([*pieces, text[last:]])


@inspect.command()
def prompt(
    backbone: BackboneOption,
    studies: StudiesOption,
    demonstrations: Annotated[
        str, typer.Option("--demonstrations", help="How many, or a file of studies.")
    ] = "2",
    target: TargetOption = "findings",
    prompt: PromptOption = None,
    split: SplitOption = None,
    images_root: ImagesRootOption = None,
    reports_root: ReportsRootOption = None,
    drop_comparisons: DropComparisonsOption = False,
    read: ReadOption = None,
    max_image_tokens: ImageTokensOption = None,
    template: TemplateOption = None,
    template_date: TemplateDateOption = None,
    study: Annotated[str | None, typer.Option(help="Id of the query; default the first.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print one student's and one teacher's prompt with its report, image tokens collapsed."""
    check_values(target=target, max_image_tokens=max_image_tokens)
    from dive.prompting.demonstrations import Demonstrations
    from dive.prompting.prompter import DEFAULT_MAX_IMAGE_TOKENS, Prompter

    options = reading(split, images_root, reports_root, drop_comparisons, read)
    opened = open_all(studies, target=target, **options)
    query = opened[0] if study is None else next((one for one in opened if one.id == study), None)
    if query is None:
        raise DiveError(f"{studies}: there is no study {study!r}")
    given = demonstrations_of(demonstrations, target)
    if isinstance(given, int):
        shown = Demonstrations(opened, given).of(query)
    else:
        shown = Demonstrations(given or []).of(query)
    prompter = Prompter(
        open_backbone(backbone, "auto", "cpu"),
        prompt=prompt,
        target=target,
        max_image_tokens=image_budget(max_image_tokens, DEFAULT_MAX_IMAGE_TOKENS),
        template=template,
        template_date=template_date,
    )
    response = prompter.response(query)
    console, answer = PlainConsole(), {}
    for name, examples in (("student", []), ("teacher", shown)):
        inputs = prompter.with_response(prompter.encode(query, examples), response.ids)
        length = inputs["input_ids"].shape[1]
        text = _collapsed(prompter, inputs)
        answer[name] = {
            "tokens": length,
            "image_tokens": prompter.count_image_tokens(inputs),
            "report_tokens": len(response.ids),
            "text": text,
        }
        if not as_json:
            console.rule(
                f"{name}: {length} tokens, {answer[name]['image_tokens']} of them for images, "
                f"{len(response.ids)} for the report"
            )
            console.print(text, soft_wrap=True)
    if as_json:
        print(visible_json(answer))
        return
    end = prompter.tokenizer.convert_ids_to_tokens(prompter.end_token_id)
    console.rule()
    console.print(
        f"the report ends with {end!r}; template {prompter.template_hash}"
        + (f" of {prompter.template_date}" if prompter.template_date else "")
        + (" (plain: the model has none)" if prompter.template.plain else ""),
        style="dim",
    )


def _collapsed(prompter: "Prompter", inputs: "dict[str, Tensor]") -> str:
    """The prompt as the model receives it; consecutive image tokens are one entry with a count."""
    token = prompter.backbone.image_token_id
    pieces: list[str] = []
    run: list[int] = []
    images = 0

    def close() -> None:
        nonlocal images
        if images:
            pieces.append(f"[image: {images} tokens]")
        images = 0
        if run:
            pieces.append(prompter.tokenizer.decode(run, skip_special_tokens=False))
            run.clear()

    for index in inputs["input_ids"][0].tolist():
        if index == token:
            if not images:
                close()
            images += 1
        else:
            if images:
                close()
            run.append(index)
    close()
    return "".join(pieces)


def _file_text(file: Path) -> str:
    from dive.files.input import MAX_LINE, read_file

    return read_file(file, MAX_LINE, pipe=True).decode("utf-8")


def _report_text(file: Path) -> str:
    import sys

    try:
        text: Any = sys.stdin.read() if str(file) == "-" else _file_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise DiveError(f"cannot read the report {file}: {error}") from error
    if not text.strip():
        raise DiveError(f"{file}: the report is empty")
    return text
