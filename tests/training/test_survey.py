"""The survey before the first step: sizes from headers, tokens from sizes."""

import gzip
import logging
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_trees import write_dicom
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from tiny import draw_film
from tiny_features import needs
from tiny_more import FAMILIES

import dive
from dive.data import Skipped, Study, read_studies
from dive.data.images.load import LazyImage, image_size, load_rgb
from dive.decisive.tokens import DecisiveTokens
from dive.errors import DiveError
from dive.prompting import image_tokens
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.image_tokens import ImageTokens, rendered_length
from dive.prompting.prompter import Prompter
from dive.training import workers
from dive.training.survey import survey
from dive.training.teacher import Teacher

ORIENTATION = 0x0112


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
def test_a_size_is_that_of_the_image_as_it_is_shown(ending, orientation, tmp_path):
    path = tmp_path / f"film.{ending}"
    draw_film(1, (40, 30)).save(path, exif=turned(orientation))
    wanted = (30, 40) if orientation >= 5 else (40, 30)
    assert image_size(path) == wanted == load_rgb(path).size
    shown = np.asarray(ImageOps.exif_transpose(_lossless(path, orientation)).convert("RGB"))
    if ending in ("png", "tiff"):
        assert (np.asarray(load_rgb(path)) == shown).all()
    data = path.read_bytes()
    assert image_size(LazyImage("row", lambda: data)) == wanted
    with Image.open(path) as opened:
        assert image_size(opened) == load_rgb(opened).size


def _lossless(path, orientation):
    """The same film, written to a PNG file and read."""
    other = path.with_name("lossless.png")
    draw_film(1, (40, 30)).save(other, exif=turned(orientation))
    return Image.open(other)


def test_a_png_whose_orientation_stands_behind_its_pixels(tmp_path):
    path = tmp_path / "film.png"
    draw_film(1, (40, 30)).save(path)
    whole = path.read_bytes()
    exif = turned(6).tobytes().removeprefix(b"Exif\0\0")
    other = tmp_path / "other.png"
    with other.open("wb") as file:
        file.write(whole[:-12])
        PngImagePlugin.putchunk(file, b"eXIf", exif)
        file.write(whole[-12:])
    assert image_size(path) == (40, 30)
    assert image_size(other) == load_rgb(other).size == (30, 40)


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "RGBA", "CMYK"])
def test_whatever_the_mode_and_the_format(mode, tmp_path):
    image = Image.new(mode, (24, 17))
    endings = {"CMYK": ("jpg", "tiff"), "I;16": ("png", "tiff"), "RGBA": ("png", "webp", "tiff")}
    for ending in endings.get(mode, ("png", "gif", "bmp", "tiff")):
        image.save(tmp_path / f"film.{ending}")
        assert image_size(tmp_path / f"film.{ending}") == (24, 17)


def test_no_pixel_is_read(tmp_path):
    """A film of 30 million pixels, cut off behind its header."""
    path = tmp_path / "film.jpg"
    draw_film(1, (6000, 5000)).save(path)
    path.write_bytes(path.read_bytes()[:700])
    assert image_size(path) == (6000, 5000)
    with pytest.raises(DiveError, match="cannot read the image"):
        load_rgb(path)


def test_the_size_of_a_dicom_file(tmp_path):
    pytest.importorskip("pydicom")
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 6), np.uint16))
    assert image_size(path) == load_rgb(path).size == (6, 4)
    packed = tmp_path / "a.dcm.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert image_size(packed) == (6, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert image_size(path) == (6, 4)
    with pytest.raises(DiveError, match="cannot read the image"):
        load_rgb(path)
    for bad in (whole[:100], b""):
        path.write_bytes(bad)
        with pytest.raises(DiveError, match=r"line 3: cannot read the image .*a\.dcm"):
            image_size(path, "line 3")
    packed.write_bytes(b"no gzip")
    with pytest.raises(DiveError, match="damaged gzip"):
        image_size(packed)
    twice = write_dicom(tmp_path / "b.dcm", np.zeros((4, 6), np.uint16), NumberOfFrames=2)
    with pytest.raises(DiveError, match="holds 2 frames"):
        image_size(twice)


