"""Reports of vLLM: those of dive.generate, token by token, in float32."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import draw_film, save_studies
from vllm_here import EAGER, needs_vllm, save_served

import dive
from dive.backbone.without_weights import load_without_weights
from dive.data import Skipped, Study
from dive.data.open import open_studies
from dive.errors import DiveError
from dive.prompting.prompter import Prompter
from dive.vllm.engine import generate, iter_reports
from dive.vllm.running import Engine

pytestmark = needs_vllm
BATCH = 4
LENGTH = 20
# with vLLM's own normalising of pixels on the device Qwen2-VL and Mistral 3 write other reports
SEEING = ["LLaVA", "Qwen2.5-VL", "Qwen3-VL", "InternVL", "LLaVA-NeXT", "Qwen2-VL", "Mistral 3"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = save_studies(tmp_path_factory.mktemp("studies"), 12)
    return list(open_studies(folder / "studies.jsonl", target=None))


@pytest.fixture(scope="module")
def texts(studies):
    return [replace(one, images=()) for one in studies]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder, its backbone in transformers, and the engine of vLLM."""
    folder = save_served("Llama", tmp_path_factory.mktemp("llama"))
    with Engine(folder, batch_size=BATCH, engine_options=EAGER) as engine:
        yield folder, dive.load_backbone(folder, device="cpu"), engine


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = save_served("LLaVA", tmp_path_factory.mktemp("llava"))
    with Engine(folder, batch_size=BATCH, max_images=4, engine_options=EAGER) as engine:
        yield folder, dive.load_backbone(folder, device="cpu"), engine


def compared(reports, wanted):
    """Asserts that reports are those of dive, but for time and engine; returns their engines."""
    assert [replace(one, seconds=0.0, engine="") for one in reports] == [
        replace(one, seconds=0.0, engine="") for one in wanted
    ]
    assert all(one.seconds > 0 for one in reports)
    return {one.engine for one in reports}


def test_reports_of_text_with_a_refilled_batch(llama, texts):
    _, backbone, engine = llama
    wanted = dive.generate(backbone, texts, max_new_tokens=LENGTH, batch_size=BATCH)
    assert len({one.text for one in wanted}) > 1
    assert compared(generate(engine, texts, max_new_tokens=LENGTH), wanted) == {"vllm"}


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=() if one == "LLaVA" else pytest.mark.slow) for one in SEEING],
)
def test_reports_of_films(family, studies, tmp_path):
    folder = save_served(family, tmp_path)
    wanted = dive.generate(
        dive.load_backbone(folder, device="cpu"), studies, max_new_tokens=LENGTH, batch_size=BATCH
    )
    reports = generate(
        folder, studies, max_new_tokens=LENGTH, batch_size=BATCH, engine_options=EAGER
    )
    assert compared(reports, wanted) == {"vllm"}
    assert len({tuple(one.token_ids) for one in wanted}) > 6  # the films count


@pytest.mark.slow
def test_one_film_where_vllm_tiles_each_of_several(studies, tmp_path):
    folder = save_served("LLaVA-OneVision", tmp_path)
    alone = [one for one in studies if len(one.images) == 1]
    wanted = dive.generate(dive.load_backbone(folder, device="cpu"), alone, max_new_tokens=8)
    skipped = Skipped()
    settings = {"engine_options": EAGER, "on_error": "skip", "skipped": skipped}
    compared(generate(folder, studies, max_new_tokens=8, **settings), wanted)
    several = [one for one in studies if len(one.images) > 1]
    assert [one["id"] for one in skipped.entries] == [one.id for one in several]
    assert all("vLLM expands images of this backbone" in one["reason"] for one in skipped.entries)


@pytest.mark.slow
def test_images_that_attend_both_ways_are_refused_on_a_cpu(studies, tmp_path):
    folder = save_served("Gemma 3", tmp_path)
    with pytest.raises(DiveError, match="causal mask within the images"):
        generate(folder, studies, engine_options=EAGER)


def test_demonstrations(llava, studies):
    _, backbone, engine = llava
    shown = studies[:2]
    queries = studies[2:6]  # of one, two and one image
    wanted = dive.generate(backbone, queries, demonstrations=shown, max_new_tokens=LENGTH)
    reports = generate(engine, queries, demonstrations=shown, max_new_tokens=LENGTH)
    compared(reports, wanted)
    assert all(one.prompt_tokens > 80 for one in reports)
    with pytest.raises(DiveError, match="up to 6 images, and the engine was opened for 4"):
        iter_reports(engine, queries, demonstrations=studies[:3])


