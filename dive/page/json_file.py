"""All that a page shows, as JSON for a program."""

import json
from pathlib import Path

from dive.files.atomic import write_text
from dive.page.schema import PageData


def write_json(path: Path, data: PageData) -> None:
    """Writes the data of a page as strict JSON in ASCII, completely or not at all.

    Raises:
        DiveError: the file cannot be written.
    """
    write_text(path, json.dumps(data, allow_nan=False) + "\n")
