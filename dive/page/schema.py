"""The data of the page, as the template embeds it and `dive report --json` writes it.

Every text is plain: the page's script puts it into text nodes, and never into HTML. Indices of
methods, findings and studies are those of the lists `methods`, `findings` and `studies`.
"""

from typing import Any, Literal, NotRequired, TypedDict

FORMAT = 1

# of one finding in one report, beside the reference
Outcome = Literal["hit", "side", "severity", "both", "missed", "invented"]
State = Literal["positive", "uncertain", "negative"]
# a stretch of text, or [text, index of the finding, state] for the words of a finding
Piece = str | list[Any]


class Method(TypedDict):
    """One set of predictions."""

    name: str
    file: str  # its last name
    prompt_tokens: float | None  # mean over reports; None: not in the file
    seconds: float | None  # mean over reports
    ended: float | None  # share of reports that the model ended by itself
    reports: int  # of the studies on the page


class Finding(TypedDict):
    """One finding that some report or reference states or denies."""

    name: str  # the lexicon's
    label: str  # in words
    cls: str  # CheXpert observation, or "Other"
    references: int  # that state it as present or uncertain
    counts: list[dict[str, int]]  # per method: scored reports by outcome


class Metric(TypedDict):
    """One score, and its variant in words."""

    key: str  # as in `dive.evaluate`
    label: str
    variant: str
    better: Literal["higher", "lower", "near 1", "none"]
    unit: Literal["fraction", "ratio", "tokens"]


class Score(TypedDict):
    """A corpus score of one method; None where it is undefined (the inverse of a mean below 0)."""

    value: float | None
    interval: list[float] | None  # [low, high] by bootstrap


class Difference(TypedDict):
    """Method minus baseline, on the same studies, paired."""

    method: int
    baseline: int
    scores: dict[str, dict[str, Any]]  # key -> {"difference", "interval", "p"}


class Image(TypedDict):
    """One film; `src` is a data URI, a path relative to the page, or None where it is missing."""

    src: str | None
    width: int
    height: int
    view: str | None


class Found(TypedDict):
    """The outcome of one finding in one report."""

    finding: int
    outcome: Outcome
    truth: str  # side and severity in words, "" where none is given: "left, small"
    stated: str


class Report(TypedDict):
    """One text: the reference (without outcomes), or what a method wrote."""

    pieces: list[Piece]
    ended: bool | None  # None: unknown, as for references
    found: list[Found]  # empty for the reference
    errors: int  # outcomes other than "hit"
    scores: dict[str, float | None]  # the report's own: rougeL, finding_f1 ...


class StudyData(TypedDict):
    """One study: its films, its reference, one report per method (None: it has none)."""

    id: str
    patient: str | None
    indication: str | None
    images: list[Image]
    reference: Report
    reports: list[Report | None]


class Curve(TypedDict):
    """One quantity of a training's log."""

    name: str  # "loss", "loss_pathology", "eval_loss" ...
    steps: list[int]
    values: list[float]


class Training(TypedDict):
    """The log of one training."""

    name: str
    curves: list[Curve]


class Grid(TypedDict):
    """A matrix of numbers in 0 .. maximum (or -maximum .. maximum), in one byte each.

    data: base64 of rows * columns bytes, row by row. Unsigned: value = byte / 255 * maximum;
        signed: value = (byte - 128) / 127 * maximum.
    """

    rows: int
    columns: int
    maximum: float
    signed: bool
    data: str


class Mixing(TypedDict):
    """The mixing weights of one layer's vectors along a report: rows are vectors."""

    layer: int
    vectors: list[int]  # the strongest ones, the strongest first; indices of columns of `up`
    weights: Grid


class Explanation(TypedDict):
    """The inside of one report, token by token: with the adapter and without it.

    The last token is the end of the turn. Probabilities are of the token that stands there, given
    all before it; `end` is the probability that the turn ended there instead.
    """

    study: int
    tokens: list[str]
    probability: list[float]
    probability_without: list[float]
    end: list[float]
    end_without: list[float]
    strength: Grid  # rows are layers: norm of the edit over the norm of the hidden state
    mixing: list[Mixing]  # empty for rank 0


class Explained(TypedDict):
    """The inside of one method's reports."""

    method: int
    adapter: str  # its name
    layers: list[int]  # the rows of `strength`
    studies: list[Explanation]


class PageData(TypedDict):
    """All that the page shows."""

    format: int
    version: str  # of dive
    title: str
    notes: list[str]  # what a reader must know first: what is missing, what was left out
    target: str
    bootstrap: dict[str, Any] | None  # samples, confidence, unit, seed
    methods: list[Method]
    findings: list[Finding]  # most frequent in the references first
    metrics: list[Metric]
    scores: list[dict[str, Score]]  # per method: key -> score
    differences: list[Difference]
    classes: list[dict[str, Any]]  # per method: `classes` of `dive.evaluate`
    terciles: list[dict[str, Any]]  # per method: `terciles` of `dive.evaluate`
    studies: list[StudyData]
    training: list[Training]
    explained: Explained | None
    facts: NotRequired[list[list[str]]]  # [what, value], of the page's foot
