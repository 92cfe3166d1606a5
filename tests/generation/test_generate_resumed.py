"""An unfinished run of `dive generate` is continued only by the same command and records."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call, rows
from safetensors.numpy import load_file, save_file
from tiny import draw_film, save_studies

import dive
from dive.backbone.files import backbone_file_digests, dtype_in_use
from dive.data import Study, read_studies
from dive.errors import DiveError
from dive.files import digests
from dive.files.json_lines import JsonlWriter
from dive.generation import resume
from dive.generation.resume import adapter_digests, check_images, watched
from dive.prompting.prompter import DEFAULT_PROMPTS
from dive.training.feature_store import key_of


class Stop(Exception):
    """An exception that stands for a kill."""


def stop_after(count, monkeypatch, command):
    own = JsonlWriter.append

    def stops(self, row):
        if len(self.done) == count:
            raise Stop
        own(self, row)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(JsonlWriter, "append", stops)
        call(*command)


@pytest.fixture(scope="module")
def begun(tiny_llava, tmp_path_factory):
    """A folder with the inputs of a run, and the run after two of its six reports."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_llava, folder / "model")
    save_studies(folder / "studies")
    save_studies(folder / "shown", 1)
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    torch.manual_seed(0)
    dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone).save_pretrained(folder / "adapter")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch, command(folder))
    return folder


