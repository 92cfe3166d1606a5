"""`dive.generate`: every kind of input, batches, demonstrations, adapters, and what goes wrong."""

import gc
import inspect
import pydoc
import typing
import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import draw_film
from tiny_steering import fingerprint, for_backbone, logits, prompts, randomised
from transformers import GenerationConfig, StoppingCriteriaList, TextStreamer

import dive
from dive.adapter.attach import attachment_of
from dive.data import Skipped, Study
from dive.data.given import as_studies
from dive.errors import DiveError
from dive.generation.generate_reports import iter_reports, prompter_for
from dive.prompting.prompter import Prompter


@pytest.fixture
def cases(any_backbone, studies):
    return for_backbone(any_backbone, studies)


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


def texts(reports):
    return [report.text for report in reports]


def test_a_report_is_what_transformers_generates(any_backbone, cases):
    batch = prompts(any_backbone, cases[:1])
    wanted = any_backbone.model.generate(**batch, do_sample=False, max_new_tokens=9)[0]
    wanted = wanted[batch["input_ids"].shape[1] :].tolist()
    (report,) = dive.generate(any_backbone, cases[0], max_new_tokens=9)
    assert report.token_ids == wanted and report.num_tokens == len(wanted)
    assert report.text == any_backbone.tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert report.finish_reason == "length" and report.num_tokens == 9
    assert report.id == "study-00" and report.images == [str(p) for p in cases[0].images]
    assert report.prompt_tokens == batch["input_ids"].shape[1] and report.seconds > 0


@pytest.mark.parametrize("steered", [False, True])
def test_batches_give_what_single_studies_give(any_backbone, cases, steered):
    adapter = randomised(any_backbone) if steered else None
    trace = fingerprint(any_backbone.model)
    options = {"adapter": adapter, "max_new_tokens": 6}
    together = dive.generate(any_backbone, cases, batch_size=3, **options)
    alone = [dive.generate(any_backbone, case, **options)[0] for case in cases]
    assert [report.id for report in together] == [case.id for case in cases]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert [r.prompt_tokens for r in together] == [r.prompt_tokens for r in alone]
    assert len({r.prompt_tokens for r in together}) > 1
    assert fingerprint(any_backbone.model) == trace


def test_an_adapter_changes_reports_and_is_gone_afterwards(any_backbone, cases):
    before = dive.generate(any_backbone, cases[:2], max_new_tokens=6)
    steered = dive.generate(
        any_backbone, cases[:2], adapter=randomised(any_backbone), max_new_tokens=6
    )
    assert all(a.token_ids != b.token_ids for a, b in zip(before, steered, strict=True))
    after = dive.generate(any_backbone, cases[:2], max_new_tokens=6)
    assert [r.token_ids for r in after] == [r.token_ids for r in before]
    fresh = dive.SteeringAdapter(dive.SteeringConfig(), any_backbone)
    same = dive.generate(any_backbone, cases[:2], adapter=fresh, max_new_tokens=6)
    assert [r.token_ids for r in same] == [r.token_ids for r in before]


@pytest.mark.parametrize("positions", ["all", "response"])
def test_static_and_dynamic_cache_agree_under_an_adapter(any_backbone, cases, positions):
    adapter = randomised(any_backbone, positions=positions)
    options = {"adapter": adapter, "max_new_tokens": 6}
    dynamic = dive.generate(any_backbone, cases[:3], **options)
    static = dive.generate(any_backbone, cases[:3], cache_implementation="static", **options)
    assert [r.token_ids for r in static] == [r.token_ids for r in dynamic]


