"""Decisive tokens by RadGraph entities in place of the lexicon's mentions."""

import json

import pytest
from tiny_tokenizers import qwen_tokenizer
from typer.testing import CliRunner

import dive
from dive.adapter.hub import model_card
from dive.cli import app
from dive.decisive.mentions import radgraph_mentions
from dive.decisive.tokens import DecisiveTokens
from dive.errors import DiveError
from dive.lexicon import lexicon_version
from dive.radgraph import RadGraph, RadGraphFile, annotator_of, entity_kind, parse_source

TEXT = "Small left pleural effusion.  No\npneumothorax. Lungs are clear, possible pneumonia."
XL = {
    "OBS-DP": "Observation::definitely present",
    "OBS-DA": "Observation::definitely absent",
    "OBS-U": "Observation::uncertain",
    "ANAT-DP": "Anatomy::definitely present",
}


def annotation(text, *entities, xl=False):
    """As the package makes it: punctuation marks are words; an entity is (first word, last word,
    label)."""
    for mark in ".,:":
        text = text.replace(mark, f" {mark} ")
    words = text.split()
    return {
        "text": " ".join(words),
        "entities": {
            str(number): {
                "tokens": " ".join(words[first : last + 1]),
                "label": XL[label] if xl else label,
                "start_ix": first,
                "end_ix": last,
                "relations": [],
            }
            for number, (first, last, label) in enumerate(entities, 1)
        },
    }


def annotated(xl=False):
    return annotation(
        TEXT,
        (1, 1, "ANAT-DP"), (2, 2, "ANAT-DP"), (3, 3, "OBS-DP"), (0, 0, "OBS-DP"), (6, 6, "OBS-DA"),
        (8, 8, "ANAT-DP"), (10, 10, "OBS-DP"), (13, 13, "OBS-U"),
        xl=xl,
    )  # fmt: skip


@pytest.mark.parametrize("xl", [False, True], ids=["radgraph", "radgraph-xl"])
def test_observations_are_mentions_in_the_reports_order(xl):
    found = radgraph_mentions(TEXT, annotated(xl))
    assert [(TEXT[m.start : m.end], m.polarity) for m in found] == [
        ("Small", "positive"),
        ("effusion", "positive"),
        ("pneumothorax", "negative"),
        ("clear", "negative"),  # RadGraph: present; it states normality
        ("pneumonia", "uncertain"),
    ]
    assert {m.cls for m in found} == {"Other"}


def test_labels():
    assert entity_kind("Observation::measurement::definitely present") == (
        "observation",
        "positive",
    )
    assert entity_kind("ANAT-DP") == ("anatomy", "positive")
    assert entity_kind("Anatomy::uncertain") == ("anatomy", "uncertain")
    for label in ("OBS", "Observation", "Observation::likely", "Device-DP", ""):
        with pytest.raises(DiveError, match="a RadGraph label is none of its"):
            entity_kind(label)


def test_an_annotation_of_another_text_is_refused():
    with pytest.raises(DiveError, match="is of another text"):
        radgraph_mentions("No effusion.", annotated())


def test_escapes_that_a_table_kept_are_no_words():
    text = 'Mild\\n edema.  \\"Effusion\\".'
    (mention,) = radgraph_mentions(
        text, annotation("Mild edema . `` Effusion `` .", (4, 4, "OBS-DP"))
    )
    assert text[mention.start : mention.end] == "Effusion"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"0": annotated(xl=True)}))
    return path


def words(weigher, **_):
    return [TEXT[start:end] for start, end in weigher.spans(TEXT)]


def test_polarity_and_modifiers_work_as_with_the_lexicon(file):
    def read(**options):
        return words(DecisiveTokens(None, annotator=RadGraphFile(file), **options))

    assert read() == ["Small", "effusion", "pneumonia"]
    assert read(uncertain=False) == ["Small", "effusion"]
    assert read(polarity="all") == ["Small", "effusion", "pneumothorax", "clear", "pneumonia"]
    assert read(modifiers=True) == ["Small left pleural effusion", "pneumonia"]