def test_ends_by_an_end_token_and_by_length(llama, texts):
    _, backbone, engine = llama
    free = dive.generate(backbone, texts, max_new_tokens=LENGTH)
    end = free[0].token_ids[6]
    settings = {"max_new_tokens": LENGTH, "eos_token_id": [end]}
    wanted = dive.generate(backbone, texts, **settings)
    assert {one.finish_reason for one in wanted} == {"eos", "length"}
    compared(generate(engine, texts, **settings), wanted)


def test_settings_of_decoding(llama, texts):
    _, backbone, engine = llama
    free = dive.generate(backbone, texts[:3], max_new_tokens=LENGTH)
    common = sorted({one.token_ids[0] for one in free} | {one.token_ids[3] for one in free})
    for settings in (
        {"suppress_tokens": common},
        {"bad_words_ids": [[one] for one in common]},
        {"repetition_penalty": 1.7},
    ):
        wanted = dive.generate(backbone, texts, max_new_tokens=LENGTH, **settings)
        assert wanted[0].token_ids != free[0].token_ids
        compared(generate(engine, texts, max_new_tokens=LENGTH, **settings), wanted)


def test_a_shortest_report(llama, texts):
    _, backbone, engine = llama
    ends = [one.token_ids[2] for one in dive.generate(backbone, texts[:1], max_new_tokens=4)]
    ends += backbone.model.generation_config.eos_token_id, backbone.tokenizer.eos_token_id
    settings = {"max_new_tokens": LENGTH, "min_new_tokens": 9, "eos_token_id": ends}
    wanted = dive.generate(backbone, texts, **settings)
    assert min(one.num_tokens for one in wanted) > 3
    compared(generate(engine, texts, **settings), wanted)


def test_sampling_repeats_by_its_seeds_whatever_the_batch(llama, texts):
    folder, _, engine = llama
    settings = {"max_new_tokens": 12, "do_sample": True, "seed": 5}
    together = generate(engine, texts, **settings)
    again = generate(engine, texts, **settings)
    assert [one.token_ids for one in together] == [one.token_ids for one in again]
    # report i has the seed 5 + i
    alone = generate(engine, texts[3:4], **{**settings, "seed": 8})
    assert alone[0].token_ids == together[3].token_ids
    greedy = generate(engine, texts, max_new_tokens=12)
    assert [one.token_ids for one in together] != [one.token_ids for one in greedy]
    torch.manual_seed(1)
    first = generate(engine, texts[:2], max_new_tokens=12, do_sample=True)
    torch.manual_seed(1)
    second = generate(engine, texts[:2], max_new_tokens=12, do_sample=True)
    assert [one.token_ids for one in first] == [one.token_ids for one in second]
    with pytest.raises(DiveError, match="seed has no use without sampling"):
        iter_reports(engine, texts, seed=5)
    assert folder.is_dir()


def test_an_unreadable_film_is_skipped_or_ends_the_call(llava, studies, tmp_path):
    _, backbone, engine = llava
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no film")
    among = [*studies[:5], Study("broken", images=(broken,), source="list.jsonl:6"), *studies[5:8]]
    skipped = Skipped()
    reports = generate(engine, among, max_new_tokens=8, on_error="skip", skipped=skipped)
    compared(reports, dive.generate(backbone, studies[:8], max_new_tokens=8))
    assert [one["id"] for one in skipped.entries] == ["broken"]
    taken = []
    with pytest.raises(DiveError, match="study 'broken'") as caught:
        taken.extend(one.id for one in iter_reports(engine, among, max_new_tokens=8))
    assert str(tmp_path) not in str(caught.value)
    assert engine.unfinished == 0
    taken = []
    for one in _until_error(iter_reports(engine, among, max_new_tokens=8)):
        taken.append(one.id)
    assert taken == [one.id for one in studies[:5]]  # those before it come first


def _until_error(reports):
    try:
        yield from reports
    except DiveError:
        return


def test_a_closed_iterator_leaves_a_usable_engine(llama, texts):
    _, backbone, engine = llama
    reports = iter_reports(engine, texts, max_new_tokens=LENGTH)
    first = next(reports)
    reports.close()
    assert engine.unfinished == 0
    wanted = dive.generate(backbone, texts[:2], max_new_tokens=LENGTH)
    assert first.token_ids == wanted[0].token_ids
    compared(generate(engine, texts[:2], max_new_tokens=LENGTH), wanted)


class Counted(Study):
    """A study that notes when its films are opened."""

    opened: ClassVar[list[str]] = []

    def load_images(self):
        self.opened.append(self.id)
        return super().load_images()