def test_bad_headers_are_refused_as_bad_images_are(tmp_path):
    path = tmp_path / "film.png"
    for content, message in ((b"", "cannot read"), (b"hello", "cannot read"), (None, "no image")):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        for read in (image_size, load_rgb):
            with pytest.raises(DiveError, match=f"f.jsonl:7: .*{message}"):
                read(path, "f.jsonl:7")
    draw_film(1, (40, 30)).save(path)
    with pytest.raises(DiveError, match="has 40 x 30 pixels, the limit is 1,000"):
        image_size(path, max_pixels=1000)
    frames = [Image.new("L", (8, 8), value) for value in (0, 90)]
    for ending in ("gif", "tiff", "png"):
        frames[0].save(tmp_path / f"two.{ending}", save_all=True, append_images=frames[1:])
        with pytest.raises(DiveError, match="holds 2 frames"):
            image_size(tmp_path / f"two.{ending}")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, tmp_path_factory):
    needs(request.param)
    folder = FAMILIES[request.param](tmp_path_factory.mktemp("family"))
    return dive.load_backbone(folder, device="cpu")


def many_sizes(count=40):
    draw = random.Random(3)
    drawn = [(draw.randint(20, 260), draw.randint(20, 260)) for _ in range(count)]
    return [(56, 56), (112, 56), (900, 60), (60, 900), (57, 55), *drawn]


def real(prompter, size, count):
    study = Study(id="x", images=(draw_film(2, size),) * count)
    encoded = prompter.encode_any_length(study)
    added = encoded["input_ids"].shape[1] - rendered_length(prompter, study)
    return added, prompter.count_image_tokens(encoded)


@pytest.mark.parametrize("budget", [6, None])
def test_tokens_by_sizes_are_those_of_the_real_processor(backbone, budget, monkeypatch):
    prompter, sizes = Prompter(backbone, max_image_tokens=budget), many_sizes()
    asked = []
    own = ImageTokens._ask
    monkeypatch.setattr(ImageTokens, "_ask", lambda *a: (asked.append(a[1:]), own(*a)))
    tokens = ImageTokens(prompter)
    tokens.learn((size, alone) for size in sizes for alone in (True, False))
    each = 2 if tokens.alone_differs else 1
    if type(prompter.processor).__name__ == "SmolVLMProcessor" and budget is None:
        assert len(asked) == len(sizes)  # it has no rule: once per size
    else:
        assert len(asked) <= each * image_tokens.ASKED
    for size in sizes:
        for count in (1, 2, 3):
            alone = count == 1
            got = (
                tokens.prompt_overhead + count * tokens.taken(size, alone),
                count * tokens.shown(size, alone),
            )
            assert got == real(prompter, size, count), (size, count)


def test_a_rule_of_sizes_leaves_the_processors_defaults_alone(backbone):
    """transformers' rules write into the defaults of the class, which later prompts share."""
    study = Study("a", (draw_film(1, (300, 120)),))
    wanted = Prompter(backbone, max_image_tokens=None).encode(study)
    small = ImageTokens(Prompter(backbone, max_image_tokens=6))
    small.learn((size, True) for size in many_sizes())
    got = Prompter(backbone, max_image_tokens=None).encode(study)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_images_of_several_sizes_in_one_prompt(backbone):
    prompter = Prompter(backbone)
    studies = [
        Study("a", (draw_film(1, (80, 60)), draw_film(2, (60, 200))), findings="No effusion."),
        Study("b", (draw_film(1, (300, 120)),), findings="Clear.", indication="Cough."),
        Study("c", tuple(draw_film(n, (40 + 30 * n, 90)) for n in range(3)), findings="Edema."),
    ]
    weigher = DecisiveTokens(backbone.tokenizer)
    examples, found = survey(studies, prompter, weigher, skipped=Skipped())
    real = [prompter.encode(study) for study in studies]
    assert found.prompt_lengths == [one["input_ids"].shape[1] for one in real]
    assert found.image_tokens == [prompter.count_image_tokens(one) for one in real]
    assert found.response_lengths == [len(examples[n].response.ids) for n in range(3)]
    for count in (1, 2):
        shown = Demonstrations(studies, count)
        assert Teacher(prompter, examples, shown).prompt_lengths(found) == [
            prompter.encode(s, shown.of(s))["input_ids"].shape[1] for s in studies
        ]


def test_a_rule_that_is_wrong_is_not_used(tiny_qwen, monkeypatch, caplog):
    prompter = Prompter(dive.load_backbone(tiny_qwen, device="cpu"))
    monkeypatch.setattr(image_tokens, "rule_of", lambda _: lambda size: (size[0], size[1]))
    tokens, sizes = ImageTokens(prompter), many_sizes(20)
    with caplog.at_level(logging.INFO, "dive"):
        tokens.learn((size, True) for size in sizes)
    assert "each of 25 sizes is measured" in caplog.text
    assert [tokens.taken(size, True) for size in sizes] == [real(prompter, s, 1)[0] for s in sizes]


