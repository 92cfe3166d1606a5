"""Studies as vLLM's requests, against a stand-in for vLLM's renderer that expands placeholders."""

import pytest
import torch
from PIL import Image
from tiny import draw_film, save_tiny_gemma3, save_tiny_llama, save_tiny_llava, save_tiny_qwen25_vl

from dive.backbone.without_weights import load_without_weights
from dive.data.study import Study
from dive.errors import DiveError
from dive.prompting.prompter import Prompter
from dive.vllm.requests import RequestMaker, flat


class Item:
    def __init__(self, pixels):
        self.pixels = pixels

    def get_data(self):
        return {"pixel_values": self.pixels}


class Renderer:
    """Each placeholder becomes 16 image tokens, as LLaVA's tower makes of an image."""

    def __init__(self, prompter):
        self.prompter, self.given, self.changed = prompter, None, 0.0

    def __call__(self, prompts):
        [self.given] = prompts
        token, ids = self.prompter.backbone.image_token_id, []
        for one in self.given["prompt_token_ids"]:
            ids += [one] * 16 if one == token else [one]
        images = self.given.get("multi_modal_data", {}).get("image", [])
        processor = self.prompter.processor
        items = [
            Item(processor.image_processor(one, return_tensors="pt")["pixel_values"] + self.changed)
            for one in images
        ]
        return [{"prompt_token_ids": ids, "mm_kwargs": {"image": items}}]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return Prompter(load_without_weights(save_tiny_llava(tmp_path_factory.mktemp("llava"))))


@pytest.fixture
def study():
    return Study("s-1", images=(draw_film(1), draw_film(2, (90, 60))), indication="Fever.")


def test_vllm_gets_a_placeholder_per_image_and_the_films(llava, study):
    renderer = Renderer(llava)
    shown = Study("d-1", images=(draw_film(3),), findings="The lungs are clear.")
    request = RequestMaker(renderer, 4096).make(llava, study, [shown])
    assert request.token_ids == llava.encode(study, [shown])["input_ids"][0].tolist()
    assert list(request.inputs["prompt_token_ids"]) == request.token_ids
    token = llava.backbone.image_token_id
    assert renderer.given["prompt_token_ids"].count(token) == 3
    films = renderer.given["multi_modal_data"]["image"]
    assert [film.size for film in films] == [(64, 72), (64, 72), (90, 60)]
    assert {film.mode for film in films} == {"RGB"}


def test_a_prompt_that_vllm_expands_otherwise_is_refused_by_its_study(llava, study):
    renderer = Renderer(llava)

    def shorter(prompts):
        [made] = renderer(prompts)
        return [{**made, "prompt_token_ids": made["prompt_token_ids"][:-1]}]

    wanted = len(llava.encode(study)["input_ids"][0])
    with pytest.raises(
        DiveError, match=rf"study 's-1': vLLM makes {wanted - 1} tokens .* {wanted}"
    ):
        RequestMaker(shorter, 4096).make(llava, study)


def test_other_pixels_are_refused(llava, study):
    renderer = Renderer(llava)
    renderer.changed = 1e-3
    with pytest.raises(DiveError, match="study 's-1': vLLM's processor makes other pixels"):
        RequestMaker(renderer, 4096).make(llava, study)


def test_pixels_that_vllm_keeps_in_half_precision_are_the_same(llava, study):
    renderer = Renderer(llava)

    def halved(prompts):
        [made] = renderer(prompts)
        items = [Item(one.pixels.bfloat16()) for one in made["mm_kwargs"]["image"]]
        return [{**made, "mm_kwargs": {"image": items}}]

    assert len(RequestMaker(halved, 4096).make(llava, study)) > 32


def test_an_error_of_vllm_is_the_studys_and_has_none_of_its_text(llava, study):
    def failing(prompts):
        raise ValueError("cannot take 'Fever.' nor /data/p17/film.png")

    with pytest.raises(DiveError, match="study 's-1': vLLM refuses the prompt") as caught:
        RequestMaker(failing, 4096).make(llava, study)
    assert "Fever" not in str(caught.value) and "p17" not in str(caught.value)


def test_a_prompt_beyond_max_model_len_names_both(llava, study):
    length = len(llava.encode(study)["input_ids"][0])
    with pytest.raises(DiveError, match=rf"has {length} tokens, and the engine's max_model_len is"):
        RequestMaker(Renderer(llava), length).make(llava, study)
    shown = [Study("d", images=(draw_film(1),), findings="Clear.")]
    with pytest.raises(DiveError, match="the prompt with 1 demonstrations has"):
        RequestMaker(Renderer(llava), length).make(llava, study, shown)
    assert len(RequestMaker(Renderer(llava), length + 1).make(llava, study)) == length


def test_text_goes_as_its_tokens(tmp_path):
    prompter = Prompter(load_without_weights(save_tiny_llama(tmp_path)))
    given = []

    def same(prompts):
        given.extend(prompts)
        return [dict(prompts[0])]

    study = Study("t", images=(), indication="Cough.")
    request = RequestMaker(same, 4096).make(prompter, study)
    assert given == [{"prompt_token_ids": request.token_ids}]
    assert request.token_ids == prompter.encode(study)["input_ids"][0].tolist()


def test_an_image_budget_reaches_vllms_processor(tmp_path):
    backbone = load_without_weights(save_tiny_qwen25_vl(tmp_path / "qwen"))
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 4 * 28 * 28}
    assert flat(Prompter(backbone, max_image_tokens=4).image_settings) == {"size": size}
    gemma = load_without_weights(save_tiny_gemma3(tmp_path / "gemma"))
    assert flat(Prompter(gemma).image_settings) == {"do_pan_and_scan": False}


def test_placeholders_are_one_per_image_in_every_position(llava, study):
    ids = llava.ids_before_expansion(study)
    whole = llava.encode(study)["input_ids"][0]
    token = llava.backbone.image_token_id
    assert ids.count(token) == 2
    text = whole[whole != token]
    assert torch.equal(torch.tensor([one for one in ids if one != token]), text)
    # no film is opened for them
    missing = Study("m", images=("/nowhere/film.png",))
    assert llava.ids_before_expansion(missing).count(token) == 1
    assert isinstance(study.images[0], Image.Image)