def command(folder, *more):
    return [
        "generate", "--backbone", folder / "model", "--adapter", folder / "adapter",
        "--studies", folder / "studies" / "studies.jsonl", "--out", folder / "out.jsonl",
        "--demonstrations", folder / "shown" / "studies.jsonl", "--device", "cpu",
        "--max-new-tokens", 3, "--batch-size", 1, *more,
    ]  # fmt: skip


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def flip(path, at=-1):
    """Flips one bit; size and time of change stay."""
    times = os.stat(path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {
    "adapter's form": (
        lambda f: edit_json(f / "adapter" / "adapter_config.json",
                            lambda v: v["steering"].update(norm_preserving=True)),
        r"another adapter \(form\)",
    ),
    "adapter's prompt": (
        lambda f: edit_json(f / "adapter" / "adapter_config.json",
                            lambda v: v["metadata"].update(prompt="Say it.")),
        r"another adapter \(prompt\)",
    ),
    "weights": (
        lambda f: flip(f / "model" / "model.safetensors"),
        r"other weights of the backbone \(model.safetensors\)",
    ),
    "tokenizer": (
        lambda f: edit_json(f / "model" / "tokenizer_config.json", lambda v: v.update(extra=1)),
        r"other files of the backbone \(tokenizer_config.json\)",
    ),
    "template": (
        lambda f: (f / "model" / "chat_template.jinja").write_text("{{ messages }}"),
        r"other files of the backbone \(chat_template.jinja\)",
    ),
    "film of a demonstration": (
        lambda f: flip(f / "shown" / "images" / "00_frontal.jpg"), "other demonstrations:",
    ),
    "report of a demonstration": (
        lambda f: edit_json(f / "shown" / "studies.jsonl", lambda v: v.update(findings="Well.")),
        "other demonstrations:",
    ),
    "film of a finished report": (
        lambda f: flip(f / "studies" / "images" / "01_frontal.png"),
        "wrote the report of study 'study-01' when its image was another",
    ),
    "notes of an earlier version": (
        lambda f: edit_run(f, lambda head: head.pop("run")), "begun by an earlier version of dive",
    ),
    "versions": (
        lambda f: edit_run(f, lambda head: head["run"]["versions"].update(torch="1.0")),
        r"other versions \(torch\)",
    ),
}  # fmt: skip


def edit_run(folder, change):
    path = folder / "out.jsonl.partial.run"
    head, *others = path.read_text().splitlines(keepends=True)
    head = json.loads(head)
    change(head)
    if "run" not in head:
        head = {"prompt": None}
    path.write_text(json.dumps(head) + "\n" + "".join(others))


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_meanwhile_is_named(what, begun, tmp_path, monkeypatch):
    change, said = CHANGES[what]
    folder = as_it_was(begun, tmp_path)
    change(folder)
    monkeypatch.setattr(dive, "load_backbone", None)  # refused before the backbone is loaded
    before = (folder / "out.jsonl.partial").read_bytes()
    with pytest.raises(DiveError, match=f"unfinished run that .*{said}"):
        call(*command(folder))
    assert (folder / "out.jsonl.partial").read_bytes() == before


def as_it_was(begun, tmp_path):
    """Copies it to another folder."""
    return shutil.copytree(begun, tmp_path / "copy")


def changed_options(words, **options):
    words = list(words)
    for name, value in options.items():
        words[words.index(f"--{name.replace('_', '-')}") + 1] = value
    return words


def finished(folder, kept):
    written = rows(folder / "out.jsonl")
    assert (folder / "out.jsonl").read_text().splitlines()[:2] == kept
    assert [row["id"] for row in written] == [f"study-{i:02d}" for i in range(6)]
    assert not list(folder.glob("*.partial*"))


def test_what_may_differ_goes_on(begun, tmp_path):
    folder = as_it_was(begun, tmp_path)
    # a film that is still to come, one of a copy, a model card, notes; another batch size
    draw_film(9).save(folder / "studies" / "images" / "05_frontal.png")
    for name in ("README.md", "README.json", "notes.txt", "results.jsonl", "training_args.bin"):
        (folder / "model" / name).write_text("# A model")
    kept = (folder / "out.jsonl.partial").read_text().splitlines()
    call(*changed_options(command(folder), batch_size=4))
    finished(folder, kept)


SPELLED = {
    "a slash": lambda f: changed_options(command(f), backbone=f"{f}/model/"),
    "relative": lambda f: [Path(os.path.relpath(w, f)) if isinstance(w, Path) else w
                           for w in command(f)],
    "a link": lambda f: ((f / "link").symlink_to("model"),
                         changed_options(command(f), backbone=f / "link"))[1],
    "studies elsewhere": lambda f: changed_options(
        command(f), studies=shutil.move(f / "studies", f / "s") / "studies.jsonl"
    ),
    "values in use": lambda f: command(
        f, "--target", "findings", "--dtype", "float32", "--max-image-tokens", "576",
        "--prompt", DEFAULT_PROMPTS["findings"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", SPELLED)
def test_the_same_run_in_other_words_goes_on(how, begun, tmp_path, monkeypatch):
    folder = as_it_was(begun, tmp_path)
    kept = (folder / "out.jsonl.partial").read_text().splitlines()
    monkeypatch.chdir(folder)
    call(*SPELLED[how](folder))
    finished(folder, kept)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--target", "impression", "--prompt", DEFAULT_PROMPTS["findings"]),
            "other demonstrations and another target:",
        ),
        (("--prompt", "Say it."), "another prompt:"),
        (("--dtype", "bfloat16"), "another dtype:"),
        (("--max-image-tokens", "none"), "another max_image_tokens:"),
        (("--target", "impression"), "other demonstrations, another prompt and another target:"),
        (("--template-date", "2020-02-02"), "another date in the chat template:"),
    ],
)
def test_other_values_are_named(more, said, begun, tmp_path):
    folder = as_it_was(begun, tmp_path)
    if "impression" in more:  # which the demonstrations need then
        edit_json(folder / "shown" / "studies.jsonl", lambda v: v.update(impression="Well."))
    with pytest.raises(DiveError, match=f"was made with {said}"):
        call(*command(folder, *more))


def test_dtype_in_use_is_the_one_that_is_loaded(tiny_llava, tmp_path):
    for name in ("float32", "bfloat16"):
        folder = tmp_path / name
        shutil.copytree(tiny_llava, folder)
        edit_json(folder / "config.json", lambda v, name=name: v.update(dtype=name))
        loaded = dive.load_backbone(folder, device="cpu").dtype
        assert dtype_in_use(str(folder), "auto") == str(loaded).removeprefix("torch.") == name
        assert dtype_in_use(str(folder), "half") == "float16"
    edit_json(folder / "config.json", lambda v: (v.pop("dtype"), v.pop("torch_dtype", None)))
    assert dtype_in_use(str(folder), "auto") == "auto"
    for config in ("[]", "{", '{"dtype": [7]}', '{"dtype": "nn"}', '{"dtype": {"": "x"}}'):
        (folder / "config.json").write_text(config)
        assert dtype_in_use(str(folder), "auto") == "auto"


NOTES = {
    "made of numbers": [[7]],
    "no list": [{"a": 1}],
    "nothing": [None],
    "a text": ["film"],
    "too few": [[]],
    "a digest of another kind": [[[7, None]]],
    "times of another kind": [[["d", 7]]],
    "times of texts": [[["d", ["x", 1, 2, 3]]]],
    "more": [[["d", None]], 1],
}


@pytest.mark.parametrize("how", NOTES)
def test_an_edited_note_is_named_by_its_line(how, begun, tmp_path):
    folder = as_it_was(begun, tmp_path)
    path = folder / "out.jsonl.partial.run"
    lines = path.read_text().splitlines()
    lines[2] = json.dumps([json.loads(lines[2])[0], *NOTES[how]])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DiveError, match=r"out.jsonl.partial.run:3: is not a note that the run wr"):
        call(*command(folder))


