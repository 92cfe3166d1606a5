"""How many reports of Open-i `dive.language` takes for another language than English: none is.

    python docs/measure_language.py NLMCXR_reports.tgz

The archive is the National Library of Medicine's; the package torchxrayvision brings it, too.
"""

import sys
import tarfile
import xml.etree.ElementTree as ElementTree

from dive.data.absent import is_absent
from dive.language import language_of


def main(path: str) -> None:
    texts: dict[str, list[str]] = {"FINDINGS": [], "IMPRESSION": []}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None or not member.name.endswith(".xml"):
                continue
            for part in ElementTree.parse(file).getroot().iter("AbstractText"):
                text = "".join(part.itertext())
                if part.get("Label") in texts and not is_absent(text):
                    texts[str(part.get("Label"))].append(text)
    for name, reports in texts.items():
        found = [language_of([report]) for report in reports]
        other = sum(one.other for one in found)
        print(
            f"{name}: {len(reports):,} texts, English {sum(one.english for one in found):,}, "
            f"other {other}, not told {sum(one.english + one.other == 0 for one in found)}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