def test_every_piece_of_an_observation_is_pathology(file):
    tokenizer = qwen_tokenizer()
    weigher = DecisiveTokens(tokenizer, pathology=3.0, eos=2.0, annotator=RadGraphFile(file))
    weights = weigher(TEXT).tolist()
    offsets = tokenizer(TEXT, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(offsets["offset_mapping"], weights, strict=False)
    heavy = [TEXT[start:end].strip() for (start, end), weight in pairs if weight == 3.0]
    assert "".join(heavy) == "Smalleffusionpneumonia"
    assert weights[-1] == 2.0


def test_where_annotations_come_from(tmp_path, file):
    assert parse_source("radgraph") == ("model", "radgraph-xl")
    assert parse_source("radgraph:modern-radgraph-xl") == ("model", "modern-radgraph-xl")
    assert parse_source(f"radgraph:{tmp_path}") == ("weights", str(tmp_path))
    assert parse_source(f"radgraph:{file}") == ("file", str(file))
    (tmp_path / "xl.tar.gz").write_bytes(b"")
    assert parse_source(f"radgraph:{tmp_path}/xl.tar.gz")[0] == "weights"
    assert isinstance(annotator_of("radgraph"), RadGraph)
    assert annotator_of(f"radgraph:{tmp_path}").weights == tmp_path
    for wrong in ("lexicons", "radgraph:", "radgraph:none.json", "lexicon:x", 3):
        with pytest.raises(
            DiveError, match="decisive is .*want lexicon, visual, radgraph, or radgraph:X"
        ):
            dive.DistillConfig(decisive=wrong)


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava, device="cpu")


def config(**more):
    return dive.DistillConfig(
        preset="dive-ce", rank=2, steps=2, batch_size=2, calibration_studies=1, **more
    )


def first_word(text):
    return annotation(text, (0, 0, "OBS-DP"))


def test_distilling_with_a_file(llava, studies, tmp_path):
    some = studies[:4]
    path = tmp_path / "private" / "annotations.json"
    path.parent.mkdir()
    path.write_text(json.dumps([first_word(study.report()) for study in some]))
    options = {"progress": False}
    by_file = dive.distill(llava, some, config=config(decisive=f"radgraph:{path}"), **options)
    by_lexicon = dive.distill(llava, some, config=config(), **options)
    run = by_file.metadata["distillation"]
    assert run["decisive_source"] == "annotations from annotations.json"
    source = by_lexicon.metadata["distillation"]["decisive_source"]
    assert source == f"the lexicon of dive {lexicon_version()}"
    assert any(
        (a != b).any() for a, b in zip(by_file.parameters(), by_lexicon.parameters(), strict=True)
    )
    card = model_card(by_file)
    assert "decisive by radgraph:annotations.json" in card and "private" not in card


def test_a_report_without_annotation_is_named_or_skipped(llava, studies, tmp_path):
    some = studies[:4]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([first_word(study.report()) for study in some[:3]]))
    settings = config(decisive=f"radgraph:{path}")
    with pytest.raises(DiveError, match="study-03.*: .*no annotation for this text"):
        dive.distill(llava, some, config=settings, progress=False)
    skipped = dive.data.Skipped()
    adapter = dive.distill(
        llava, some, config=settings, progress=False, on_error="skip", skipped=skipped
    )
    assert adapter.metadata["distillation"]["studies"] == 3
    assert [entry["id"] for entry in skipped] == ["study-03"]


def test_the_model_is_started_once_for_all_reports(llava, studies, monkeypatch):
    calls = []

    def annotate(self, texts):
        calls.append(list(texts))
        return [first_word(text) for text in texts]

    monkeypatch.setattr(RadGraph, "annotate", annotate)
    monkeypatch.setattr(RadGraph, "version", "0.0")
    adapter = dive.distill(
        llava, studies[:4], config=config(decisive="radgraph"), validation=studies[4:6],
        progress=False,
    )  # fmt: skip
    assert calls == [list(dict.fromkeys(study.report() for study in studies[:6]))]
    source = adapter.metadata["distillation"]["decisive_source"]
    assert source == "annotated by radgraph-xl, radgraph 0.0"


def test_the_command_line_takes_it(file, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text(TEXT + "\n")
    arguments = ["inspect", "tokens", str(report), "--json", "--decisive", f"radgraph:{file}"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert [m["text"] for m in found["mentions"]] == [
        "Small", "effusion", "pneumothorax", "clear", "pneumonia",
    ]  # fmt: skip
    assert found["shares"]["pathology"]["tokens"] > 0
