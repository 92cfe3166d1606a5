"""`dive.generate` on many studies: slots that are taken over, adapters per study, seeds."""

import time
from dataclasses import replace

import pytest
import torch
from tiny_steering import for_backbone, prompts, randomised

import dive
from dive.adapter.attach import attachment_of
from dive.data import Skipped
from dive.decode import native
from dive.decode.session import DecodeSession
from dive.errors import DiveError
from dive.generation.generate_reports import iter_reports
from dive.prompting.prompter import Prompter

ENGINES = ("auto", "transformers")
needs_engine = pytest.mark.skipif(
    not native.available(), reason="dive._C is not built; pip install -e . builds it"
)


@pytest.fixture
def cases(any_backbone, studies):
    return for_backbone(any_backbone, studies)


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


def untimed(reports):
    assert all(report.seconds > 0 for report in reports)
    return [replace(report, seconds=0.0, engine="") for report in reports]


def some_ends(backbone):
    """End tokens with which reports end at different lengths."""
    return list(range(3, len(backbone.tokenizer), 8))


@pytest.mark.parametrize("sampled", [False, True])
def test_the_batch_size_is_a_matter_of_time_alone(any_backbone, cases, sampled):
    options = {"max_new_tokens": 16, "eos_token_id": some_ends(any_backbone)}
    if sampled:
        options |= {"do_sample": True, "temperature": 1.5, "seed": 11}
    alone = []
    for number, case in enumerate(cases):
        more = {"seed": 11 + number} if sampled else {}
        alone += dive.generate(any_backbone, case, **{**options, **more})
    assert len({report.num_tokens for report in alone}) > 1
    for engine, size in (("auto", 2), ("auto", 4), ("transformers", 4)):
        got = dive.generate(any_backbone, cases, batch_size=size, engine=engine, **options)
        assert untimed(got) == untimed(alone), (engine, size)


def test_a_seed_is_torchs_own(any_backbone, cases):
    options = {"max_new_tokens": 9, "do_sample": True, "top_p": 0.9}
    reports = dive.generate(any_backbone, cases, seed=40, batch_size=3, **options)
    for number, (report, case) in enumerate(zip(reports, cases, strict=True)):
        batch = prompts(any_backbone, [case])
        torch.manual_seed(40 + number)
        ids = any_backbone.model.generate(**batch, **options)
        assert report.token_ids == ids[0, batch["input_ids"].shape[1] :].tolist()


def test_without_a_seed_torchs_generator_repeats_a_call(llava, studies):
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.5}
    got = []
    for seed, size, engine in (
        (5, 2, "auto"),
        (5, 6, "auto"),
        (5, 4, "transformers"),
        (6, 2, "auto"),
    ):
        torch.manual_seed(seed)
        reports = dive.generate(llava, studies, batch_size=size, engine=engine, **options)
        got.append(untimed(reports))
    assert got[0] == got[1] == got[2] != got[3]


def test_a_study_that_is_skipped_moves_no_seed(llava, studies, tmp_path):
    bad = replace(studies[1], id="gone", images=(tmp_path / "gone.png",))
    given = [studies[0], bad, *studies[2:5]]
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.5, "seed": 3}
    whole = dive.generate(llava, [studies[0], studies[1], *studies[2:5]], **options)
    for engine in ENGINES:
        skipped = Skipped()
        got = dive.generate(
            llava, given, on_error="skip", skipped=skipped, batch_size=2, engine=engine, **options
        )
        assert len(skipped) == 1
        assert untimed(got) == untimed([whole[0], *whole[2:]])


@pytest.mark.parametrize("positions", ["all", "response"])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_study_is_steered_by_its_own_adapter(any_backbone, cases, positions, engine):
    one, other = (randomised(any_backbone, seed=s, positions=positions) for s in (1, 2))
    adapters = [one, None, other, one, None, other]
    options = {"max_new_tokens": 8, "engine": engine}
    alone = [
        dive.generate(any_backbone, case, adapter=adapter, **options)[0]
        for case, adapter in zip(cases, adapters, strict=True)
    ]
    got = dive.generate(any_backbone, cases, adapter=adapters, batch_size=4, **options)
    assert untimed(got) == untimed(alone)
    named = {case.id: adapter for case, adapter in zip(cases, adapters, strict=True)}
    named["of another day"] = one
    got = dive.generate(any_backbone, cases, adapter=named, **options)
    assert untimed(got) == untimed(alone)
    assert attachment_of(any_backbone.model) is None