def test_every_form_of_input(llava, studies):
    path = studies[0].images[0]
    film = Image.open(path)
    wanted = dive.generate(llava, replace(studies[0], indication=None), max_new_tokens=5)[0]
    for given in (
        path,
        str(path),
        film,
        [path],
        [str(path)],
        [film],
        (path,),
        [[path]],
        iter([path]),
    ):
        (report,) = dive.generate(llava, given, max_new_tokens=5)
        assert report.token_ids == wanted.token_ids
    assert dive.generate(llava, str(path), max_new_tokens=1)[0].id == str(path)
    assert dive.generate(llava, film, max_new_tokens=1)[0].id == "image-0"
    assert dive.generate(llava, film, max_new_tokens=1)[0].images == ["image 0"]
    two = replace(studies[2], indication=None)  # frontal and lateral
    wanted = dive.generate(llava, two, max_new_tokens=5)[0]
    mixed = dive.generate(llava, [path, list(two.images), two, film], max_new_tokens=5)
    assert [r.id for r in mixed] == [str(path), str(two.images[0]), "study-02", "image-3"]
    assert mixed[1].token_ids == mixed[2].token_ids == wanted.token_ids
    assert mixed[1].prompt_tokens >= mixed[0].prompt_tokens + 16
    assert mixed[1].images == [str(image) for image in two.images]


def test_grey_and_transparent_images_are_images(llava):
    grey = draw_film(2)
    as_rgb = grey.convert("RGB")
    for image in (as_rgb, grey.convert("RGBA"), grey.convert("P")):
        one, other = dive.generate(llava, [grey, image], max_new_tokens=4)
        assert one.token_ids == other.token_ids


def test_finish_reason_and_the_end_token(any_backbone, cases):
    free = dive.generate(any_backbone, cases[:3], max_new_tokens=8, batch_size=3)
    # the third token of the first study, made the end of a turn
    end = free[0].token_ids[2]
    first = free[0].token_ids.index(end)
    reports = dive.generate(any_backbone, cases[:3], max_new_tokens=8, eos_token_id=end)
    assert reports[0].finish_reason == "eos"
    assert reports[0].token_ids == free[0].token_ids[: first + 1]
    kept = any_backbone.tokenizer.decode(reports[0].token_ids[:-1], skip_special_tokens=True)
    assert reports[0].text == kept.strip()
    for report, unstopped in zip(reports, free, strict=True):
        stopped = end in unstopped.token_ids
        assert report.finish_reason == ("eos" if stopped else "length")
        assert (
            report.num_tokens
            == len(report.token_ids)
            == (unstopped.token_ids.index(end) + 1 if stopped else 8)
        )


def test_a_callers_stopping_criterion_is_no_end_of_turn(llava, studies):
    def enough(ids, _scores, **_more):
        return torch.full((ids.shape[0],), ids.shape[1] % 4 == 0)

    (report,) = dive.generate(
        llava, studies[1], stopping_criteria=StoppingCriteriaList([enough]), max_new_tokens=9
    )
    assert report.finish_reason == "length" and 1 <= report.num_tokens <= 4


def test_the_models_own_sampling_settings_are_not_used(tiny_llama):
    backbone = dive.load_backbone(tiny_llama)
    study = Study(id="a", images=())
    wanted = dive.generate(backbone, study, max_new_tokens=8)[0].token_ids
    own = backbone.model.generation_config
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty = True, 9.0, 0, 5.0
    assert dive.generate(backbone, study, max_new_tokens=8)[0].token_ids == wanted
    # but a requested one is
    assert (
        dive.generate(backbone, study, max_new_tokens=8, repetition_penalty=5.0)[0].token_ids
        != wanted
    )
    torch.manual_seed(0)
    draws = [dive.generate(backbone, study, max_new_tokens=8, do_sample=True) for _ in range(3)]
    assert len({tuple(report.token_ids) for (report,) in draws}) == 3
    given = GenerationConfig(num_beams=2, do_sample=False)
    (beams,) = dive.generate(backbone, study, max_new_tokens=8, generation_config=given)
    assert beams.num_tokens == 8 and given.max_new_tokens is None
    full = dive.generate(backbone, study, max_new_tokens=8, return_dict_in_generate=True)
    assert full[0].token_ids == wanted