def test_a_shape_that_the_processor_refuses_is_that_studys_error(tiny_qwen, studies):
    backbone = dive.load_backbone(tiny_qwen, device="cpu")
    odd = Study("odd", (Image.new("L", (3000, 9)),), findings="Clear.", source="f.jsonl:4")
    skipped = Skipped()
    weigher = DecisiveTokens(backbone.tokenizer)
    options = {"skipped": skipped, "on_error": "skip"}
    _, found = survey([odd, *studies], Prompter(backbone), weigher, **options)
    assert len(found.studies) == len(studies)
    assert [one["id"] for one in skipped] == ["odd"]
    assert "f.jsonl:4" in skipped.entries[0]["reason"]
    assert "the processor refuses the prompt" in skipped.entries[0]["reason"]
    with pytest.raises(DiveError, match="f.jsonl:4: study 'odd': the processor refuses"):
        survey([odd, *studies], Prompter(backbone), weigher, skipped=Skipped())


def test_no_image_is_decoded(tiny_qwen, studies, monkeypatch):
    backbone = dive.load_backbone(tiny_qwen, device="cpu")
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1]
    )
    weigher = DecisiveTokens(backbone.tokenizer)
    examples, _ = survey(studies, Prompter(backbone), weigher, skipped=Skipped())
    assert decoded == []
    assert examples[0] and decoded


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_processes_see_what_one_process_sees(family, request, tmp_path, monkeypatch):
    backbone = dive.load_backbone(request.getfixturevalue(f"tiny_{family}"), device="cpu")
    draw_film(1, (90, 40)).save(tmp_path / "a.png")
    draw_film(2, (40, 70)).save(tmp_path / "b.png", exif=turned(8))
    studies = [
        Study(
            f"s{n}", (tmp_path / ("a.png" if n % 3 else "b.png"),), patient=f"p{n // 2}",
            findings=f"Nodule of {n} mm. No effusion." if n % 50 else None, source=f"f.jsonl:{n}",
        )
        for n in range(200)
    ]  # fmt: skip
    monkeypatch.setattr(workers, "CHUNK", 16)
    found = []
    for count in (0, 3):
        skipped, prompter = Skipped(), Prompter(backbone)
        options = {"skipped": skipped, "on_error": "skip", "workers": count}
        weigher = DecisiveTokens(backbone.tokenizer)
        steps = []
        _, seen = survey(studies, prompter, weigher, step=lambda: steps.append(1), **options)  # noqa: B023
        assert len(steps) == len(studies)
        found.append((seen.looks, seen.prompt_lengths, seen.class_counts, skipped.entries))
    assert found[0] == found[1]
    assert [one["source"] for one in found[0][3]] == [f"f.jsonl:{n}" for n in (0, 50, 100, 150)]
    with pytest.raises(DiveError, match="f.jsonl:0"):
        survey(studies, prompter, weigher, skipped=Skipped(), workers=3)


def test_work_is_spread_over_processes_in_order():
    items = list(range(300))
    assert list(workers.spread(lambda n: n * n, items, 2)) == [n * n for n in items]
    found = set(workers.spread(lambda _: os.getpid(), items, 2))
    assert os.getpid() not in found
    assert set(workers.spread(lambda _: os.getpid(), items, 0)) == {os.getpid()}
    with pytest.raises(DiveError, match="one of 2 processes .* died"):
        list(workers.spread(lambda n: os._exit(9) if n == 150 else n, items, 2))
    with pytest.raises(KeyError):
        list(workers.spread(lambda n: {}[n], items, 2))


def test_no_more_processes_than_there_is_work_for(monkeypatch):
    asked = []

    class Here:
        """Runs the work in this process, and records the number of processes."""

        def __init__(self, count, *_, **__):
            asked.append(count)

        def map(self, function, chunks):
            return map(function, chunks)

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Here)
    for items, wish in ((128, 500), (129, 500), (64 * 200, 500), (64 * 200, 5), (127, 500)):
        assert list(workers.spread(lambda n: -n, range(items), wish)) == [-n for n in range(items)]
    assert asked == [2, 3, 32, 5]  # for fewer than two chunks none is made


def test_a_death_is_told_and_another_error_is_not():
    for text in (
        "DataLoader worker (pid 12) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
    ):
        message = r"images died \(DataLoader .*12.*; give it more memory"
        with pytest.raises(DiveError, match=message), workers.worker_deaths():
            raise RuntimeError(text)
    for error in (
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal: bad shapes"),
        RuntimeError("CUDA error: out of luck"),
        KeyError("DataLoader worker (pid 12)"),
    ):
        with pytest.raises(type(error)) as caught, workers.worker_deaths():
            raise error
        assert caught.value is error


