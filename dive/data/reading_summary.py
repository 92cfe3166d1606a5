"""What a reader kept, what it left out and why, for a command to print."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath

from dive.data.absent import counts_text
from dive.errors.renamed import renamed_attribute

PLACEHOLDERS = '"nan", "N/A", "-", "___" or the like'


@dataclass
class ReadingSummary:
    """Counts of a reading, which grow while the studies are read.

    The counts are complete: `studies == kept + sum(left_out.values()) + failed`, and likewise
    `images`, `kept_images` and `images_left_out`.

    Attributes:
        source: the dataset or file that was read, by its last name ("mimic-cxr:mimic").
        policy: the rules by which studies, images and texts were chosen, a sentence per rule.
        files: paths of the tables that were read; only their last names are printed.
        notes: facts about the data that a user should know.
        studies, images: found in the tables.
        kept, kept_images: returned.
        splits: kept studies by split.
        left_out: studies left out by the policy, by reason.
        images_left_out: images by reason.
        failed: bad studies that `on_error="skip"` left out.
        records: records of the tables that became no study or image, by reason.
        placeholders: absent texts and other values ("nan", "N/A", "-", "___" or the like), by
            field.
        complete: whether everything was read; before that, the counts are incomplete.
    """

    source: str
    policy: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    studies: int = 0
    images: int = 0
    kept: int = 0
    kept_images: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    images_left_out: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    records: Counter[str] = field(default_factory=Counter)
    placeholders: Counter[str] = field(default_factory=Counter)
    complete: bool = False

    # old names
    rows = renamed_attribute("rows", "records")
    summary = renamed_attribute("summary", "outcome")

    def note(self, text: str) -> None:
        """Add a note, unless it is there."""
        if text not in self.notes:
            self.notes.append(text)

    def outcome(self) -> str:
        """One line with the counts of studies kept and left out."""
        parts = [f"{count:,} {reason}" for reason, count in self.left_out.most_common()]
        if self.failed:
            parts.append(f"{self.failed:,} skipped as bad")
        lost = f"; left out: {', '.join(parts)}" if parts else ""
        return f"{self.kept:,} of {self.studies:,} studies kept{lost}"

    def __str__(self) -> str:
        state = "" if self.complete else " so far"
        lines = [
            f"{self.source}: {self.kept:,} studies with {self.kept_images:,} images kept of "
            f"{self.studies:,} studies with {self.images:,} images{state}"
        ]
        lines += [f"  policy: {rule}" for rule in self.policy]
        if self.splits:
            named = ", ".join(f"{name} {count:,}" for name, count in sorted(self.splits.items()))
            lines.append(f"  kept by split: {named}")
        for title, counts in (
            ("studies left out", self.left_out),
            ("images left out", self.images_left_out),
            ("records left out", self.records),
        ):
            lines += [f"  {title}: {count:,} {why}" for why, count in counts.most_common()]
        if self.placeholders:
            lines.append(f"  taken as absent ({PLACEHOLDERS}): {counts_text(self.placeholders)}")
        if self.failed:
            lines.append(f"  studies skipped as bad: {self.failed:,}")
        lines += [f"  note: {text}" for text in self.notes]
        if self.files:
            lines.append("  read: " + ", ".join(PurePath(file).name for file in self.files))
        return "\n".join(lines)
