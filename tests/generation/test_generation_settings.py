"""The settings of `dive.generate`, sessions and requests, and those of a checkpoint."""

import copy
import json
import logging
import re
import shutil
import warnings

import pytest
import torch
from tiny_decoders import small, text_batch
from transformers import GenerationConfig

import dive
from dive.decode.continuous import Request
from dive.decode.generate_arguments import given_arguments
from dive.decode.session import DecodeSession
from dive.decode.transformers_errors import refusals
from dive.decode.whole_config import WholeConfig
from dive.errors import DiveError, FallbackWarning
from dive.generation.generate_reports import iter_reports, prompter_for

ENGINES = ["dive._C", "transformers"]


@pytest.fixture(scope="module")
def shared(tiny_llava):
    return dive.load_backbone(tiny_llava)


@pytest.fixture
def llava(shared):
    """A backbone with a generation_config that the test may replace."""
    own = shared.model.generation_config
    yield shared
    shared.model.generation_config = own


def proposes(backbone, **settings):
    """Adds settings to the model's own generation_config."""
    own = backbone.model.generation_config.to_dict() | settings
    backbone.model.generation_config = GenerationConfig.from_dict(own)


def ids(reports):
    return [report.token_ids for report in reports]


PROPOSED = {
    "sampling": {"do_sample": True, "temperature": 9.0, "top_k": 0},
    "repetition": {"repetition_penalty": 5.0},
    "prompt repetition": {"encoder_repetition_penalty": 3.0},
    "n-grams": {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1},
    "length penalty": {"exponential_decay_length_penalty": [1, 3.0]},
    "watermark": {"watermarking_config": {"bias": 8.0}},
    "bias": {"sequence_bias": [[[5], 30.0]]},
    "least": {"min_length": 300, "min_new_tokens": 8},
    "most": {"max_length": 9},
    "forced": {"forced_eos_token_id": 9, "forced_bos_token_id": 9},
    "time": {"max_time": 1e-6},
    "guidance": {"guidance_scale": 3.0},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "strings": {"stop_strings": ["zz"]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "dola": {"dola_layers": "high"},
    "words": {"force_words_ids": [[3]], "num_beams": 2},
    "healing": {"token_healing": True},
    "quantised": {"cache_implementation": "quantized"},
    "static": {"cache_implementation": "static", "use_cache": False, "prefill_chunk_size": 4},
    "more": {"return_dict_in_generate": True, "output_scores": True},
    "unknown": {"attn_implementation": "flash_attention_2"},
}


@pytest.mark.parametrize("name", PROPOSED)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_checkpoint_proposes_is_not_used(llava, studies, name, engine):
    options = {"max_new_tokens": 7, "engine": engine}
    wanted = ids(dive.generate(llava, studies[:2], **options))
    proposes(llava, **PROPOSED[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        reports = dive.generate(llava, studies[:2], **options)
    assert ids(reports) == wanted and {report.engine for report in reports} == {engine}


def test_what_is_asked_for_is_the_callers_though_the_checkpoint_proposes_it(llava, studies):
    proposes(llava, num_beams=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)  # it was requested
        (report,) = dive.generate(llava, studies[0], max_new_tokens=4, num_beams=2)
    assert report.engine == "transformers"


def test_the_command_line_takes_no_more_of_it(tiny_llava, studies, tmp_path):
    from typer.testing import CliRunner

    from dive.cli import app

    folder = tmp_path / "backbone"
    shutil.copytree(tiny_llava, folder)
    file = folder / "generation_config.json"
    own = json.loads(file.read_text()) if file.exists() else {}
    own |= {"stop_strings": ["zz"], "num_beams": 3, "num_return_sequences": 3, "max_time": 1e-6}
    file.write_text(json.dumps(own))
    wanted = dive.generate(dive.load_backbone(tiny_llava), studies[0].images[0], max_new_tokens=5)
    out = tmp_path / "reports.jsonl"
    given = ["generate", "--backbone", str(folder), str(studies[0].images[0])]
    done = CliRunner().invoke(app, [*given, "--out", str(out), "--max-new-tokens", "5"])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text().splitlines()[0])["report"] == wanted[0].text


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_that_a_checkpoint_forbids_are_not_written(llava, studies, engine, caplog):
    options = {"max_new_tokens": 5, "engine": engine}
    (free,) = ids(dive.generate(llava, studies[0], **options))
    for name, value in {
        "suppress_tokens": free,
        "begin_suppress_tokens": free[:1],
        "bad_words_ids": [[token] for token in free],
    }.items():
        proposes(llava, suppress_tokens=None, begin_suppress_tokens=None, bad_words_ids=None)
        proposes(llava, **{name: value})
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="dive"):
            (held,) = ids(dive.generate(llava, studies[0], **options))
        assert held[0] != free[0] and (name.startswith("begin") or not set(held) & set(free))
        assert [r.message for r in caplog.records if name in r.message]
        # None lifts it
        assert ids(dive.generate(llava, studies[0], **options, **{name: None})) == [free]


@pytest.mark.parametrize("engine", ENGINES)
def test_sampling_is_the_checkpoints_where_the_caller_says_nothing_else(llava, studies, engine):
    options = {"max_new_tokens": 6, "do_sample": True, "seed": 3, "engine": engine}
    greedy = ids(dive.generate(llava, studies[0], max_new_tokens=6))
    proposes(llava, top_k=1, repetition_penalty=9.0)
    assert ids(dive.generate(llava, studies[0], **options)) == greedy
    given = GenerationConfig(do_sample=True, top_k=50)
    drawn = ids(dive.generate(llava, studies[0], **options, top_k=50))
    assert drawn != greedy
    # the same as a config or a dict, and by name beside one
    for more in ({"generation_config": given}, {"generation_config": {"top_k": 50}}):
        assert ids(dive.generate(llava, studies[0], **options, **more)) == drawn
    # None is "not at all", and not the default of 50
    all_tokens = ids(dive.generate(llava, studies[0], **options, top_k=0))
    assert ids(dive.generate(llava, studies[0], **options, top_k=None)) == all_tokens != drawn


def test_a_given_config_says_where_a_report_ends(llava, studies):
    (free,) = ids(dive.generate(llava, studies[0], max_new_tokens=8))
    assert len(free) == 8
    short = dive.generate(llava, studies[0], generation_config=GenerationConfig(max_new_tokens=3))
    assert ids(short) == [free[:3]]
    both = {"max_new_tokens": 2, "generation_config": {"max_new_tokens": 3}}
    assert ids(dive.generate(llava, studies[0], **both)) == [free[:2]]
    end = free[2]
    until = free[: free.index(end) + 1]
    for given in (
        {"generation_config": GenerationConfig(eos_token_id=end)},
        {"eos_token_id": end},
        {"eos_token_id": torch.tensor([end])},
    ):
        (report,) = dive.generate(llava, studies[0], max_new_tokens=8, **given)
        assert report.token_ids == until and report.finish_reason == "eos"
    # a copy of the checkpoint's has its ends too; the template's hold
    own = llava.model.generation_config
    assert ids(dive.generate(llava, studies[0], max_new_tokens=8, generation_config=own)) == [free]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_end_that_is_written_into_a_config_is_the_only_one(tiny_llama, engine):
    """A backbone whose template ends a turn with another token than the checkpoint's end token."""
    backbone = dive.load_backbone(tiny_llama)
    own = backbone.model.generation_config
    study = dive.Study(id="a", images=())
    options = {"engine": engine, "max_new_tokens": 12}
    both = prompter_for(backbone).eos_token_ids
    own.eos_token_id = both[1:] or [next(i for i in range(5, 99) if i not in both)]
    ends = own.eos_token_id
    assert both[0] not in ends

    def closes(_ids, scores):  # the turn, whatever comes before
        return scores.index_fill(1, torch.tensor([both[0]]), 1e9)

    force = {"logits_processor": [closes]}

    def stops(**given):
        (report,) = dive.generate(backbone, study, **options, **force, **given)
        return report.num_tokens == 1

    assert stops()
    for value in (ends, ends[0], torch.tensor(ends)):
        assert not stops(generation_config=GenerationConfig(eos_token_id=value))
        assert not stops(generation_config={"eos_token_id": value})
        assert not stops(eos_token_id=value)
    # a copy of the checkpoint's own, made for other settings, requests no end
    changed = copy.deepcopy(own)
    changed.repetition_penalty = 1.5
    assert stops(generation_config=changed) and stops(generation_config=own)
    assert not stops(generation_config=changed, eos_token_id=ends)


@pytest.mark.parametrize("engine", ENGINES)
def test_lengths_that_count_the_prompt_are_no_reports_own(llava, studies, engine, caplog):
    options = {"engine": engine}
    for name, own in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        said = f"{name}.*counts the prompt too; give {own}"
        for given in (GenerationConfig(**{name: 400}), {name: 400}):
            with pytest.raises(DiveError, match=said):
                dive.generate(llava, studies[0], generation_config=given, **options)
        with pytest.raises(DiveError, match=said):
            dive.generate(llava, studies[0], **{name: 400}, **options)
    (free,) = ids(dive.generate(llava, studies[0], max_new_tokens=6, **options))
    both = GenerationConfig(max_length=400, max_new_tokens=3)
    assert ids(dive.generate(llava, studies[0], generation_config=both, **options)) == [free[:3]]
    assert "max_new_tokens=3 holds, and max_length=400 of the generation_config" in caplog.text
    longest = GenerationConfig(max_length=400)
    found = dive.generate(llava, studies[0], max_new_tokens=4, generation_config=longest, **options)
    assert ids(found) == [free[:4]]
    end = free[1]
    least = {"generation_config": GenerationConfig(eos_token_id=end, min_new_tokens=5)}
    (report,) = dive.generate(llava, studies[0], max_new_tokens=6, **options, **least)
    assert report.num_tokens >= 5 and end not in report.token_ids[:4]


SET = {
    "do_sample": {"do_sample": True, "top_k": 3, "temperature": 0.7},
    "beams": {"num_beams": 3, "length_penalty": 0.2},
    "penalty": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
    "bias": {"sequence_bias": [[[5], 30.0]]},
    "forbidden": {"suppress_tokens": [*range(20, 400)]},
    "cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "pad and bos": {"pad_token_id": 3, "bos_token_id": 3},
    "least": {"min_new_tokens": 7},
    "forced": {"forced_eos_token_id": 9},
    "strings": {"stop_strings": ["zzz"]},
}


@pytest.mark.parametrize("name", SET)
@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_a_setting_is_the_same_by_name_in_a_config_and_in_a_dict(llava, studies, name, engine):
    options = {"max_new_tokens": 7, "engine": engine}
    options |= {"seed": 3} if "do_sample" in SET[name] else {}
    seen = []
    for given in (
        SET[name],
        {"generation_config": GenerationConfig(**SET[name])},
        {"generation_config": SET[name]},
        # an argument by name wins
        {"generation_config": GenerationConfig(num_beams=4, top_k=9, min_new_tokens=2), **SET[name],
         "num_beams": SET[name].get("num_beams", 1), "min_new_tokens": 7},
    ):  # fmt: skip
        seen.append(ids(dive.generate(llava, studies[:2], **options, **given)))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[3][0]) == 7
    if name in ("do_sample", "penalty", "bias", "forbidden", "beams"):
        plain = ids(dive.generate(llava, studies[:2], max_new_tokens=7, engine=engine))
        assert seen[0] != plain


