"""The inside of a method's reports, added to a page that is there."""

from collections.abc import Mapping
from typing import Any

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.load import Backbone
from dive.data import Skipped, Study
from dive.errors.counting import counted, listed
from dive.page.explain import explain
from dive.page.schema import PageData, Report


def add_inside(
    data: PageData,
    backbone: Backbone,
    adapter: SteeringAdapter,
    studies: Mapping[int, Study],
    method: int,
    **explaining: Any,
) -> None:
    """Explains a method's reports of these studies, and notes on the page which could not be.

    Args:
        data: of the page, changed in place.
        studies: by their index on the page, in the order in which the page lists them.
        method: index of the method that wrote the reports with this adapter.
        explaining: further arguments of `explain`.

    Raises:
        DiveError: what concerns all studies: an adapter of another backbone, a bad prompt ...
    """
    reports: dict[int, Report] = {}
    for index in studies:
        report = data["studies"][index]["reports"][method]
        assert report is not None, "a study without a report of this method"
        reports[index] = report
    skipped = Skipped()
    data["explained"] = explain(
        backbone,
        adapter,
        list(studies.values()),
        [_text(report) for report in reports.values()],
        indices=list(studies),
        method=method,
        on_error="skip",
        skipped=skipped,
        **explaining,
    )
    if len(skipped):
        names = [str(entry["id"]) for entry in skipped.entries]
        data["notes"].append(
            f"The inside of {counted(len(names), 'report')} is not shown, because the films are "
            f"gone or the report cannot be read again: {listed(names)}."
        )


def _text(report: Report) -> str:
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in report["pieces"])
