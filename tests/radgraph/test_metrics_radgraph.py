"""RadGraph: set scores on annotations, files of annotations, and the model in its own process."""

import json
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import dive
from dive.errors import DiveError
from dive.metrics.radgraph_scores import LEVELS, radgraph_f1
from dive.radgraph import RadGraph, RadGraphFile, check_annotation, entity_spans
from dive.radgraph import model as radgraph_model

needs_radgraph = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("radgraph", "requests")),
    reason="needs radgraph and requests (extra dive-mrg[clinical])",
)


def _annotation(text: str, *entities: tuple) -> dict[str, Any]:
    """Entities as (tokens, label, (relation, number of its target), ...)."""
    found = {}
    for i, (tokens, label, *relations) in enumerate(entities, 1):
        first = text.lower().split().index(tokens.lower().split()[0])
        found[str(i)] = {
            "tokens": tokens,
            "label": label,
            "start_ix": first,
            "end_ix": first + len(tokens.split()) - 1,
            "relations": [[name, str(target)] for name, target in relations],
        }
    return {"text": text, "entities": found, "data_source": None, "data_split": "inference"}


_DP, _DA = "Observation::definitely present", "Observation::definitely absent"
_ANATOMY = "Anatomy::definitely present"
ANNOTATIONS = [
    _annotation(
        "No pleural effusion .", ("pleural", _ANATOMY), ("effusion", _DA, ("located_at", 1))
    ),
    _annotation("Small Effusion .", ("Small", _DP, ("modify", 2)), ("Effusion", _DP)),
    _annotation(
        "small right effusion",
        ("small", _DP, ("modify", 3)),
        ("right", _ANATOMY),
        ("effusion", _DP, ("located_at", 2)),
    ),
    _annotation("clear .",),
    _annotation("effusion in right base", ("effusion", _DP, ("located_at", 2), ("located_at", 3)),
                ("right", _ANATOMY, ("modify", 3)), ("base", _ANATOMY)),
]  # fmt: skip