def test_streaming(llava, studies):
    seen = []

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            seen.append(text)

    streamer = Streamer(llava.tokenizer, skip_prompt=True, skip_special_tokens=True)
    (report,) = dive.generate(llava, studies[0], streamer=streamer, max_new_tokens=6)
    assert "".join(seen).strip() == report.text and len(seen) > 1
    with pytest.raises(DiveError, match="a streamer takes one study at a time, got 2"):
        dive.generate(llava, studies[:2], streamer=streamer)


def test_demonstrations_without_the_querys_own(any_backbone, cases, caplog):
    shown = cases[:3]  # studies 0 and 1 are one patient's
    reports = dive.generate(
        any_backbone, [cases[4], cases[0], cases[1]], demonstrations=shown, max_new_tokens=2
    )
    prompter = Prompter(any_backbone)
    lengths = [
        prompter.encode(query, demos)["input_ids"].shape[1]
        for query, demos in [(cases[4], shown), (cases[0], shown[2:]), (cases[1], shown[2:])]
    ]
    assert [report.prompt_tokens for report in reports] == lengths
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert len(said) == 4
    assert "study 'study-00': demonstration 'study-00' has the same id and is left out" in said[0]
    assert "study 'study-00': demonstration 'study-01' has the same patient" in said[1]


def test_demonstrations_are_checked_before_the_model_runs(llava, studies, tmp_path):
    for bad, message in [
        ([replace(studies[1], findings=None)], "study-01.*'findings' is absent"),
        (
            [replace(studies[1], images=(tmp_path / "gone.png",))],
            "study-01.*no image file .1 of 1.",
        ),
        ([studies[1].images[0]], "demonstrations has a PosixPath as item 0, want studies"),
        (4, "demonstrations is 4, want a list of studies"),
        ("four", "demonstrations is 'four', want a list of studies"),
    ]:
        with pytest.raises(DiveError, match=message):
            iter_reports(llava, studies[0], demonstrations=bad)


@pytest.mark.filterwarnings("ignore:the adapter was trained with prompt")
def test_the_stored_prompt_is_used_and_another_one_warns(llava, studies):
    adapter = randomised(llava)
    trained = Prompter(llava, prompt="Findings, please.", target="both", max_image_tokens=99)
    adapter.metadata |= trained.metadata()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompter_for(llava, adapter).metadata() == trained.metadata()
        (stored,) = dive.generate(llava, studies[0], adapter=adapter, max_new_tokens=1)
    assert stored.prompt_tokens == trained.encode(studies[0])["input_ids"].shape[1]
    for options, said in [
        ({"prompt": "What now"}, "trained with prompt 'Findings, please.', and 'What now' is"),
        ({"target": "impression"}, "trained with target 'both', and 'impression' is used"),
        ({"max_image_tokens": None}, "trained with max_image_tokens 99, and None is used"),
        ({"template": "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] "
                      "== 'image' else c['text'] }}{% endfor %}{% endfor %}"}, "template_hash"),
    ]:  # fmt: skip
        with pytest.warns(UserWarning, match=said) as caught:
            dive.generate(llava, studies[0], adapter=adapter, max_new_tokens=1, **options)
        assert caught[0].filename == __file__
    # another target has its own prompt
    with pytest.warns(UserWarning):
        other = prompter_for(llava, adapter, target="impression")
    assert other.prompt == "Write the impression of this chest radiograph."


def test_a_report_is_cut_to_what_the_context_has_left(llava, studies, monkeypatch):
    length = Prompter(llava).encode(studies[0])["input_ids"].shape[1]
    monkeypatch.setattr(llava.model.config.text_config, "max_position_embeddings", length + 3)
    with pytest.warns(
        UserWarning, match=rf"prompt of {length} tokens leaves 3 of .* context of {length + 3}"
    ):
        (report,) = dive.generate(llava, studies[0], max_new_tokens=20)
    assert report.num_tokens == 3 and report.finish_reason == "length"
    monkeypatch.setattr(llava.model.config.text_config, "max_position_embeddings", length)
    with pytest.raises(DiveError, match=f"the prompt has {length} tokens"):
        dive.generate(llava, studies[0])