def test_films_are_opened_when_their_turn_comes(llava):
    _, _, engine = llava
    film = draw_film(4)
    given = [Counted(f"s-{index}", images=(film,)) for index in range(60)]
    reports = iter_reports(engine, given, max_new_tokens=4)
    for count, _ in enumerate(reports, 1):
        # decoding, waiting for the engine, decoded ahead, and being read
        assert len(set(Counted.opened)) <= count + (BATCH + BATCH // 4) + BATCH + BATCH
        if count == 20:
            break
    reports.close()
    assert len(set(Counted.opened)) < 40


def test_the_same_study_twice_and_images_without_files(llava):
    _, backbone, engine = llava
    film = draw_film(4)
    given = [film, film, [film, draw_film(5)], film]
    wanted = dive.generate(backbone, given, max_new_tokens=8)
    reports = generate(engine, given, max_new_tokens=8)
    compared(reports, wanted)
    assert [one.images for one in reports][2] == ["image 0", "image 1"]


@pytest.mark.slow
def test_max_model_len_shortens_reports_and_refuses_prompts(tmp_path, texts):
    folder = save_served("Llama", tmp_path)
    backbone = dive.load_backbone(folder, device="cpu")
    lengths = [one.prompt_tokens for one in dive.generate(backbone, texts, max_new_tokens=1)]
    assert min(lengths) < max(lengths)
    state = torch.get_rng_state()
    options = {**EAGER, "max_model_len": max(lengths)}
    skipped = Skipped()
    with pytest.warns(UserWarning, match="max_model_len of"):
        reports = generate(
            folder,
            texts,
            max_new_tokens=LENGTH,
            engine_options=options,
            on_error="skip",
            skipped=skipped,
        )
    assert torch.equal(torch.get_rng_state(), state)  # vLLM seeds it where it runs in this process
    left = max(lengths) - min(lengths)
    assert {one.num_tokens for one in reports} == {min(left, LENGTH)}
    assert len(skipped) == sum(length == max(lengths) for length in lengths)
    assert len(reports) + len(skipped) == len(texts)


@pytest.mark.slow
def test_unusable_logits_end_the_report_and_no_other(tmp_path, texts):
    folder = save_served("Llama", tmp_path)
    free = dive.generate(dive.load_backbone(folder, device="cpu"), texts, max_new_tokens=LENGTH)
    # a token that some reports write and no prompt has: its embedding makes all logits NaN
    written = [set(one.token_ids[:-1]) for one in free]
    some = set.union(*written) - set.intersection(*written)
    token = next(one for one in sorted(some) if one not in in_prompts(folder, texts))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.warns(UserWarning, match="logits were not finite after"):
        wanted = dive.generate(
            dive.load_backbone(folder, device="cpu"), texts, max_new_tokens=LENGTH
        )
    with pytest.warns(UserWarning, match="logits were not finite after"):
        reports = generate(folder, texts, max_new_tokens=LENGTH, engine_options=EAGER)
    assert {one.finish_reason for one in wanted} == {"error", "length"}
    for one, other in zip(reports, wanted, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        assert (one.error is None) == (other.error is None)


def in_prompts(folder, studies):
    """All tokens in the prompts of the studies."""
    prompter = Prompter(load_without_weights(folder))
    return {one for study in studies for one in prompter.encode(study)["input_ids"][0].tolist()}


def test_wrong_arguments_raise_before_an_engine_is_opened(llama, texts, tmp_path):
    folder, _, engine = llama
    for arguments, message in (
        ({"num_beams": 2}, "num_beams: vLLM has no such setting"),
        ({"batch_size": 0}, "batch_size is 0, want a whole number from 1 on"),
        ({"engine_options": {"speed": 1}}, "engine_options has 'speed'"),
        ({"engine_options": {"dtype": "float16"}}, "engine_options has 'dtype': give dtype"),
        ({"device": "cuda"}, "device is 'cuda', and this vLLM computes on 'cpu'"),
    ):
        with pytest.raises(DiveError, match=message):
            iter_reports(folder, texts, **arguments)
    with pytest.raises(DiveError, match="batch_size is 9, and an open Engine has its own"):
        iter_reports(engine, texts, batch_size=9)
    other = save_served("Llama", tmp_path / "novel")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["NovelModel"]}))
    with pytest.raises(DiveError, match="has no model for NovelModel; engine 'transformers' or"):
        iter_reports(other, texts)


def test_an_engine_that_cannot_open_says_why_in_one_line(texts, tmp_path):
    folder = save_served("Llama", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DiveError, match="cannot open this backbone") as caught:
        generate(folder, texts, engine_options=EAGER)
    assert "\n" not in str(caught.value)