@pytest.mark.parametrize("note", ["7", "null", '"ab"', '{"a": 1, "b": 2}', "[7, 7]", "[[1], 2]",
                                  "[1]", '["a"]', "x", "[" * 100_000, "\xff"])  # fmt: skip
def test_a_line_that_is_no_note_is_named(note, tmp_path):
    with JsonlWriter(tmp_path / "r.jsonl") as writer:
        writer.append({"id": "a"})
    text = writer._notes_path.read_text().splitlines()
    writer._notes_path.write_text("\n".join([text[0], note, text[1]]) + "\n", encoding="latin-1")
    with pytest.raises(DiveError, match=r"r.jsonl.partial.run:2: is not a note that the run"):
        JsonlWriter(tmp_path / "r.jsonl")


@pytest.mark.parametrize("value", [None, 7, "x", [7], {"a": [1]}, {}, True, 1e400, "9" * 5000])
def test_a_heading_of_any_kind_is_another_run(value, begun, tmp_path):
    out = tmp_path / "out.jsonl"
    path = tmp_path / "out.jsonl.partial.run"
    shutil.copy(begun / "out.jsonl.partial", tmp_path)
    shutil.copy(begun / "out.jsonl.partial.run", tmp_path)
    kept = path.read_text()
    run = json.loads(kept.splitlines()[0])["run"]
    for name in [*run, "unknown", "x" * 5000]:
        if run.get(name) == value:
            continue
        edit_run(tmp_path, lambda v, name=name: v["run"].update({name: value}))
        with pytest.raises(DiveError, match="unfinished run that was made with") as error:
            call(*changed_options(command(begun), out=out))
        assert len(str(error.value)) < 900 and "\n" not in str(error.value)
        path.write_text(kept)
    for name in ("run", "format"):
        edit_json_line(path, name, value)
        with pytest.raises(DiveError, match="unfinished run that (was|does)"):
            call(*changed_options(command(begun), out=out))
        path.write_text(kept)


def edit_json_line(path, name, value):
    head, *others = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(head) | {name: value}) + "\n" + "".join(others))


HEAD = b'{"id": "a", "n": 1}\n{"id": "b", "n": 2}\n'
EDITED = {
    "foreign id": (HEAD + b'{"id": "x"}\n', ":3: id 'x' is not among the studies"),
    "twice": (HEAD + b'{"id": "a", "n": 1}\n', ":3: id 'a' comes twice"),
    "list": (b'{"id": ["a"]}\n', ":1: its id is a list, want a string"),
    "number": (b'{"id": 1}\n' + HEAD, ":1: its id is a int, want a string"),
    "null": (HEAD + b'{"id": null}\n', ":3: its id is a NoneType, want a string"),
    "no id": (HEAD + b'{"n": 1}\n', ":3: is not a record with an id;"),
    "no row": (HEAD + b"[1]\n", ":3: is not a record with an id;"),
    "no JSON": (HEAD + b"notes\n", r":3: is not a record with an id \(not JSON\)"),
    "deep": (b"[" * 100_000 + b"\n" + HEAD, r":1: is not a record with an id \(not JSON\)"),
    "blank": (b'{"id": "a", "n": 1}\n\n{"id": "b", "n": 2}\n', ":2: is blank"),
    "spaces": (b"  \r\n" + HEAD, ":1: is blank"),
    "no UTF-8": (HEAD + b'{"id": "\xff"}\n', r":3: is not a record with an id \(not UTF-8\)"),
    "NUL": (HEAD + b"\0\0\0\n", r":3: is not a record with an id \(not JSON\)"),
    "value": (HEAD.replace(b"2", b"3"), ":2: is not as the run wrote it"),
    "missing field": (b'{"id": "a"}\n', ":1: is not as the run wrote it"),
    "another field": (HEAD + b'{"id": "c", "n": 3}\n', ":3: is not as the run wrote it"),
    "order": (b'{"id": "b", "n": 2}\n{"id": "a", "n": 1}\n', ":2: is not as .* or not where"),
    "spacing": (HEAD.replace(b'": ', b'":'), ":1: is not as the run wrote it"),
}