def test_skipping_what_cannot_be_read(llava, studies, tmp_path):
    (tmp_path / "cut.png").write_bytes(studies[1].images[0].read_bytes()[:200])
    bad = [
        replace(studies[1], id="cut", images=(tmp_path / "cut.png",)),
        replace(studies[1], id="gone", images=(tmp_path / "gone.png",)),
    ]
    given = [studies[0], bad[0], bad[1], studies[3]]
    with pytest.raises(DiveError, match="study 'cut': cannot read the image"):
        dive.generate(llava, given, max_new_tokens=2)
    for batch_size in (1, 2, 8):
        skipped = Skipped()
        reports = dive.generate(
            llava, given, max_new_tokens=2, batch_size=batch_size, on_error="skip", skipped=skipped
        )
        assert [report.id for report in reports] == ["study-00", "study-03"]
        assert len(skipped) == 2
    with pytest.raises(DiveError, match="on_error"):
        dive.generate(llava, given, on_error="ignore")


def test_reports_come_one_by_one_and_the_model_stays_usable(llava, studies):
    batch, adapter = prompts(llava, studies[:1]), randomised(llava)
    plain = logits(llava.model, batch)
    wanted = dive.generate(llava, studies[:4], adapter=adapter, max_new_tokens=3, batch_size=2)
    trace = fingerprint(llava.model)
    got = []
    for report in iter_reports(llava, studies[:4], adapter=adapter, max_new_tokens=3, batch_size=2):
        got.append(report)
        assert torch.equal(logits(llava.model, batch), plain)
    assert [r.token_ids for r in got] == [r.token_ids for r in wanted]
    stopped = iter_reports(llava, studies[:4], adapter=adapter, max_new_tokens=3, batch_size=2)
    next(stopped)
    del stopped
    gc.collect()
    assert attachment_of(llava.model) is None and fingerprint(llava.model) == trace


def test_the_adapter_is_attached_once_whatever_the_batches(llava, studies, monkeypatch):
    """Attaching discards compiled code, which takes most of a minute to compile again."""
    resets = []
    monkeypatch.setattr("torch._dynamo.reset", lambda: resets.append(1))
    dive.generate(llava, studies, adapter=randomised(llava), max_new_tokens=2, batch_size=1)
    assert len(resets) == 1


def test_an_adapter_that_is_attached_already_is_used(llava, studies):
    adapter = randomised(llava)
    wanted = dive.generate(llava, studies[0], adapter=adapter, max_new_tokens=5)
    with dive.steer(llava, adapter):
        assert texts(dive.generate(llava, studies[0], max_new_tokens=5)) == texts(wanted)
        with pytest.raises(DiveError, match="already attached"):
            dive.generate(llava, studies[0], adapter=adapter)