# (prediction, reference): radgraph.rewards.compute_reward(prediction, reference, "all") of
# radgraph 0.1.18 on the annotations above, computed once; pairs not listed are 0 on every level
GOLDEN = {
    (0, 0): (1.0, 1.0, 1.0),
    (1, 1): (1.0, 1.0, 1.0),
    (1, 2): (0.0, 0.0, 0.4),
    (2, 1): (0.0, 0.0, 0.4),
    (2, 2): (1.0, 1.0, 1.0),
    (2, 4): (0.6666666666666666, 0.3333333333333333, 0.28571428571428575),
    (4, 2): (0.6666666666666666, 0.3333333333333333, 0.28571428571428575),
    (4, 4): (1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("prediction", range(5))
@pytest.mark.parametrize("reference", range(5))
def test_same_numbers_as_the_released_package(prediction: int, reference: int) -> None:
    got = [
        radgraph_f1(ANNOTATIONS[prediction], ANNOTATIONS[reference], level, case_sensitive=True)
        for level in LEVELS
    ]
    assert got == pytest.approx(GOLDEN.get((prediction, reference), (0, 0, 0)), abs=1e-12)


@needs_radgraph
def test_golden_numbers_are_the_packages() -> None:
    code = (
        "import json, sys; from radgraph.rewards import compute_reward; a = json.load(sys.stdin);"
        "print(json.dumps([[compute_reward(h, r, 'all') for r in a] for h in a]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(ANNOTATIONS), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.splitlines()[-1])
    for h, row in enumerate(table):
        for r, wanted in enumerate(row):
            assert wanted == pytest.approx(GOLDEN.get((h, r), (0, 0, 0)), abs=1e-12)


def test_lower_case_by_default() -> None:
    """ "Small Effusion" and "small right effusion": simple 2 of 2 and of 3 entities agree."""
    pair = ANNOTATIONS[1], ANNOTATIONS[2]
    assert radgraph_f1(*pair, "simple") == pytest.approx(2 * 2 / 5)
    assert radgraph_f1(*pair, "simple", case_sensitive=True) == 0
    # (small, True) agrees; effusion has a relation on one side only
    assert radgraph_f1(*pair, "partial") == pytest.approx(2 * 1 / 5)
    # (small, modify, effusion)
    assert radgraph_f1(*pair, "complete") == pytest.approx(2 * 1 / 5)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ([], "no mapping `entities`"),
        ({"entities": {"1": 3}}, "entity 0 is not a mapping"),
        ({"entities": {"1": {"tokens": "a"}}}, "`label` is a NoneType, want a text"),
        ({"entities": {"1": {"tokens": "a", "label": "b", "relations": [["x"]]}}}, "a relation is"),
        (
            {"entities": {"1": {"tokens": "a", "label": "b", "relations": [["modify", "7"]]}}},
            "a relation to what is no entity",
        ),
    ],
)
def test_malformed_annotation(annotation: Any, message: str) -> None:
    with pytest.raises(DiveError, match=f"here: .*{message}"):
        check_annotation(annotation, "here")


def test_unknown_level_and_model_type() -> None:
    with pytest.raises(DiveError, match="level is 'all', want one of simple, partial, complete"):
        radgraph_f1(ANNOTATIONS[0], ANNOTATIONS[0], "all")
    with pytest.raises(DiveError, match="'xl', want one of radgraph, radgraph-xl"):
        RadGraph("xl")


def test_spans_are_characters_of_the_report() -> None:
    text = "No  pleural\neffusion. Heart(large)"
    annotation = _annotation(
        "No pleural effusion . Heart ( large )", ("pleural effusion", _DA), ("large", _DP)
    )
    assert entity_spans(text, annotation) == [(4, 20, _DA), (28, 33, _DP)]
    assert text[4:20] == "pleural\neffusion"
    with pytest.raises(DiveError, match="annotation is of another text"):
        entity_spans("No effusion.", annotation)


@pytest.mark.parametrize("form", ["dict", "list", "list of dicts", "lines"])
def test_annotations_from_a_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "annotations.json"
    content = {
        "dict": json.dumps({str(i): a for i, a in enumerate(ANNOTATIONS)}),
        "list": json.dumps(ANNOTATIONS),
        "list of dicts": json.dumps([{"0": a} for a in ANNOTATIONS]),
        "lines": "\n".join(json.dumps(a) for a in ANNOTATIONS) + "\n",
    }[form]
    path.write_text(content)
    got = dive.evaluate(
        ["Small effusion.", "", "small right  effusion"],
        ["small right effusion", "clear.", "No pleural\neffusion."],
        ["radgraph"],
        radgraph=_lowered(path),
        per_report=True,
    )
    assert got["per_report"]["radgraph_simple"] == [pytest.approx(0.8), 0, 0]
    assert got["radgraph_simple"] == pytest.approx(0.8 / 3)
    assert got["radgraph_partial"] == pytest.approx(0.4 / 3)
    assert "lower-cased" in got["variants"]["radgraph_partial"]
    assert "annotations from annotations.json" in got["variants"]["radgraph_partial"]


def _lowered(path: Path) -> Path:
    """The file has "Small Effusion", the prediction "Small effusion"."""
    path.write_text(path.read_text().replace("Small Effusion", "Small effusion"))
    return path


def test_case_sensitive_switch_of_evaluate(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ANNOTATIONS))
    got = dive.evaluate(
        ["Small Effusion."],
        ["small right effusion"],
        ["radgraph"],
        radgraph=path,
        radgraph_case_sensitive=True,
    )
    assert got["radgraph_simple"] == 0
    assert "case-sensitive" in got["variants"]["radgraph_simple"]


def test_bad_annotation_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DiveError, match=r"a.json: cannot read"):
        RadGraphFile(path)
    path.write_text('{"text": "a", "entities": {}}\n{"text": "b", "entit')
    with pytest.raises(DiveError, match=r"a.json:2: not JSON"):
        RadGraphFile(path)
    path.write_text("[]")
    with pytest.raises(DiveError, match="holds no RadGraph annotation"):
        RadGraphFile(path)
    path.write_text(json.dumps([ANNOTATIONS[0], {"text": "x"}]))
    with pytest.raises(DiveError, match=r"a.json\[1\]\[0\]: not a RadGraph annotation"):
        RadGraphFile(path)


def test_text_that_is_not_in_the_file_or_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    other = dict(ANNOTATIONS[0], entities={})
    path.write_text(json.dumps([ANNOTATIONS[0], other, ANNOTATIONS[2], ANNOTATIONS[2]]))
    annotator = RadGraphFile(path)
    assert annotator.annotate(["small right effusion"]) == [ANNOTATIONS[2]]
    with pytest.raises(DiveError, match="no annotation for 1 of 2 texts, the first of them text 2"):
        annotator.annotate(["small right effusion", "unseen"])
    with pytest.raises(DiveError, match="differing annotations of one text, text 1 of "):
        annotator.annotate(["No pleural effusion."])


