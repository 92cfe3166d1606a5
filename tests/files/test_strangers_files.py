"""Untrusted files: sizes and kinds are checked before anything is read, rendered or allocated."""

import json
import os
import struct
import zlib

import pytest
import torch
from tiny_templates import GEMMA, LLAMA3, LLAVA, QWEN
from transformers.utils.chat_template_utils import render_jinja_template

import dive
from dive.data.images.dicom.bounds import Bounded
from dive.data.images.load import image_size, load_rgb
from dive.errors import DiveError
from dive.files.input import lines_of, open_file, read_file
from dive.files.pickles import refusal
from dive.files.strict_json import parse
from dive.generation.generate_reports import prompter_for
from dive.prompting import template_renderer
from dive.prompting.template_renderer import TemplateFault, TemplateLimit, render
from dive.prompting.templates import ChatTemplate, StoredTemplate

TALK = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it? é 𝄞"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A film."}]},
    {"role": "user", "content": [{"type": "text", "text": "And?"}]},
]
WORDS = {"bos_token": "<s>", "eos_token": "</s>", "more": ["a", "b"]}
OWN = (
    "{%- for m in messages %}{% generation %}{{ m | tojson(indent=2) }}{% endgeneration %}"
    "{% if loop.index0 == 1 %}{% break %}{% endif %}{% endfor %}{{ dict(a=1) }}\n"
    "  {% set n = namespace(x=more[1]) %}\n{% set n.x = n.x ~ 1 %}{{ n.x }}{{ tools is none }}"
)


@pytest.mark.parametrize("source", [LLAVA, GEMMA, QWEN, LLAMA3, OWN])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_process_renders_as_transformers_does(source, prompt):
    wanted = render_jinja_template(
        conversations=[TALK], chat_template=source, add_generation_prompt=prompt, **WORDS
    )[0][0]
    assert render(source, TALK, prompt, WORDS) == wanted


def test_transformers_gives_templates_nothing_that_is_unknown_here():
    assert template_renderer._arguments() == []


@pytest.mark.parametrize(
    ("bomb", "kind", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         TemplateLimit, "does not end"),
        ("{{ 10**(10**9) }}", TemplateLimit, "does not end|fills the memory"),
        ("{{ 'a' * 10**11 }}", TemplateLimit, "fills the memory"),
        ("{{ 'a' * 5000000 }}", TemplateLimit, "5,000,000 letters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", TemplateFault, "recursion"),
        ("{{ ''.__class__.__mro__ }}", TemplateFault, "unsafe"),
        ("{% include '/etc/hostname' %}", TemplateFault, "no loader"),
    ],
)  # fmt: skip
def test_a_template_has_an_end(bomb, kind, message):
    with pytest.raises(kind, match=message):
        render(bomb, TALK, True, WORDS)
    assert render("{{ bos_token }}", TALK, True, WORDS) == "<s>"  # and the next one is rendered


def test_a_process_that_was_ended_by_others_is_begun_again():
    assert render("{{ 1 }}", TALK, True, {}) == "1"
    process = template_renderer._process
    process._process.kill()
    process._process.wait()
    assert render("{{ 2 }}", TALK, True, {}) == "2"


def test_a_bomb_in_the_models_own_template_is_one_error(tiny_llava):
    backbone = dive.load_backbone(tiny_llava)
    late = "{% if messages | length > 2 %}{{ 'a' * 10**11 }}{% endif %}" + LLAVA
    with pytest.raises(DiveError, match="the chat template fills the memory"):
        ChatTemplate(backbone.processor, backbone.tokenizer, late)


def test_an_adapters_template_names_no_file(tiny_llava, tmp_path):
    backbone = dive.load_backbone(tiny_llava)
    (tmp_path / "mine.jinja").write_text(LLAVA)
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone)
    adapter.metadata["template"] = str(tmp_path / "mine.jinja")
    with pytest.raises(DiveError, match="stored chat template is .*mine.jinja', want the text"):
        prompter_for(backbone, adapter)
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        DiveError,
        match=r"adapter_config.json: metadata.template is .*want the text of a Jinja template",
    ):
        dive.SteeringAdapter.from_pretrained(tmp_path / "adapter")
    assert ChatTemplate(backbone.processor, backbone.tokenizer, StoredTemplate(LLAVA)).is_custom


@pytest.fixture(scope="module")
def saved(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), dive.load_backbone(tiny_llama))
    adapter.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return dive.SteeringAdapter.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone.hidden_size", 10**9),
        ("backbone.hidden_size", True),
        ("backbone.num_layers", 10**12),
        ("backbone.num_layers", 3.0),
        ("backbone.name", ["x"]),
        ("weights.each", 0),
        ("weights.tuners", "lora"),
        ("prompt", ["Describe."]),
        ("target", "everything"),
        ("max_image_tokens", -1),
        ("template", 7),
        ("template_date", "soon"),
        ("distillation", []),
        ("distillation.sources", "mimic-cxr"),
    ],
)
def test_a_wrong_kind_in_the_settings_names_file_and_field(saved, tmp_path, field, value):
    settings = json.loads(saved["adapter_config.json"])
    table = settings["metadata"]
    *outer, last = field.split(".")
    for part in outer:
        table = table.setdefault(part, {})
    table[last] = value
    changed = saved | {"adapter_config.json": json.dumps(settings).encode()}
    with pytest.raises(DiveError, match=rf"adapter_config.json: metadata.{field} is .*, want"):
        load(tmp_path, changed)