def test_none_in_a_dict_is_as_none_by_name(llava, studies):
    (free,) = ids(dive.generate(llava, studies[0], max_new_tokens=4))
    proposes(llava, suppress_tokens=free)
    assert ids(dive.generate(llava, studies[0], max_new_tokens=4)) != [free]
    lifted = {"suppress_tokens": None, "max_new_tokens": 4, "num_beams": None}
    assert ids(dive.generate(llava, studies[0], generation_config=lifted)) == [free]


def test_settings_that_nothing_reads_are_named(llava, studies):
    class Mine(GenerationConfig):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.mine = 3

    model, batch = small("llama"), text_batch(rows=1)
    session = DecodeSession(model)
    for given, name in ((GenerationConfig(max_new_token=5), "max_new_token"), (Mine(), "mine")):
        said = f"generation_config has {name}, which is no setting"
        with pytest.raises(DiveError, match=said):
            dive.generate(llava, studies[0], generation_config=given)
        for call in (session.generate, session.engine_choice):
            with pytest.raises(DiveError, match=said):
                call(**batch, generation_config=given)
        with pytest.raises(DiveError, match=said):
            list(session.stream([Request(batch, {"generation_config": given})]))
    # the checkpoint's own code may read what its own file has
    llava.model.generation_config = GenerationConfig.from_dict(
        llava.model.generation_config.to_dict() | {"mine": 1}
    )
    seen = []

    def look(model, input_ids, generation_config=None, **more):
        seen.append(generation_config.mine)
        return input_ids

    dive.generate(llava, studies[0], generation_config=Mine(), max_new_tokens=2)
    dive.generate(llava, studies[0], generation_config=Mine(), custom_generate=look)
    dive.generate(llava, studies[0], custom_generate=look)
    assert seen == [3, 1]