@pytest.mark.parametrize("how", EDITED)
def test_an_edited_line_is_named(how, tmp_path):
    path = tmp_path / "r.jsonl"
    text, said = EDITED[how]
    with JsonlWriter(path, order="abcd") as writer:
        writer.append({"id": "a", "n": 1})
        writer.append({"id": "b", "n": 2})
    assert writer.partial.read_bytes() == HEAD
    writer.partial.write_bytes(text)
    with pytest.raises(DiveError, match=f"r.jsonl.partial{said}"):
        JsonlWriter(path, order="abcd")
    assert writer.partial.read_bytes() == text
    # as the message says: without this line and those after it the run continues
    number = int(said.split(":")[1])
    good = text.split(b"\n")[: number - 1]
    writer.partial.write_bytes(b"".join(line + b"\n" for line in good))
    with JsonlWriter(path, order="abcd") as again:
        assert list(again.done) == [json.loads(line)["id"] for line in good]
        for name in [name for name in "abcd" if name not in again.done]:
            again.append({"id": name})
        again.finish()
    assert [row["id"] for row in rows(path)] == list("abcd")


def test_rows_come_in_order_whatever_was_left_out_at_first(tmp_path):
    path = tmp_path / "r.jsonl"
    with JsonlWriter(path, order="abcd") as writer:
        for name in "ac":  # b could not be read
            writer.append({"id": name, "text": "\r\u2028\x85"})
    with JsonlWriter(path, order="abcd") as writer:
        writer.append({"id": "b"})
    with JsonlWriter(path, order="abcd") as writer:
        assert list(writer.done) == list("acb")
        writer.append({"id": "d"})
        writer.finish()
    assert [json.loads(line)["id"] for line in path.read_bytes().split(b"\n")[:-1]] == list("abcd")
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_ids_that_are_none_are_refused(tmp_path):
    with JsonlWriter(tmp_path / "r.jsonl", order=["a"]) as writer:
        with pytest.raises(DiveError, match=r"an id is 1, want a string"):
            writer.append({"id": 1})
        with pytest.raises(DiveError, match="id 'x' is not among the expected"):
            writer.append({"id": "x"})


@pytest.mark.parametrize("torn", ["rows", "notes", "both"])
def test_torn_at_any_byte(torn, tmp_path):
    path = tmp_path / "r.jsonl"
    with JsonlWriter(path, fingerprint={"a": 1}, made_of=lambda name: [name]) as writer:
        writer.append({"id": "a"})
        sizes = [writer.partial.stat().st_size, writer._notes_path.stat().st_size]
        writer.append({"id": "b"})
    data, noted = writer.partial.read_bytes(), writer._notes_path.read_bytes()
    for cut in range(1, 12):
        writer.partial.write_bytes(data[: len(data) - cut] if torn != "notes" else data)
        writer._notes_path.write_bytes(noted[: len(noted) - cut] if torn != "rows" else noted)
        if torn == "notes":  # a record is written after its note, so no kill causes this
            with pytest.raises(DiveError, match=r"partial:2: is not as the run wrote it"):
                JsonlWriter(path, fingerprint={"a": 1})
            continue
        with JsonlWriter(path, fingerprint={"a": 1}, made_of=lambda name: [name, 2]) as again:
            assert again.done == {"a": ["a"]}
            assert again.partial.stat().st_size == sizes[0]
            assert again._notes_path.stat().st_size == sizes[1]
            again.append({"id": "b"})
        with JsonlWriter(path, fingerprint={"a": 1}) as last:
            assert last.done == {"a": ["a"], "b": ["b", 2]}


def test_every_tensor_of_a_large_file_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_WHOLE", 100)
    path = tmp_path / "m.safetensors"
    tensors = {f"layer.{i}": np.full((40, 50), i, np.float32) for i in range(30)}
    save_file(tensors, path)
    found = {digests.sampled(path)}
    for name in tensors:
        save_file({**tensors, name: tensors[name] + 1}, path)
        found.add(digests.sampled(path))
    save_file({**tensors, "layer.0": tensors["layer.0"].reshape(50, 40)}, path)
    found.add(digests.sampled(path))  # the header
    assert len(found) == 32
    assert load_file(path)["layer.0"].shape == (50, 40)
    # one value in between is for --verify
    tensors["layer.3"][0, 0] = 7
    save_file(tensors, path)
    other = tmp_path / "m.bin"
    shutil.copy(path, other)
    known, whole = digests.sampled(other), digests.whole(other)
    flip(other, 60_000)
    assert digests.sampled(other) != known and digests.whole(other) != whole
    path.write_bytes(b"\xff" * 500)  # no header: sampled as any file
    assert digests.sampled(path) != known