def test_a_bare_model_wants_a_processor(llava, studies):
    wanted = dive.generate(llava, studies[0], max_new_tokens=4)
    bare = dive.generate(llava.model, studies[0], processor=llava.processor, max_new_tokens=4)
    assert texts(bare) == texts(wanted)
    with pytest.raises(DiveError, match="bare LlavaForConditionalGeneration.*or processor= too"):
        dive.generate(llava.model, studies[0])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "there is no image or study"),
        ([[]], {}, "item 0 is an empty sequence"),
        (["a.png", 3], {}, "item 1 is a int, want a path"),
        ([["a.png", 3]], {}, "item 0 is a int, want a path"),
        (3, {}, "got a int, want a path"),
        ("film.png", {"batch_size": 0}, "batch_size is 0, want a whole number from 1 on"),
        ("film.png", {"max_new_tokens": 0}, "max_new_tokens is 0, want a whole number from 1 on"),
        ("film.png", {"seed": "abc"}, "seed is 'abc', want a whole number from 0 to"),
        ("film.png", {"seed": -1, "do_sample": True}, "seed is -1, want a whole number"),
        ("film.png", {"seed": 1 << 64, "do_sample": True}, "want a whole number from 0 to"),
        ("film.png", {"seed": 5}, "seed has no use without sampling: greedy decoding draws"),
        ("film.png", {"num_return_sequences": 2}, "one study has one report"),
        ("film.png", {"prompt": ""}, "the prompt is empty"),
        ("film.png", {"target": "all"}, "target is 'all'"),
        ("no-such-film.png", {}, "no-such-film.png"),
    ],
)
def test_bad_input(llava, given, options, message):
    with pytest.raises(DiveError, match=message):
        dive.generate(llava, given, **options)


def test_an_adapter_of_another_backbone(llava, tiny_llama):
    backbone = dive.load_backbone(tiny_llama)
    other = randomised(backbone)
    other.metadata |= Prompter(backbone).metadata()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # then its other template does not warn
        with pytest.raises(DiveError, match="belongs to another backbone: architecture"):
            dive.generate(llava, "film.png", adapter=other)


@pytest.mark.parametrize("options", [
    {"prompt_lookup_num_tokens": 2},
    {"generation_config": GenerationConfig(prefill_chunk_size=8)},
])  # fmt: skip
def test_several_tokens_a_step_do_not_go_with_response_positions(llava, studies, options):
    adapter = randomised(llava, positions="response")
    with pytest.raises(
        DiveError, match='does not go with an adapter that has positions="response"'
    ):
        dive.generate(llava, studies[0], adapter=adapter, **options)


def test_progress_is_shown_when_wanted(llava, studies, capsys):
    dive.generate(llava, studies[:3], max_new_tokens=1, batch_size=2, progress=True)
    assert "3/3" in capsys.readouterr().err
    dive.generate(llava, studies[:3], max_new_tokens=1, batch_size=2)
    dive.generate(llava, studies[:3], max_new_tokens=1, batch_size=2, progress=False)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_items_become_studies_without_opening_files():
    (one,) = as_studies("nowhere/film.png")
    assert one.id == "nowhere/film.png" and one.findings is None


def test_generate_shows_the_parameters_that_it_hands_on():
    """The parameters are written once; signatures, help() and errors show them for both names."""
    shown = inspect.signature(dive.generate)
    assert str(shown).split(" -> ")[0] == str(inspect.signature(iter_reports)).split(" -> ")[0]
    assert shown.return_annotation == list[dive.Report]
    assert typing.get_type_hints(dive.generate)["return"] == list[dive.Report]
    plain, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = shown.parameters.values()
    assert [one.name for one in parameters if one.kind is plain] == [
        "backbone", "images_or_studies", "prompt", "adapter", "demonstrations",
    ]  # fmt: skip
    assert {one.name: one.default for one in parameters if one.kind is named} == {
        "max_new_tokens": None, "batch_size": 8, "target": None, "max_image_tokens": "auto",
        "template": None, "template_date": None, "processor": None, "streamer": None,
        "progress": None, "on_error": "fail", "skipped": None, "engine": "auto", "seed": None,
    }  # fmt: skip
    assert [*shown.parameters][-1] == "generate_kwargs"
    assert "batch_size: int = 8" in pydoc.plaintext.document(dive.generate)
    with pytest.raises(TypeError, match="^missing a required argument: 'images_or_studies'"):
        dive.generate("a model")


def test_a_warning_of_generate_is_of_the_line_that_calls_it(llava, studies):
    with pytest.warns(UserWarning, match="min_new_tokens is 5") as caught:
        dive.generate(llava, studies[0], min_new_tokens=5, max_new_tokens=2)
    assert caught[0].filename == __file__