@needs_engine
@pytest.mark.parametrize("form", ["study", "path"])
def test_one_image_is_read_once_for_several_adapters(any_backbone, cases, form):
    adapters = [randomised(any_backbone, seed=s, positions="response") for s in (1, 2, 3)]
    adapters = [*adapters, None]
    case = replace(cases[0], indication=None)
    items = [case] * 4
    if form == "path":
        if not case.images:
            pytest.skip("a text model takes no path of an image")
        items = [str(case.images[0])] * 4
    alone = [
        dive.generate(any_backbone, case, adapter=adapter, max_new_tokens=8)[0].token_ids
        for adapter in adapters
    ]
    assert len(set(map(tuple, alone))) == 4
    lengths, seen = [], []
    model = any_backbone.model

    def note(_model, _args, kwargs):
        lengths.append(kwargs["input_ids"].shape[1])

    # with another package's hook on the model transformers decodes
    note.__module__ = "transformers.looks_on"
    handles = [model.register_forward_pre_hook(note, with_kwargs=True)]
    tower = getattr(model.model, "vision_tower", None) or getattr(model.model, "visual", None)
    if tower is not None:
        handles.append(tower.register_forward_hook(lambda *_: seen.append(1)))
    got = dive.generate(any_backbone, items, adapter=adapters, max_new_tokens=8, batch_size=3)
    for handle in handles:
        handle.remove()
    assert [report.token_ids for report in got] == alone
    # the short ones are the session's own checks of the model
    assert [n for n in lengths if n > 12] == [got[0].prompt_tokens - 1]
    assert len(seen) <= 1


def test_each_adapter_is_prompted_as_it_was_trained(llava, studies):
    questions = ("Findings, please, and say what is normal.", "Impression.")
    adapters = []
    for seed, prompt in enumerate(questions):
        adapters.append(randomised(llava, seed=seed, positions="response"))
        adapters[-1].metadata |= Prompter(llava, prompt=prompt).metadata()
    same = [studies[0]] * 3
    alone = [
        dive.generate(llava, studies[0], adapter=adapter, max_new_tokens=5)[0]
        for adapter in (*adapters, adapters[0])
    ]
    assert alone[0].prompt_tokens != alone[1].prompt_tokens
    for engine in ENGINES:
        got = dive.generate(
            llava, same, adapter=[*adapters, adapters[0]], max_new_tokens=5, engine=engine
        )
        assert untimed(got) == untimed(alone)


@needs_engine
def test_reports_come_in_order_though_later_ones_end_first(llava, studies, monkeypatch):
    indices, real = [], DecodeSession.stream

    def stream(self, requests, rows):
        for written in real(self, requests, rows):
            indices.append(written.index)
            yield written

    monkeypatch.setattr(DecodeSession, "stream", stream)
    options = {"max_new_tokens": 30, "eos_token_id": some_ends(llava)}
    reports = list(iter_reports(llava, studies, batch_size=3, **options))
    assert sorted(indices) == list(range(6)) and indices != sorted(indices)
    assert [report.id for report in reports] == [study.id for study in studies]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_written_before_an_error_is_not_lost(llava, studies, tmp_path, engine):
    bad = replace(studies[3], id="gone", images=(tmp_path / "gone.png",))
    options = {"max_new_tokens": 4, "batch_size": 2, "engine": engine}
    wanted = dive.generate(llava, studies[:3], **options)
    got = []
    with pytest.raises(DiveError, match="study 'gone': there is no image file"):
        for report in iter_reports(llava, [*studies[:3], bad, studies[4]], **options):
            got.append(report)
    assert untimed(got) == untimed(wanted)
    assert attachment_of(llava.model) is None


def test_seconds_add_up_to_what_the_model_took(llava, studies):
    for engine in ENGINES:
        started = time.perf_counter()
        reports = dive.generate(llava, studies * 2, max_new_tokens=20, batch_size=3, engine=engine)
        wall = time.perf_counter() - started
        assert 0.2 * wall < sum(report.seconds for report in reports) <= wall


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": []}, "adapter has 0 entries for 2 images or studies"),
        ({"adapter": ["a", None]}, "a: is no folder, want that of an adapter"),
        ({"adapter": [3, None]}, "adapter is a int, want a SteeringAdapter"),
        ({"adapter": {"study-00": None}}, "adapter has no entry for 'study-01'"),
        ({"adapter": 3}, "adapter is a int"),
        ({"adapter": "folder"}, "folder: is no folder, want that of an adapter"),
        ({"seed": 3, "do_sample": True, "num_beams": 2}, "seed does not go with beam"),
        ({"seed": 3, "custom_generate": print}, "seed does not go with custom_generate"),
    ],
)
def test_bad_input(llava, studies, options, message):
    with pytest.raises(DiveError, match=message):
        iter_reports(llava, studies[:2], **options)


def test_an_adapter_of_another_backbone_among_others(llava, tiny_llama, studies):
    other = randomised(dive.load_backbone(tiny_llama))
    with pytest.raises(DiveError, match="belongs to another backbone"):
        iter_reports(llava, studies[:2], adapter=[randomised(llava), other])
