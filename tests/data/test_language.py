"""English reports, terse ones included, are distinguished from others; one warning for these."""

import warnings
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import dive
from dive.cli import app
from dive.data.language import is_english, language_of, warn_if_not_english

ENGLISH = [
    "Lungs clear. Heart normal. No effusion.",
    "Normal chest.",
    "No PTX.",
    "NAD.",
    "Stable.",
    "No pneumothorax. No edema. No consolidation.",
    "LUNGS CLEAR. NO EFFUSION.",
    "NO ACUTE CARDIOPULMONARY PROCESS.",
    "Pneumothorax: No\nEffusion: No\nEdema: Yes",
    "RLL pneumonia. PICC in SVC. LA enlargement.",
    "Dextrocardia. Azygos lobe. Pectus excavatum.",
    "Cardiomegaly. Tortuous aorta.",
    "Aorta is somewhat tortuous. Trachea central. Normal hila.",
    "ET tube 4 cm above carina. Sternal wires intact.",
    "___ year old man with cough. In comparison with the study of ___, there is no change.",
]
SHORTHAND = [
    "No sig abn", "Bibasal atx, sm effs, cmg", "RLL opac ?pna", "Sm bilat effs, mod cmg.",
    "rll pna, sm rt eff", "Wnl.", "Rt ptx, unch.", "Lt bibas atx; nml ht", "No ptx/pna",
    "?LLL consol",
]  # fmt: skip
OTHERS = {
    "Spanish": ["Pulmones claros. Corazón normal. Sin derrame.", "No hay derrame pleural.",
                "Silueta cardiaca normal.", "NO SE OBSERVA DERRAME PLEURAL."],
    "German": ["Lunge frei. Herz normal. Kein Erguss.", "Geringer Erguss links.",
               "Keine frischen Infiltrate, kein Pneumothorax.", "Unauffälliger Befund."],
    "French": ["Poumons clairs. Coeur normal. Pas d'épanchement.", "Pas de pneumothorax.",
               "Silhouette cardiaque normale.", "E\u0301panchement pleural gauche."],
    "Portuguese": ["Pulmões limpos. Coração normal. Sem derrame.", "Sem pneumotórax.",
                   "Silhueta cardiaca normal."],
    "Chinese": ["双肺清晰。心影正常。未见胸腔积液。", "心影增大"],
    "Vietnamese": ["Phổi sáng. Tim bình thường. Không tràn dịch.",
                   "Phoi sang. Tim binh thuong. Khong tran dich mang phoi."],
    "Dutch": ["Longen helder. Geen pleuravocht.", "Het hart is normaal van grootte."],
    "Russian": ["Легкие чистые. Сердце в норме."],
    "Polish": ["Pola plucne bez zmian."],
}  # fmt: skip


@pytest.mark.parametrize("report", ENGLISH + SHORTHAND)
def test_english_is_not_warned_of(report: str) -> None:
    found = language_of([report])
    assert found.other == 0 and not found.doubtful


def test_a_corpus_of_terse_english_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_not_english(ENGLISH, "reports", "the lexicon")
        warn_if_not_english([], "reports", "the lexicon")
        warn_if_not_english(["a b c d", "12 %"], "reports", "the lexicon")


@pytest.mark.parametrize("language", OTHERS)
def test_other_languages_are_warned_of(language: str) -> None:
    for report in OTHERS[language]:
        assert language_of([report]).doubtful, report
    mixed = [*ENGLISH, *(OTHERS[language] * 5)[:5]]
    with pytest.warns(UserWarning, match=r"^5 of 1\d reports hold mostly sentences without an"):
        warn_if_not_english(mixed, "reports", "the lexicon")


def test_what_several_languages_write_alike_decides_nothing() -> None:
    assert is_english("Pneumothorax: normal.") is None
    assert is_english("No edema.") is None
    assert is_english("12 cm") is None


def test_evaluate_findings_says_so_once_a_list() -> None:
    spanish, english = OTHERS["Spanish"], ENGLISH[:4]
    with pytest.warns(UserWarning, match="references hold mostly .* the metric findings") as told:
        dive.evaluate(english, spanish, ["findings", "rougeL"])
    assert len(told) == 1 and told[0].filename == __file__
    with pytest.warns(UserWarning, match="4 of 4 predictions hold mostly"):
        dive.evaluate(spanish, english, ["findings"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dive.evaluate(english, english, ["findings"])
        dive.evaluate(spanish, spanish, ["rougeL"])  # words are words


def test_inspect_tokens_says_so(tmp_path) -> None:
    report = tmp_path / "report.txt"
    report.write_text(OTHERS["German"][0], encoding="utf-8")
    with pytest.warns(UserWarning, match="1 of 1 reports hold mostly .* English word: the lexicon"):
        assert CliRunner().invoke(app, ["inspect", "tokens", str(report)]).exit_code == 0
    report.write_text(ENGLISH[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CliRunner().invoke(app, ["inspect", "tokens", str(report)]).exit_code == 0


def test_distill_says_so(tiny_llava, studies) -> None:
    backbone = dive.load_backbone(tiny_llava)
    config = {"preset": "dive-ce", "steps": 1, "batch_size": 2, "rank": 2, "warmup": 0.0}
    french = [
        replace(study, findings=OTHERS["French"][n]) for n, study in enumerate(studies[:4])
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="4 of 4 reports hold mostly") as told:
        dive.distill(backbone, french, config=config)
    assert sum("hold mostly" in str(one.message) for one in told) == 1
    with warnings.catch_warnings(record=True) as silent:
        warnings.simplefilter("always")
        dive.distill(backbone, studies[:4], config=config)
    assert not [one for one in silent if "hold mostly" in str(one.message)]
