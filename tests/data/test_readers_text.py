"""Sections of MIMIC-CXR reports, and the changes to wording."""

import pytest

from dive.data.sections import mimic_sections, section_name, split_sections
from dive.data.text_edits import compares, drop_comparisons, one_line, sentences, strip_placeholders


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("FINDINGS", "findings"),
        ("FINDING", "findings"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("CONCLUSION", "impression"),
        ("IMPRESSON", "impression"),
        ("NDICATION", "indication"),
        ("COMPARISONS", "comparison"),
        ("REASON FOR EXAM", "indication"),
        ("REASON FOR EXAMINATION", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("WETREAD", "wet read"),
        ("PRELIMINARY IMPRESSION", "impression"),
        ("ADDENDUM BEGINS", "addendum"),
        ("HISTORY AND FINDINGS", "findings"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PORTABLE AP CHEST", "findings"),
        ("PA AND LAT", "findings"),
        ("AP AND LAT", "ap and lat"),
        ("AP AND LATERAL", "findings"),
        ("TECHNIQUE", "technique"),
        ("NOTE", "note"),
        ("INDCATION", "indication"),
        ("INDICAITON", "indication"),
        ("INDICATIONS", "indication"),
        ("CLINICAL INDICATIONS", "indication"),
        ("REASON FOR STUDY", "indication"),
        ("FIDNINGS", "findings"),
        ("FINDIGNS", "findings"),
        ("FINDNGS", "findings"),
        ("IMPRESSIONS", "impression"),
        ("IMPRESION", "impression"),
        ("IMPRESSSSION", "impression"),
        ("COMPARISSON", "comparison"),
        ("CMPARISON", "comparison"),
        ("TECHINQUE", "technique"),
        ("HISTROY", "history"),
        ("CONCLUSIONS", "impression"),
        ("MEDICATION", "medication"),
        ("COMPRESSION", "compression"),
        ("DEPRESSION", "depression"),
        ("CONTUSION", "contusion"),
        ("INCLUSION", "inclusion"),
        ("INJECTION", "injection"),
        ("INDUCTION", "induction"),
    ],
)
def test_headers_are_named_by_the_rules(header: str, name: str) -> None:
    assert section_name(header) == name
    assert section_name(f" {header.title()} ") == name


def test_a_report_in_sections() -> None:
    text = " FINAL REPORT\n INDICATION:  Cough.\n \n FINDINGS: \n \n Clear\n lungs.\n"
    text += " IMPRESSION: Normal.\n"
    assert split_sections(text) == [
        ("preamble", " FINAL REPORT\n "),
        ("indication", " Cough.\n "),
        ("findings", "\n \n Clear\n lungs."),
        ("impression", "Normal.\n"),
    ]
    assert mimic_sections("\ufeff" + text.replace("\n", "\r\n"))["findings"] == "Clear\n lungs."


def test_quirks_of_the_rules() -> None:
    # the last section of a name wins, and an empty one is none
    text = " X\n FINDINGS: First.\n \n FINDINGS: Second.\n IMPRESSION: \n"
    assert mimic_sections(text)["findings"] == "Second."
    assert "impression" not in mimic_sections(text)
    # a header needs a space in front, capitals, and white space behind its colon
    for no_header in ("\n FINDINGS:x", "\nFINDINGS: x", "\n Findings: x", "\n FINDINGS 2: x"):
        assert [name for name, _ in split_sections(no_header)] == ["full report"]
    same_line = " X\n HISTORY: FINDINGS: Clear.\n"
    assert mimic_sections(same_line)["history"] == "FINDINGS: Clear."


def test_an_indication_whose_header_lost_a_letter_is_no_impression() -> None:
    text = " FINAL REPORT\n NDICATION:  Cough.\n \n FINDINGS:  Clear.\n"
    assert mimic_sections(text) == {
        "preamble": "FINAL REPORT", "indication": "Cough.", "findings": "Clear.",
    }  # fmt: skip


def test_headers_that_lost_their_colon() -> None:
    text = " FINAL REPORT\n INDICATION: Cough.\n \n FINDINGS \n Lungs are clear.\n \n IMPRESSION\n"
    text += " Normal. No FINDINGS\n of note.\n"
    assert mimic_sections(text) == {
        "preamble": "FINAL REPORT",
        "indication": "Cough.",
        "findings": "Lungs are clear.",
        "impression": "Normal. No FINDINGS\n of note.",
    }


@pytest.mark.parametrize("mark", [";", " -", "  --", " ;"])
def test_headers_with_another_mark_than_a_colon(mark: str) -> None:
    text = f" X\n HISTORY{mark} Cough.\n FINDINGS: Clear - IMPRESSION of a line.\n"
    text += f" IMPRESSION{mark} Normal.\n"
    assert mimic_sections(text) == {
        "preamble": "X",
        "history": "Cough.",
        "findings": "Clear - IMPRESSION of a line.",
        "impression": "Normal.",
    }


def test_a_wet_read_and_an_addendum_end_where_the_report_begins() -> None:
    line = "_" * 78
    report = f"{'':33}FINAL REPORT\n INDICATION: Cough.\n \n FINDINGS: Clear.\n"
    wet = f"\n WET READ: ___ 9:40 PM\n  No acute process.\n {line}\n{report}"
    found = mimic_sections(wet)
    assert found["wet read"] == "___ 9:40 PM\n  No acute process."
    assert (found["indication"], found["findings"]) == ("Cough.", "Clear.")
    early = f"\n WET READ: ___\n IMPRESSION: Wet and long.\n {line}\n{report}"
    assert mimic_sections(early)["impression"] == "Wet and long."
    bare = f"\n WET READ: ___\n  Nothing.\n {line}\n{'':33}FINAL REPORT\n \n Lungs clear.\n"
    assert mimic_sections(bare)["last_paragraph"] == "Lungs clear."
    added = f"{'':33}FINAL ADDENDUM\n ADDENDUM: Seen again.\n {line}\n{report}"
    found = mimic_sections(added)
    assert (found["addendum"], found["findings"]) == ("Seen again.", "Clear.")


def test_the_last_paragraph_stands_in_only_where_nothing_else_does() -> None:
    text = " FINAL REPORT\n HISTORY:  Fever.\n \n Lungs clear.\n \n Heart normal.\n"
    found = mimic_sections(text)
    assert found["history"] == "Fever."
    assert found["last_paragraph"] == "Lungs clear.\n \n Heart normal."
    assert "last_paragraph" not in mimic_sections(text + " IMPRESSION: Normal.\n")
    assert mimic_sections(" One paragraph only.") == {"full report": "One paragraph only."}


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("Compared to ___, the lungs", "Compared to, the lungs"),
        ("XXXX-year-old with XXXX .", "-year-old with."),
        ("Dr. ___ was told at ___ p.m.", "Dr. was told at p.m."),
        ("An x_y and an XX stay.", "An x_y and an XX stay."),
        ("___", ""),
    ],
)
def test_placeholders_go_with_the_space_before_punctuation(text: str, stripped: str) -> None:
    assert strip_placeholders(text) == stripped