def test_verify_reads_all(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_WHOLE", 100)
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(100_000, np.float32)}, path)
    one = backbone_file_digests(str(tmp_path)), backbone_file_digests(str(tmp_path), verify=True)
    flip(path, 10_000)
    two = backbone_file_digests(str(tmp_path)), backbone_file_digests(str(tmp_path), verify=True)
    assert one[0] == two[0] and one[1]["backbone_weights"] != two[1]["backbone_weights"]
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "a.jinja").write_text("x")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "reports.jsonl").write_text("")  # not a model's file
    found = backbone_file_digests(str(tmp_path))["backbone_files"]
    assert {*found} == {
        "config.json", "model.safetensors.index.json", "additional_chat_templates/a.jinja"
    }  # fmt: skip


def test_a_hub_id_is_its_commit(tmp_path, monkeypatch):
    folder = tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    monkeypatch.setattr("transformers.utils.cached_file", lambda *_: str(folder / "config.json"))
    assert backbone_file_digests("a/b") == {"backbone": "a/b", "backbone_commit": "0123abcd"}
    (folder / "config.json").write_text('{"torch_dtype": "float16"}')
    assert dtype_in_use("a/b", "auto") == dtype_in_use("a/b", "half") == "float16"


def test_an_adapter_is_its_weights_and_all_that_is_said_of_its_use(tiny_llava):
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=1), dive.load_backbone(tiny_llava))
    known = adapter_digests(adapter)
    adapter.metadata["distillation"] = {"seconds": 3}
    assert adapter_digests(adapter) == known
    with torch.no_grad():
        adapter.layers["1"].scale += 1e-7
    assert {k for k, v in adapter_digests(adapter).items() if v != known[k]} == {"parameters"}
    assert adapter_digests(None) is None


def test_films_that_lie_unchanged_are_not_read_again(tmp_path, monkeypatch):
    study = read_studies(save_studies(tmp_path, 1) / "studies.jsonl")[0]
    film = study.images[0]
    made = watched(study)
    monkeypatch.setattr(resume, "_SETTLED", -1)
    made.load_images()
    (content, stat), = made.seen  # fmt: skip
    assert content == digests.whole(film) and stat[0] == film.stat().st_size
    with JsonlWriter(tmp_path / "r.jsonl", made_of=lambda name: made.seen) as writer:
        writer.append({"id": study.id})
    with JsonlWriter(tmp_path / "r.jsonl") as writer:
        read = []
        own = resume._content
        monkeypatch.setattr(resume, "_content", lambda *a: (read.append(a), own(*a))[1])
        check_images(writer, [study])
        assert not read
        check_images(writer, [study], verify=True)
        assert len(read) == 1
        os.utime(film)  # a copy, say
        check_images(writer, [study])
        assert len(read) == 2
        flip(film)
        with pytest.raises(DiveError, match="when its image was another"):
            check_images(writer, [study])
        film.unlink()
        with pytest.raises(DiveError, match="study 'study-00'.*cannot read"):
            check_images(writer, [study])


def test_a_film_that_changes_while_it_is_read(tmp_path, monkeypatch):
    study = watched(read_studies(save_studies(tmp_path, 1) / "studies.jsonl")[0])
    film = Path(study.images[0])
    own = dive.Study.load_images
    monkeypatch.setattr(
        dive.Study, "load_images", lambda self: (own(self), film.write_bytes(b"other"))[0]
    )
    with pytest.raises(DiveError, match="was changed while it was read"):
        study.load_images()


def test_a_terabyte_of_nothing_is_not_read(tmp_path):
    film = tmp_path / "film.dcm"
    with film.open("wb") as file:
        file.truncate(1 << 40)
    study = watched(Study(id="big", images=(film,)))
    began = time.process_time()
    with pytest.raises(DiveError, match="study 'big': cannot read the image .1 of 1."):
        study.load_images()
    with pytest.raises(DiveError, match="study 'big': the image .1 of 1. holds 1,099,511,627,776"):
        key_of(study)
    assert time.process_time() - began < 5