def test_the_files_of_chexpert_plus(tmp_path: Path) -> None:
    """A list of {"0": annotation}, of reports whose escapes RadGraph-XL took as white space."""
    path = tmp_path / "section_findings.json"
    rows = [
        {"text": "Small left pleural effusion . 5 % .", "entities": {}},
        {"text": "A `` mild `` edema .", "entities": {}},
    ]
    path.write_text(json.dumps([{"0": row} for row in rows]), encoding="utf-8-sig")
    found = RadGraphFile(path).annotate(
        ["Small left\\n pleural effusion.\n5%.", 'A \\"mild\\" edema.']
    )
    assert found == rows
    with pytest.raises(DiveError, match="json: no annotation for "):
        RadGraphFile(path).annotate(["Small right effusion."])


# ---- the model in its own process: a script in place of radgraph

_FAKE_WORKER = """
import json, sys
if sys.argv[1] == "version":
    print("9.9")
    sys.exit()
request = json.load(open(sys.argv[2]))
with open({calls!r}, "a") as file:
    file.write(json.dumps(request["texts"]) + "\\n")
for i, text in enumerate(request["texts"]):
    if text == "dies":
        print("out of memory", file=sys.stderr)
        sys.exit(3)
    if text == "fails":
        print(json.dumps({{"index": i, "error": "radgraph gave no annotation"}}), flush=True)
        continue
    entity = {{"tokens": text, "label": "x", "start_ix": 0, "end_ix": 0, "relations": []}}
    annotation = {{"text": text, "entities": {{"1": entity}}}}
    print(json.dumps({{"index": i, "annotation": annotation}}), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that lists the texts the fake model was run on; and a folder of fake weights."""
    calls = tmp_path / "calls"
    calls.touch()
    worker = tmp_path / "worker.py"
    worker.write_text(_FAKE_WORKER.format(calls=str(calls)))
    monkeypatch.setattr(radgraph_model, "_WORKER", worker)
    _fake_weights(tmp_path / "weights" / "radgraph-xl")
    return calls


def _fake_weights(folder: Path, content: bytes = b"weights") -> None:
    (folder / "vocabulary").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.th").write_bytes(content)