def test_where_nothing_can_be_forked_workers_are_refused_at_once(tiny_llava, studies, monkeypatch):
    config = dive.DistillConfig(preset="dive-ce", workers=2, steps=1)
    monkeypatch.setattr(workers, "START_METHOD", None)
    message = "workers is 2, and this system cannot fork .* want workers=0"
    for make in (
        lambda: dive.DistillConfig(workers=2),
        lambda: dive.distill("nowhere", "nowhere.jsonl", config={"workers": 2}),
        lambda: dive.distill("nowhere", "nowhere.jsonl", config=config),  # made elsewhere
        lambda: workers.loaders(2, 10_000),
    ):
        with pytest.raises(DiveError, match=message):
            make()
    assert [workers.loaders(asked, 10_000) for asked in (None, 0)] == [0, 0]
    for asked in (None, 0):
        config = dive.DistillConfig(preset="dive-ce", rank=2, workers=asked, steps=1)
        dive.distill(tiny_llava, studies, config=config, progress=False)


def test_of_many_reports_a_sample_is_labelled(tiny_llava, studies, monkeypatch):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    monkeypatch.setattr("dive.training.survey.LABELLED", 3)
    weigher = DecisiveTokens(backbone.tokenizer)
    _, found = survey(studies, Prompter(backbone), weigher, skipped=Skipped())
    counted = [sum(look.classes) for look in found.looks]
    assert counted == [found.response_lengths[n] if n % 2 == 0 else 0 for n in range(6)]
    assert sum(found.class_counts) == sum(counted)


def test_an_overlong_prompt_is_refused_by_its_size_alone(tiny_qwen, tmp_path, studies):
    backbone = dive.load_backbone(tiny_qwen, device="cpu")
    prompter = Prompter(backbone)
    _, found = survey(studies, prompter, DecisiveTokens(backbone.tokenizer), skipped=Skipped())
    prompter.max_length = max(found.prompt_lengths) + 2
    with pytest.raises(DiveError, match=r"prompt and report have \d+ tokens, \d+ of them for the"):
        survey(studies, prompter, DecisiveTokens(backbone.tokenizer), skipped=Skipped())
    prompter.max_length = min(found.prompt_lengths)
    with pytest.raises(DiveError, match=r"study-.*the prompt has \d+ tokens \(\d+ of them for im"):
        survey(studies, prompter, DecisiveTokens(backbone.tokenizer), skipped=Skipped())


def test_a_template_whose_turns_run_into_each_other(tiny_qwen, studies):
    """Without a token between turns, lengths do not add up, and are still exact."""
    template = (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{{ '<|vision_start|><|image_pad|><|vision_end|>' if p['type'] == 'image' else p['text'] }}"
        "{% endfor %}{% endfor %}"
    )
    backbone = dive.load_backbone(tiny_qwen, device="cpu")
    prompter = Prompter(backbone, template=template)
    studies = [replace(one, indication=None) for one in studies]
    examples, found = survey(
        studies, prompter, DecisiveTokens(backbone.tokenizer), skipped=Skipped()
    )
    shown = Demonstrations(studies, 3)
    assert Teacher(prompter, examples, shown).prompt_lengths(found) == [
        prompter.encode(s, shown.of(s))["input_ids"].shape[1] for s in studies
    ]


def test_how_many_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert workers.cores() == 16
    assert [workers.loaders(asked, 10_000) for asked in (None, 0, 3, 20)] == [8, 0, 3, 20]
    assert workers.loaders(None, 10) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers.cores() == 4 and workers.loaders(None, 10_000) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert workers.cores() == 1 and workers.loaders(None, 10_000) == 1


def test_a_survey_of_files_and_rows_alike(tiny_llava, studies_folder):
    """Images as bytes in a dataset object's record, and in memory."""
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    studies = read_studies(studies_folder / "studies.jsonl")
    rows = [
        replace(s, images=tuple(LazyImage("row", p.read_bytes) for p in s.images)) for s in studies
    ]
    memory = [replace(s, images=tuple(Image.open(p).copy() for p in s.images)) for s in studies]
    lengths = []
    for given in (studies, rows, memory):
        weigher = DecisiveTokens(backbone.tokenizer)
        _, found = survey(given, Prompter(backbone), weigher, skipped=Skipped())
        lengths.append((found.prompt_lengths, [look.sizes for look in found.looks]))
    assert lengths[0] == lengths[1] == lengths[2]