@pytest.mark.parametrize("sampled", [False, True])
def test_stop_strings_are_found_with_the_backbones_tokenizer(llava, studies, sampled):
    options = {"max_new_tokens": 8, **({"do_sample": True, "seed": 5} if sampled else {})}
    free = ids(dive.generate(llava, studies[:2], **options))
    word = next(w for w in map(llava.tokenizer.decode, free[0][1:]) if w.strip())
    found = [
        dive.generate(llava, studies[:2], **options, stop_strings=[word], engine=engine)
        for engine in ENGINES
    ]
    assert ids(found[0]) == ids(found[1])
    assert [{report.engine for report in reports} for reports in found] == [{e} for e in ENGINES]
    (first, _) = ids(found[0])
    assert len(first) < 8 and first == free[0][: len(first)]
    assert word in llava.tokenizer.decode(first)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_none_is_as_not_given(llava, studies, engine):
    wanted = ids(dive.generate(llava, studies[0], max_new_tokens=4))
    nothing = {"custom_generate": None, "generation_config": None, "num_beams": None,
               "logits_processor": None, "assistant_model": None, "input_ids": None}  # fmt: skip
    (report,) = dive.generate(llava, studies[0], max_new_tokens=4, engine=engine, **nothing)
    assert [report.token_ids] == wanted
    assert report.engine == ("dive._C" if engine == "auto" else engine)