def _calls(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_annotations_are_kept_by_text(fake: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights": tmp_path / "weights", "cache": tmp_path / "cache"}
    model = RadGraph(**options)
    first = model.annotate(["a", "b", "a", " ", "c"])
    assert [len(a["entities"]) for a in first] == [1, 1, 1, 0, 1]
    assert first[0]["text"] == first[2]["text"] == "a"
    assert _calls(fake) == [["a", "b", "c"]]

    again = RadGraph(**options).annotate(["c", "d"])
    assert [a["text"] for a in again] == ["c", "d"]
    assert _calls(fake)[1:] == [["d"]]
    assert model.source == "annotated by radgraph-xl, radgraph 9.9"


def test_other_weights_or_type_are_annotated_anew(fake: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    RadGraph(weights=tmp_path / "weights", cache=cache).annotate(["a"])
    _fake_weights(tmp_path / "other" / "radgraph-xl", b"others")
    RadGraph(weights=tmp_path / "other", cache=cache).annotate(["a"])
    _fake_weights(tmp_path / "weights" / "radgraph")
    RadGraph("radgraph", weights=tmp_path / "weights", cache=cache).annotate(["a"])
    assert _calls(fake) == [["a"]] * 3


def test_what_was_annotated_before_a_failure_is_kept(fake: Path, tmp_path: Path) -> None:
    model = RadGraph(weights=tmp_path / "weights", cache=tmp_path / "cache")
    with pytest.raises(DiveError, match=r"exit code 3 after 1 of 3 texts[\s\S]*out of memory"):
        model.annotate(["a", "dies", "b"])
    model.annotate(["a", "b"])
    assert _calls(fake)[1:] == [["b"]]
    with pytest.raises(DiveError, match="radgraph gave no annotation for text "):
        model.annotate(["fails"])


def test_missing_weights_say_where_they_belong(fake: Path, tmp_path: Path) -> None:
    with pytest.raises(DiveError, match=r"no config.json[\s\S]*empty[\s\S]*radgraph-xl.tar.gz"):
        RadGraph(weights=tmp_path / "empty", cache=tmp_path / "cache").annotate(["a"])


def test_weights_from_an_archive(fake: Path, tmp_path: Path) -> None:
    archive = tmp_path / "radgraph-xl.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted((tmp_path / "weights" / "radgraph-xl").iterdir()):
            tar.add(path, path.name)
    model = RadGraph(weights=archive, cache=tmp_path / "cache")
    assert model.annotate(["a"])[0]["text"] == "a"
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(DiveError, match="cannot unpack the RadGraph model"):
        model.annotate(["b"])


def test_a_broken_cache_is_named(fake: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "annotations.sqlite").write_text("not a data base, but a long text " * 40)
    with pytest.raises(DiveError, match=r"annotations.sqlite: cannot keep .* delete the file"):
        RadGraph(weights=tmp_path / "weights", cache=cache).annotate(["a"])


def test_a_python_without_radgraph_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiveError, match="cannot run .*nowhere"):
        RadGraph(python=tmp_path / "nowhere").annotate(["a"])


# ---- the real package, on a model of random weights

_BUILD = """
import json, runpy, sys
from pathlib import Path
folder, encoder, worker = map(Path, sys.argv[1:])
runpy.run_path(str(worker))["_restore_tokenizer_methods"]()
import torch
from transformers import BertConfig, BertModel, BertTokenizer

torch.manual_seed(0)
marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
letters = [c for c in "abcdefghijklmnopqrstuvwxyz.,()"]
vocabulary = marks + letters + ["##" + c for c in letters] + ["effusion", "small", "right", "no"]
encoder.mkdir(parents=True)
(encoder / "vocab.txt").write_text("\\n".join(vocabulary))
BertTokenizer(str(encoder / "vocab.txt")).save_pretrained(encoder)
BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=16)).save_pretrained(encoder)

bert = {"type": "pretrained_transformer_mismatched", "model_name": "nowhere/bert",
        "max_length": 512}
pruned = {"spans_per_word": 0.5}
config = {
    "dataset_reader": {"type": "dygie", "max_span_width": 4, "token_indexers": {"bert": bert}},
    "model": {
        "type": "dygie", "initializer": {}, "module_initializer": {},
        "embedder": {"token_embedders": {"bert": bert}},
        "feature_size": 4, "max_span_width": 4, "target_task": "relation",
        "feedforward_params": {"num_layers": 1, "hidden_dims": 8, "dropout": 0.4},
        "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
        "modules": {
            "ner": {}, "relation": pruned, "coref": pruned | {"max_antecedents": 3},
            "events": {"trigger_spans_per_word": 0.5, "argument_spans_per_word": 0.5,
                       "loss_weights": {"trigger": 1.0, "arguments": 1.0}},
        },
    },
}
(folder / "vocabulary").mkdir(parents=True)
(folder / "config.json").write_text(json.dumps(config))
labels = ["", "Observation::definitely present", "Anatomy::definitely present"]
(folder / "vocabulary" / "non_padded_namespaces.txt").write_text("*labels\\n*tags\\n")
(folder / "vocabulary" / "radgraph-xl__ner_labels.txt").write_text("\\n".join(labels))
(folder / "vocabulary" / "radgraph-xl__relation_labels.txt").write_text("\\n".join(["", "modify"]))

from radgraph import radgraph as package
# the package builds the model and then reads its weights: catch it in between
made = {}
class Caught(Exception):
    pass
def catch(self, *a, **k):
    made["model"] = self
    raise Caught
package.dygie.DyGIE.load_state_dict = catch
torch.load = lambda *a, **k: {}
text = (folder / "config.json").read_text()
(folder / "config.json").write_text(text.replace("nowhere/bert", str(encoder)))
try:
    package.RadGraph(model_type="radgraph-xl", model_cache_dir=str(folder.parent), cuda=-1)
except Caught:
    pass
(folder / "config.json").write_text(text)
torch.save({k: v + 0.3 * torch.randn_like(v) if v.is_floating_point() else v
            for k, v in made["model"].state_dict().items()}, folder / "weights.th")
"""


@needs_radgraph
def test_the_real_package_on_random_weights(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(_BUILD)
    folder, encoder = tmp_path / "weights" / "radgraph-xl", tmp_path / "encoder"
    command = [sys.executable, str(script), str(folder), str(encoder), str(radgraph_model._WORKER)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    model = RadGraph(
        weights=tmp_path / "weights", encoder=encoder, cache=tmp_path / "cache", cuda=-1
    )
    texts = ["small right effusion.", "No effusion (right), no small effusion.", "lungs clear"]
    annotations = model.annotate(texts)
    for text, annotation in zip(texts, annotations, strict=True):
        check_annotation(annotation, text)
        assert "".join(annotation["text"].split()) == "".join(text.split())
        for start, end, _ in entity_spans(text, annotation):
            assert text[start:end].strip() == text[start:end] != ""
    assert all(a["entities"] for a in annotations)

    got = dive.evaluate(texts, texts[::-1], ["radgraph"], radgraph=model, per_report=True)
    assert got["per_report"]["radgraph_partial"][1] == 1  # the middle report against itself
    wanted = radgraph_f1(annotations[0], annotations[2], "complete")
    assert got["per_report"]["radgraph_complete"][0] == pytest.approx(wanted)
    assert "radgraph-xl, radgraph 0.1" in got["variants"]["radgraph_simple"]


def test_radgraph_is_never_imported_here() -> None:
    code = "import sys, dive.metrics, dive.radgraph; print('radgraph' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
