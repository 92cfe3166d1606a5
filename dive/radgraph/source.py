"""The source of annotations as an option names it."""

from dive.errors import DiveError, checks
from dive.radgraph.annotations import Annotator
from dive.radgraph.file import RadGraphFile
from dive.radgraph.model import MODEL_TYPES, RadGraph


def annotator_of(option: str, name: str = "decisive") -> Annotator:
    """Open the source that an option names.

    Raises:
        DiveError: as `parse_source`; or a file that holds no annotations.
    """
    kind, what = parse_source(option, name)
    if kind == "file":
        return RadGraphFile(what)
    return RadGraph(what) if kind == "model" else RadGraph(weights=what)


def parse_source(option: object, name: str = "decisive") -> tuple[str, str]:
    """("model", its type), ("weights", path) or ("file", path).

    "radgraph" is the default model with the weights in its cache; "radgraph:X" a model by its type,
    a folder or archive of weights, or a file of annotations. `name` is that of the option, for
    messages.

    Raises:
        DiveError: none of these.
    """
    kind, colon, what = str(option).partition(":")
    if kind == "radgraph" and not colon:
        return "model", "radgraph-xl"
    if kind == "radgraph" and what in MODEL_TYPES:
        return "model", what
    path = checks.path(name, what) if kind == "radgraph" and what.strip() else None
    if path is not None and path.exists():
        archive = path.is_dir() or what.endswith((".tar.gz", ".tgz"))
        return "weights" if archive else "file", str(path)
    lost = f"; there is no file {what}" if kind == "radgraph" and what else ""
    raise DiveError(
        f"{name} is {option!r}, want lexicon, visual, radgraph, or radgraph:X where X is one of "
        f"{', '.join(MODEL_TYPES)}, a folder or .tar.gz of weights, or a file of annotations{lost}"
    )
