"""`open_studies`: the entry to every dataset."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dive.data.datasets.chexpert_plus import ChexpertPlus
from dive.data.datasets.iu_xray import IuXray
from dive.data.datasets.mimic_cxr import MimicCxr
from dive.data.datasets.r2gen import R2Gen
from dive.data.datasets.records import DatasetRecords, JsonLines, is_records
from dive.data.reading import Options, Reader, select
from dive.data.skipping import Skipped, Skipping
from dive.data.studies import Studies
from dive.errors import DiveError, checks

_READERS: dict[str, Callable[[str, Path, Options, Skipping], Reader]] = {
    "mimic-cxr": MimicCxr,
    "chexpert-plus": ChexpertPlus,
    "iu-xray": IuXray,
    "r2gen": R2Gen,
    "jsonl": JsonLines,
}


def open_studies(
    spec: Any,
    *,
    target: str | None = "findings",
    split: str | None = None,
    views: str | Sequence[str] | None = None,
    max_images: int | None = None,
    min_words: int = 0,
    images: str | os.PathLike[str] | None = None,
    reports: str | os.PathLike[str] | None = None,
    sections: str | os.PathLike[str] = "auto",
    last_paragraph: bool = False,
    labels: str | None = "auto",
    drop_comparisons: bool = False,
    strip_placeholders: bool = False,
    check_files: bool = True,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
) -> Studies:
    """Open a dataset as a sequence of `Study` that is read while it is iterated.

        studies = open_studies("mimic-cxr:/data/mimic-cxr-jpg", reports="/data/mimic-cxr",
                               split="validate")
        for study in studies: ...
        print(studies.summary)

    Args:
        spec: "mimic-cxr:ROOT", "chexpert-plus:ROOT", "iu-xray:ROOT", "r2gen:annotation.json", the
            path of a .jsonl file (or "jsonl:FILE"), a `datasets` object or another iterable of
            dicts, or a mapping of split names to such.
        target: the section that a study must have; None accepts studies with any report or none.
        split: train, validation or test by any of their common names (validate, valid, val); None
            is all of them. CheXpert Plus has no test split; `valid` is used as one.
        views: frontal, lateral, all, or names such as "PA,AP"; None is the dataset's default, one
            frontal image per study (IU X-Ray as XML and R2Gen: all of a study's images).
        max_images: maximal images per study. None: 1 where `views` is None, else no limit.
        min_words: minimal words of the target, counted after all changes to the text.
        images, reports: folders, if they are not under ROOT (MIMIC-CXR: `reports` may be
            mimic-cxr-reports.zip).
        sections: MIMIC-CXR: "auto" uses a `mimic_cxr_sectioned.csv` under the roots if there is
            one, else report files and the community's rules; "rules" or the path of such a csv.
        last_paragraph: MIMIC-CXR: where a report has neither findings nor impression, its last
            paragraph is the target.
        labels: the label file for `Study.labels`: "auto" (if there is one), None, or by
            name (MIMIC-CXR: chexpert, negbio, radiologists; CheXpert Plus: findings, impression,
            report; IU X-Ray: problems).
        drop_comparisons: drop sentences that compare with an earlier examination.
        strip_placeholders: drop `___` and `XXXX`.
        check_files: check that each image file exists (one stat per image).
        seed: of the split of IU X-Ray, which has no official one.
        columns: of dataset objects: our name -> theirs, {"findings": "report"}.
        on_error: "fail" raises at the first bad record or file; "skip" continues and adds it to
            `skipped`. Damage to a table that the dataset cannot be read without always fails.
        skipped: receives an entry per record, image or study that was left out because it is bad.

    Raises:
        DiveError: at once: unknown spec or option, wrong root, missing tables or columns. While
            reading: bad records, missing files, no study left. Names file, record and column.
    """
    options = Options(
        target=target,
        split=split,
        views=views,
        max_images=max_images,
        min_words=min_words,
        images=None if images is None else checks.path("images", images),
        reports=None if reports is None else checks.path("reports", reports),
        sections=sections if sections in ("auto", "rules") else checks.path("sections", sections),
        last_paragraph=last_paragraph,
        labels=labels,
        drop_comparisons=drop_comparisons,
        strip_placeholders=strip_placeholders,
        check_files=check_files,
        seed=seed,
        columns={} if columns is None else columns,
    )
    reader = _reader_of(spec, options, Skipping(on_error, skipped))
    return Studies(select(reader), reader.summary)


def _reader_of(spec: Any, options: Options, skipping: Skipping) -> Reader:
    """The reader of a dataset, with its policy stated; DiveError for an unknown `spec`."""
    reader: Reader
    if is_records(spec):
        reader = DatasetRecords(f"<{type(spec).__name__}>", spec, options, skipping)
    else:
        kind, path = parse_spec(spec)
        # only the last name: the folders above it may name somebody
        name = path.name if kind == "jsonl" else f"{kind}:{path.absolute().name}"
        reader = _READERS[kind](name, path, options, skipping)
    reader.state_policy()
    return reader


def names_studies(given: Any) -> bool:
    """Whether a path or string names a file or dataset of studies, by its form alone."""
    if not checks.names_a_path(given):
        return False
    kind, colon, _ = str(given).partition(":")
    return (bool(colon) and kind in _READERS) or str(given).lower().endswith(".jsonl")


def parse_spec(spec: Any) -> tuple[str, Path]:
    """Splits a spec into ("mimic-cxr", ROOT) and so on; a path is ("jsonl", FILE)."""
    kinds = ", ".join(f"{kind}:PATH" for kind in _READERS)
    spec = os.fspath(spec) if checks.is_path(spec) else spec
    if not isinstance(spec, str) or not spec.strip():
        raise DiveError(
            f"cannot read studies from {spec!r}, want {kinds}, a .jsonl file, or records"
        )
    kind, colon, path = spec.partition(":")
    if colon and kind in _READERS:
        if not path.strip():
            raise DiveError(f"{spec!r} names no path, want {kind}:PATH")
        return kind, checks.path(kind, path)
    plain = checks.path("studies", spec)
    if plain.is_dir() or (colon and not plain.exists() and len(kind) > 1):
        raise DiveError(f"{spec} is not known, want {kinds}, or a .jsonl file")
    return "jsonl", plain