COMPARING = [
    "In comparison with the study of ___, there is little change.",
    "As compared to the previous radiograph, the effusion has increased.",
    "Heart size is unchanged.",
    "Stable cardiomegaly.",
    "Interval removal of the endotracheal tube.",
    "There is no significant change.",
    "The opacity was seen previously.",
    "New left lower lobe opacity.",
    "The effusion has slightly decreased.",
    "Edema has resolved.",
    "Small effusion persists.",
    "Cardiomegaly is again seen.",
    "Lung volumes are lower than on the prior.",
    "A right effusion is no longer seen.",
    "The heart remains enlarged.",
]
STANDING_ALONE = [
    "The heart is normal in size.",
    "No pleural effusion or pneumothorax.",
    "Status post prior sternotomy.",
    "Previous cholecystectomy clips are seen.",
    "Lung volumes are low.",
    "There is increased density in the left lower lobe.",
    "Decreased lung volumes with bibasilar atelectasis.",
]


@pytest.mark.parametrize("sentence", COMPARING)
def test_a_sentence_that_compares(sentence: str) -> None:
    assert compares(sentence)
    assert (
        drop_comparisons(f"Clear lungs. {sentence} Normal heart.") == "Clear lungs. Normal heart."
    )


@pytest.mark.parametrize("sentence", STANDING_ALONE)
def test_a_sentence_that_does_not(sentence: str) -> None:
    assert not compares(sentence)
    assert drop_comparisons(sentence) == sentence


def test_sentences_end_where_they_end() -> None:
    text = "Told Dr. X at 5 p.m.\n No effusion.  A 3.5 cm mass! 1. Clear? Yes."
    assert sentences(text) == [
        "Told Dr. X at 5 p.m. No effusion.",
        "A 3.5 cm mass!",
        "1. Clear?",
        "Yes.",
    ]
    assert one_line(" a\r\n b\t c ") == "a b c"