@pytest.mark.parametrize("engine", ["auto", "transformers"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_config": "x"}, "generation_config is 'x', want a transformers.Generation"),
        ({"generation_config": {"num_beam": 2}}, "generation_config has num_beam, which is no"),
        (
            {"generation_config": {"max_new_tokens": -1}},
            "max_new_tokens is -1, want a whole number",
        ),
        ({"input_ids": torch.ones(1, 3)}, "input_ids: dive.generate makes the model's inputs"),
        ({"attention_mask": 1, "pixel_values": 1}, "attention_mask, pixel_values: dive.generate"),
        ({"num_beam": 2}, "num_beam: no argument of generate"),
        ({"update": 3}, "update: no argument of generate"),
        ({"max_length": 30}, "max_length counts the prompt too; give max_new_tokens"),
        ({"prompt_lookup_num_tokens": 3}, "only supported for batch_size = 1"),
        ({"temperature": 0.0, "do_sample": True}, "`temperature`.*strictly positive"),
        ({"num_beams": "2"}, "num_beams is '2', want a whole number from 1 on"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "refuses .*Contrastive Search requires"),
        ({"dola_layers": "high"}, "refuses this call of generate: Dola"),
        ({"cache_implementation": "bogus"}, "Invalid `cache_implementation`"),
        ({"token_healing": True}, "token_healing would rewrite the end"),
        ({"synced_gpus": True}, "synced_gpus: .* has not"),
        ({"custom_generate": 3}, "custom_generate is 3, want a function"),
        ({"generation_config": {"num_return_sequences": 2, "num_beams": 2}}, "one study has one"),
    ],
)
def test_bad_settings_are_one_error(llava, studies, engine, options, message):
    with pytest.raises(DiveError, match=message):
        dive.generate(llava, studies[:2], max_new_tokens=3, engine=engine, **options)