def header(size, text=b""):
    return {"adapter.safetensors": struct.pack("<Q", size) + text}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (header(2**62), "a header of 4,611,686"),
        (header(8, b"[[[[[[[["), "header: not readable as JSON"),
        (header(2, b"[]"), "its header is not an object"),
        (header(2, b"{}"), "tensor layers.0.down is missing"),
        ({"adapter.safetensors": b""}, "0 bytes, and a header"),
    ],
)
def test_a_header_of_weights_that_lies(saved, tmp_path, weights, message):
    with pytest.raises(DiveError, match=message):
        load(tmp_path, saved | weights)


def test_terabytes_and_pipes_are_not_read(saved, tmp_path):
    load(tmp_path, saved)
    os.truncate(tmp_path / "adapter.safetensors", 1 << 40)
    with pytest.raises(DiveError, match=r"holds 1,099,511,627,776 bytes; the limit is"):
        dive.SteeringAdapter.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(DiveError, match="adapter_config.json is a pipe, want a regular file"):
        dive.SteeringAdapter.from_pretrained(tmp_path)
    os.mkfifo(tmp_path / "film")
    for read in (load_rgb, image_size, open_file):
        with pytest.raises(DiveError, match="film.* is a pipe, want a regular file"):
            read(tmp_path / "film")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ('{"a": NaN}', "has NaN"),
        ('{"a": 1e999}', "too large for float64"),
        ('{"a": ' + "9" * 5000 + "}", "does not fit 64 bits with a sign"),
        ('{"a": 9223372036854775808}', "9223372036854775808, which does not fit 64 bits"),
        ("[" * 70 + "]" * 70, "nested more than 64 levels"),
        ("[" * 10**5, "nested more than 64 levels"),
        ("{", "not readable as JSON"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(DiveError, match=message):
        parse(text, "it")


def test_json_that_is_read():
    text = json.dumps({"a": [1, -2.5, None, "é"], "b": {"c": 2**62}})
    assert parse(text, "it") == json.loads(text)


def test_lines_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dive.files.input.MAX_LINE", 10)
    path = tmp_path / "rows"
    path.write_bytes(b"\xef\xbb\xbfone\n\nthree\n")
    assert list(lines_of(path)) == [(1, b"one"), (2, b""), (3, b"three")]
    path.write_bytes(b"one\n" + b"a" * 11)
    with pytest.raises(DiveError, match="rows:2: is longer than 10 bytes"):
        list(lines_of(path))
    with pytest.raises(DiveError, match="holds 15 bytes; the limit is 14"):
        read_file(path, 14)
    assert read_file(path, 15) == b"one\n" + b"a" * 11


def test_what_images_unpack_to_is_looked_at_before(tmp_path):
    path = tmp_path / "film.webp"
    path.write_bytes(b"RIFF\x24\0\0\0WEBPVP8L\x18\0\0\0\x2f" + b"\xff\xff\xff\x0f" + bytes(20))
    with pytest.raises(DiveError, match="has 16384 x 16384 pixels, the limit is 100,000,000"):
        load_rgb(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(DiveError, match="is PostScript, a program"):
        load_rgb(path)


def test_a_deflated_dicom_is_bounded_and_read(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    made = pydicom.Dataset()
    made.file_meta = pydicom.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = "1.2", "1.3"
    made.Rows, made.Columns, made.SamplesPerPixel, made.PixelRepresentation = 4, 6, 1, 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.PhotometricInterpretation, made.PixelData = "MONOCHROME2", bytes(range(0, 240, 10))
    made["PixelData"].VR = "OB"
    made.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    assert image_size(tmp_path / "film.dcm") == (6, 4)
    assert load_rgb(tmp_path / "film.dcm").getextrema()[0] == (0, 255)
    packed = (tmp_path / "film.dcm").read_bytes()
    start = 144 + int.from_bytes(packed[140:144], "little")
    inner = zlib.decompress(packed[start:], -15) + bytes(3 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed[:start] + packer.compress(inner) + packer.flush()
    (tmp_path / "bomb.dcm").write_bytes(data)
    monkeypatch.setattr("dive.data.images.dicom.bounds.MAX_FILE_BYTES", 2 << 20)
    for read in (load_rgb, image_size):
        with pytest.raises(DiveError, match="bomb.dcm: unpacks to more than 2,097,152 bytes"):
            read(tmp_path / "bomb.dcm")
    (tmp_path / "zeros.dcm").write_bytes(packed[:start].replace(b"1.99", b"1\0\0\0"))
    os.truncate(tmp_path / "zeros.dcm", 1 << 40)
    with pytest.raises(DiveError, match=r"zeros.dcm: has (more elements|elements of more) than"):
        load_rgb(tmp_path / "zeros.dcm")


def test_a_pickle_is_refused_without_advice_to_run_it(tiny_llama, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"w": Runs()}, tmp_path / "weights.bin")
    with pytest.raises(Exception, match="weights_only") as caught:
        torch.load(tmp_path / "weights.bin", weights_only=True)
    said = refusal(caught.value, tmp_path)
    assert said.startswith("weights.bin is a pickle") and "weights_only" not in said
    assert "\n" not in said and not (tmp_path / "ran").exists()
    assert refusal(ValueError("other"), tmp_path) is None


def test_a_bounded_file_gives_what_the_file_has(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with open(tmp_path / "file", "rb") as file:
        bounded = Bounded(file)
        assert bounded.read(4) == b"0123" and bounded.tell() == 4
        assert bounded.seek(1) == 1 and bounded.read() == b"123456789"
