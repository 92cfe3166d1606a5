"""What `dive report` reads: methods by name, their reports, logs, and an adapter's inside."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive.cli.options import as_path
from dive.cli.predictions import joined, predictions_of
from dive.cli.references import references_of
from dive.errors import DiveError
from dive.errors.counting import counted, listed

if TYPE_CHECKING:
    from dive.backbone.load import Backbone
    from dive.data import Study
    from dive.page import PageData, Predictions
    from dive.page.schema import Training


def named(given: Sequence[str], option: str) -> dict[str, Path]:
    """NAME=FILE or FILE, whose name is then its own without the suffix, by name.

    A FILE that exists is one, whatever its name holds.

    Raises:
        DiveError: a name is blank or comes twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not sign or os.path.exists(text):  # False for what can be no name
            path = text
            name = Path(text).absolute().stem if text.strip() else ""
        if not name.strip() or not path.strip():
            raise DiveError(f"{option} is {text!r}, want NAME=FILE or FILE")
        if name in found:
            raise DiveError(f"{option}: {name!r} comes twice; give each a name: NAME=FILE")
        found[name] = as_path(path)
    return found


def read_all(
    references: str,
    target: str,
    options: dict[str, Any],
    files: dict[str, Path],
    allow_missing: bool,
) -> "tuple[list[Study], list[Predictions], list[str]]":
    """The studies, each method's reports of them, and notes on reports of other studies.

    Raises:
        DiveError: a file cannot be read, an id comes twice; without `allow_missing` also a study
            without a report of some method, or a report of no study.
    """
    from dive.page import Predictions

    records = {name: predictions_of(path) for name, path in files.items()}
    truth = references_of(references, target, options, allow_missing, films=True)
    by_file = {files[name]: found for name, found in records.items()}
    joined(by_file, references, truth, allow_missing)
    methods, notes = [], []
    for name, found in records.items():
        odd = [one for one in found if one not in truth]
        if odd:
            notes.append(
                f"{name} has reports for {counted(len(odd), 'study')} without a reference, which "
                f"are left out: {listed(odd)}."
            )
        own = {one: record for one, record in found.items() if one in truth}
        methods.append(Predictions(name, own, files[name].name))
    return [one.study for one in truth.values()], methods, notes


def training_of_logs(
    paths: dict[str, Path], adapter: Path | None
) -> "tuple[list[Training], list[str]]":
    """The curves of --log, or of the adapter's folder where it has a log, and notes on gaps."""
    from dive.page import LOG_FILE, training_of

    if not paths and adapter is not None and (adapter / LOG_FILE).is_file():
        paths = {adapter.absolute().name: adapter}
    curves, notes = [], []
    for name, path in paths.items():
        training, lost = training_of(name, path)
        curves.append(training)
        if lost:
            notes.append(f"{counted(lost, 'value')} in the log of {name} are no finite numbers.")
    return curves, notes


class Inside:
    """What is inside of one method's adapter, for the studies that it got most wrong.

    Made before the page is, so that an adapter of another backbone is refused at once.

    Raises:
        DiveError: no such method, an adapter that cannot be read or is of another backbone.
    """

    def __init__(
        self,
        backbone: "Callable[[], Backbone]",
        adapter: Path,
        methods: "Sequence[Predictions]",
        method: str | None,
        **prompting: Any,
    ) -> None:
        from dive.adapter.adapter import as_adapter

        names = [one.name for one in methods]
        if method is not None and method not in names:
            raise DiveError(
                f"--explain-method is {method!r}, want one of {', '.join(map(repr, names))}"
            )
        self._method = len(names) - 1 if method is None else names.index(method)
        self._prompting = prompting
        self._name = adapter.absolute().name
        self._adapter = as_adapter(adapter)  # a bad one is found before a backbone is loaded
        self._backbone = backbone()
        self._adapter.check_backbone(self._backbone.model)

    def add(self, data: "PageData", studies: "Sequence[Study]", count: int) -> None:
        """Explains the `count` worst reports, and writes what was left out into the notes."""
        from dive.page import worst_first
        from dive.page.add_inside import add_inside

        chosen = worst_first(data, self._method)[:count]
        add_inside(
            data,
            self._backbone,
            self._adapter,
            {index: studies[index] for index in chosen},
            self._method,
            name=self._name,
            **self._prompting,
        )