WRONG = {
    "num_beams": [0, -1, "2", 2.5, True],
    "max_new_tokens": ["7", 0],
    "min_new_tokens": ["3", -3],
    "no_repeat_ngram_size": ["x", -1],
    "prefill_chunk_size": [0, "x"],
    "top_p": ["x"],
    "penalty_alpha": ["x"],
    "repetition_penalty": [0, "x"],
    "do_sample": ["yes", 3],
    "use_cache": ["x"],
    "eos_token_id": ["x", ["x"], [[3]], 1.5, torch.tensor([1.5])],
    "forced_eos_token_id": ["x", 999999],
    "suppress_tokens": [3, ["x"]],
    "stop_strings": [3, [3], [""]],
    "exponential_decay_length_penalty": [3, (1,), ("a", "b")],
    "logits_processor": [3, [3]],
    "stopping_criteria": [3, [3]],
    "prefix_allowed_tokens_fn": [3],
    "assistant_model": [3],
    "assistant_early_exit": [1, 0, "x"],  # its text model has the layers
    "tokenizer": [3],
    "streamer": [3],
    "is_assistant": [True],
    "watermarking_config": [3],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_with_what_it_is(llava, studies, name):
    settings = vars(GenerationConfig())
    for value in WRONG[name]:
        ways = [{name: value}]
        if name in settings:
            ways += [{"generation_config": {name: value}}]
        for given in ways:
            said = re.escape(f"{name} is {value!r}")
            with pytest.raises(DiveError, match=f"^{said}"):
                iter_reports(llava, studies[:1], **given)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there it has where to go")
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache_wants_a_gpu(llava, studies, cache):
    with pytest.raises(DiveError, match=f"cache_implementation is '{cache}', want a GPU"):
        dive.generate(llava, studies[0], max_new_tokens=3, cache_implementation=cache)


def test_layers_are_left_off_where_the_model_has_them(tiny_llama):
    backbone = dive.load_backbone(tiny_llama)
    study = dive.Study(id="a", images=())
    (plain,) = ids(dive.generate(backbone, study, max_new_tokens=5))
    early = dive.generate(backbone, study, max_new_tokens=5, assistant_early_exit=1)
    assert ids(early) == [plain]
    with pytest.raises(DiveError, match="assistant_early_exit is 99; the model has"):
        dive.generate(backbone, study, assistant_early_exit=99)


@pytest.mark.parametrize("more", [{}, {"min_new_tokens": 3}])
def test_an_assistant_proposes_and_changes_nothing(llava, studies, more):
    options = {"max_new_tokens": 6, **more}
    wanted = ids(dive.generate(llava, studies[0], **options))
    found = dive.generate(llava, studies[0], assistant_model=copy.deepcopy(llava.model), **options)
    assert ids(found) == wanted and found[0].engine == "transformers"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_least_length_above_the_longest_is_told_in_the_callers_numbers(llava, studies, engine):
    (free,) = ids(dive.generate(llava, studies[0], max_new_tokens=4, engine=engine))
    lengths = {"max_new_tokens": 4, "min_new_tokens": 30, "eos_token_id": free[1]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (report,) = dive.generate(llava, studies[0], engine=engine, **lengths)
    warned = [str(one.message) for one in caught if "Unfeasible" in str(one.message)
            or "min_new_tokens" in str(one.message)]  # fmt: skip
    assert warned == ["min_new_tokens is 30 and max_new_tokens 4: reports are 4 tokens long"]
    assert report.num_tokens == 4 and free[1] not in report.token_ids
    session = DecodeSession(llava)
    with warnings.catch_warnings():  # the prompt that stands in does not warn
        warnings.simplefilter("error")
        assert session.engine_choice(max_new_tokens=4, min_new_tokens=30).engine == "dive._C"


def test_an_error_of_the_callers_own_keeps_its_kind(llava, studies):
    def breaks(ids, scores):
        raise ValueError("mine")

    for engine in ENGINES:
        with pytest.raises(ValueError, match="mine") as raised:
            dive.generate(llava, studies[0], max_new_tokens=3, engine=engine,
                          logits_processor=[breaks])  # fmt: skip
        assert type(raised.value) is ValueError
    with pytest.raises(TypeError), refusals():
        len(3)  # nothing of transformers


@pytest.mark.parametrize("kind", [RuntimeError, IndexError, ZeroDivisionError, AssertionError])
def test_errors_of_a_forward_or_of_memory_keep_their_kind(kind):
    model, batch = small("llama"), text_batch(rows=1)
    session = DecodeSession(model)

    def breaks(*_args):
        raise kind("mine")

    hook = model.model.layers[0].register_forward_pre_hook(breaks)
    with pytest.raises(kind, match="mine") as raised:
        session.generate(**batch, max_new_tokens=2, num_beams=2)
    assert type(raised.value) is kind
    hook.remove()
    # in a forward, and in a function of the caller's that calls torch
    with pytest.raises(IndexError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = torch.tensor([[10**6]])
        session.generate(input_ids=ids, max_new_tokens=2, num_beams=2)
    with pytest.raises(RuntimeError, match="shape"):
        shapes = [lambda ids, scores: torch.reshape(scores, (7, 7, 7))]
        session.generate(**batch, max_new_tokens=2, num_beams=2, logits_processor=shapes)


def test_wrong_settings_are_told_of_before_the_first_report(llava, studies):
    with pytest.raises(DiveError, match="refuses"):
        iter_reports(llava, studies[:1], generation_config={"max_new_tokens": 2},
                     cache_implementation="bogus")  # fmt: skip


def test_a_whole_config_takes_entries_that_transformers_does_not_know():
    model = small("llama")
    model.generation_config.of_its_own = 7
    model.generation_config.num_beams = 3
    seen = []

    def look(model, input_ids, generation_config=None, **more):
        seen.append(generation_config)
        return input_ids

    config = WholeConfig(max_new_tokens=2)
    model.generate(**text_batch(), generation_config=config, custom_generate=look)
    # nothing is left open that transformers would fill in
    model.generation_config = GenerationConfig()
    model.generate(**text_batch(), generation_config=config, custom_generate=look)
    model.generate(**text_batch(), max_new_tokens=2, custom_generate=look)
    whole, usual = (vars(one) for one in seen[1:])
    assert not [n for n, value in usual.items() if value is not None and whole[n] is None
                and n != "transformers_version"]  # fmt: skip
    assert config.min_length is None  # or transformers would say that it was given
    assert seen[0].of_its_own == 7 and seen[0].num_beams == 1 and seen[0].do_sample is False


# sessions and requests


def test_arguments_by_position_have_names():
    model, batch = small("llama"), text_batch(rows=1)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    session = DecodeSession(model)
    lookup = GenerationConfig(prompt_lookup_num_tokens=3, max_new_tokens=5)
    choice = session.engine_choice(ids, lookup, attention_mask=mask)
    assert choice.engine == "transformers" and "prompt_lookup" in choice.reason and choice.requested
    want = model.generate(ids, lookup, attention_mask=mask)
    assert torch.equal(session.generate(ids, lookup, attention_mask=mask), want)
    assert session.ran == choice
    assert session.engine_choice(ids, attention_mask=mask).engine == "dive._C"
    want = model.generate(ids, attention_mask=mask, max_new_tokens=5)
    assert torch.equal(session.generate(ids, attention_mask=mask, max_new_tokens=5), want)
    for call in (session.engine_choice, session.generate):
        with pytest.raises(DiveError, match="inputs: given by position and by name"):
            call(ids, inputs=ids)
        with pytest.raises(DiveError, match="generation_config is 'x'"):
            call(ids, "x")
        with pytest.raises(DiveError, match="arguments by position, got 30"):
            call(*[None] * 30)


def test_no_custom_generate_is_as_not_given():
    model, batch = small("llama"), text_batch(rows=1)
    settings = {"max_new_tokens": 4, "custom_generate": None}
    session = DecodeSession(model, strict=True)
    want = model.generate(**batch, max_new_tokens=4)
    assert session.engine_choice(**batch, **settings).engine == "dive._C"
    assert torch.equal(session.generate(**batch, **settings), want)
    (written,) = session.stream([Request(batch, settings)])
    assert written.token_ids == want[0, batch["input_ids"].shape[1] :].tolist()


def test_a_checkpoints_settings_hold_beside_a_given_config():
    """As in transformers, which fills in the settings that the given config leaves open."""
    model, batch = small("llama"), text_batch(rows=1)
    model.generation_config.prompt_lookup_num_tokens = 3
    given = GenerationConfig(max_new_tokens=5)
    session = DecodeSession(model)
    want = model.generate(**batch, generation_config=given)
    with pytest.warns(FallbackWarning, match="by the model's generation_config"):
        assert torch.equal(session.generate(**batch, generation_config=given), want)
    assert session.engine_choice(**batch, generation_config=given) == session.ran


@pytest.mark.parametrize("more", [
    {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"cache_implementation": "static"}, {},
])  # fmt: skip
@pytest.mark.parametrize("by_model", [False, True])
def test_the_seed_of_a_request_is_honoured_in_every_mode(more, by_model):
    model, batch = small("llama"), text_batch(rows=1)
    settings = {"max_new_tokens": 6, "do_sample": True, **more}
    if by_model:
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        settings = {}
    wanted = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        out = model.generate(**batch, **settings)
        wanted.append(out[0, batch["input_ids"].shape[1] :].tolist())
    assert wanted[0] != wanted[1]
    session = DecodeSession(model)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        written = list(session.stream([Request(batch, settings, seed=s) for s in (3, 4, 3)]))
    assert [one.token_ids for one in sorted(written)] == [*wanted, wanted[0]]
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_settings_of_requests():
    model, batch = small("llama"), text_batch(rows=1)
    session = DecodeSession(model)
    for settings, seed, message in [
        ({"input_ids": 3}, None, "request 0 has input_ids among its settings"),
        ({"streamer": 3}, None, "request 0 has streamer among its settings"),
        ({"num_beam": 2}, None, "num_beam: no argument of generate"),
        ({"num_beams": 3, "num_return_sequences": 3}, None, "one request has one answer"),
        ({"do_sample": True}, "abc", "seed is 'abc', want a whole number"),
    ]:
        with pytest.raises(DiveError, match=message):
            list(session.stream([Request(batch, settings, seed=seed)]))


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": 0.0, "do_sample": True}, "`temperature`.*strictly positive"),
    ({"cache_implementation": "bogus"}, "Invalid `cache_implementation`"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1, want a whole number"),
    ({"num_beams": 0}, "num_beams is 0, want a whole number from 1 on"),
    ({"generation_config": GenerationConfig(num_beams=-1)}, "num_beams is -1, want a whole"),
    ({"logits_processor": 3}, "logits_processor is 3, want a list of functions"),
    ({"watermarking_config": {"bias": "x"}}, "refuses .*requested: watermarking_config="),
    ({"stop_strings": ["a"]}, "tokenizer"),
])  # fmt: skip
def test_what_transformers_refuses_is_one_error_of_a_session_too(settings, message):
    model, batch = small("llama"), text_batch(rows=1)
    session = DecodeSession(model)
    for call in (
        lambda: session.generate(**batch, **settings),
        lambda: list(session.stream([Request(batch, settings)])),
    ):
        with pytest.raises(DiveError, match=message):
            call()
    if not settings.keys() & {"stop_strings", "watermarking_config"}:  # a choice runs nothing
        with pytest.raises(DiveError, match=message):
            session.engine_choice(**batch, **settings)


WAYS = {
    "by name": lambda model, words: {"stop_strings": words},
    "as text": lambda model, words: {"stop_strings": words[0]},
    "config": lambda model, words: {"generation_config": GenerationConfig(stop_strings=words)},
    "the model's": lambda model, words: setattr(model.generation_config, "stop_strings", words),
    "over another": lambda model, words: {
        "generation_config": GenerationConfig(stop_strings=["zzzz"]), "stop_strings": words
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("more", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_a_session_finds_stop_strings_with_its_backbones_tokenizer(tiny_llama, way, more):
    backbone = dive.load_backbone(tiny_llama)
    model, tokenizer = backbone.model, backbone.tokenizer
    batch = tokenizer(["The heart is"], return_tensors="pt")
    length = batch["input_ids"].shape[1]

    def answer(call, **settings):
        torch.manual_seed(3)
        return call(**batch, **{"max_new_tokens": 12} | more | settings)[0, length:].tolist()

    free = answer(model.generate)
    word = next(w for w in map(tokenizer.decode, free[2:]) if w.strip())
    wanted = answer(model.generate, stop_strings=[word], tokenizer=tokenizer)
    assert "num_beams" in more or len(wanted) < len(free)
    settings = WAYS[way](model, [word]) or {}
    given = settings.get("generation_config")
    session = DecodeSession(backbone)
    engine = "transformers" if "num_beams" in more else "dive._C"
    assert session.engine_choice(**batch, **settings, **more).engine == engine
    assert answer(session.generate, **settings) == wanted
    assert session.ran.engine == engine
    assert answer(session.generate, **settings, tokenizer=tokenizer) == wanted
    (written,) = session.stream([Request(batch, {"max_new_tokens": 12} | more | settings, seed=3)])
    assert written.token_ids == wanted
    assert given is None or given.stop_strings is not None  # the caller's own is left alone
    assert answer(session.generate, stop_strings=None, **(
        {k: v for k, v in settings.items() if k != "stop_strings"})) == free  # fmt: skip
    # a bare model has none, unless it is given
    bare = DecodeSession(model)
    with pytest.raises(DiveError, match="tokenizer"):
        answer(bare.generate, **settings)
    assert answer(bare.generate, **settings, tokenizer=tokenizer) == wanted


def test_what_else_wants_a_tokenizer_gets_the_backbones(tiny_llama):
    backbone = dive.load_backbone(tiny_llama)
    batch = backbone.tokenizer(["The heart is"], return_tensors="pt")
    session = DecodeSession(backbone)
    for name, value in (
        ("token_healing", True),
        ("assistant_tokenizer", backbone.tokenizer),
    ):
        given = given_arguments(session.model, (), {**batch, name: value}, session.tokenizer)
        assert given["tokenizer"] is backbone.tokenizer and given[name] == value
    assert "tokenizer" not in given_arguments(session.model, (), dict(batch), session.tokenizer)
    model = backbone.model
    wanted = model.generate(**batch, max_new_tokens=6, token_healing=True,
                            tokenizer=backbone.tokenizer)  # fmt: skip
    found = session.generate(**batch, max_new_tokens=6, token_healing=True)
    assert torch.equal(found, wanted) and session.ran.engine == "transformers"
