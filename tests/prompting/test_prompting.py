"""Prompts and answers: token for token those of the processor's own chat template."""

import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import draw_film
from tiny_steering import for_backbone
from transformers import PreTrainedTokenizerFast

import dive
from dive.data import Study
from dive.errors import DiveError
from dive.prompting.batch import response_positions, response_targets, sequence_names
from dive.prompting.prompter import (
    DEFAULT_PROMPTS,
    Prompter,
)
from dive.prompting.templates import assistant_turn


@pytest.fixture
def prompter(any_backbone):
    return Prompter(any_backbone)


@pytest.fixture
def cases(any_backbone, studies):
    return for_backbone(any_backbone, studies)


def conversation(prompter, messages, images, generation_prompt=True):
    """Ids of a conversation by transformers alone: its template, its processor."""
    if not prompter.sees:
        return prompter.tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation_prompt, return_dict=True
        )["input_ids"]
    films = iter(images)
    messages = [
        {**m, "content": [
            {"type": "image", "image": next(films)} if p["type"] == "image" else p
            for p in m["content"]
        ]}
        for m in messages
    ]  # fmt: skip
    return prompter.processor.apply_chat_template(
        messages,
        add_generation_prompt=generation_prompt,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )["input_ids"][0].tolist()


def images_of(*studies):
    return [image for study in studies for image in study.load_images()]


def tokens_of(prompter, film):
    return prompter.count_image_tokens(prompter.encode(Study("one image", (film,))))


def tokens_of_an_image(prompter):
    return {"<image>": 16, "<image_soft_token>": 4}.get(
        prompter.tokenizer.convert_ids_to_tokens(prompter.backbone.image_token_id), 6
    )


@pytest.mark.parametrize("shots", [0, 2])
def test_prompt_ids_are_those_of_apply_chat_template(prompter, cases, shots):
    query, shown = cases[2], cases[:shots]  # a frontal and a lateral view
    encoded = prompter.encode(query, shown)
    wanted = conversation(prompter, prompter.messages(query, shown), images_of(*shown, query))
    assert encoded["input_ids"][0].tolist() == wanted
    assert encoded["attention_mask"].all()
    bos = prompter.tokenizer.bos_token_id
    assert bos is None or (wanted[0] == bos and wanted.count(bos) == 1)
    films = images_of(*shown, query)
    if prompter.sees:
        expected = len(films) * tokens_of_an_image(prompter)
        assert prompter.count_image_tokens(encoded) == expected
        pixels = encoded["pixel_values"]
        assert pixels.dtype == torch.float32 and pixels.device.type == "cpu"
    else:
        assert not films and prompter.count_image_tokens(encoded) == 0
        assert set(encoded) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("target", ["findings", "impression", "both"])
def test_prompt_and_answer_are_the_whole_conversation(any_backbone, cases, target):
    prompter, study = Prompter(any_backbone, target=target), cases[0]
    encoded, response = prompter.encode(study), prompter.response(study)
    joined = prompter.with_response(encoded, response.ids)["input_ids"][0].tolist()
    messages = [*prompter.messages(study), assistant_turn(study.report(target))]
    whole = conversation(prompter, messages, images_of(study), generation_prompt=False)
    end = prompter.end_token_id
    assert response.ids.count(end) == 1 and response.ids[-1] == end
    if end in whole[encoded["input_ids"].shape[1] :]:
        assert whole[: len(joined)] == joined
    else:  # LLaVA's template leaves the end token out, and closes with a space
        assert whole[: len(joined) - 1] == joined[:-1]
    decoded = prompter.tokenizer.decode(response.ids[:-1])
    assert decoded.strip() == response.text == study.report(target)


def test_teacher_and_student_share_the_answers_ids(prompter, cases):
    response = prompter.response(cases[1]).ids
    for shown in ([], cases[2:4]):
        prompt = prompter.encode(cases[1], shown)
        joined = prompter.with_response(prompt, response)
        length = prompt["input_ids"].shape[1]
        assert joined["input_ids"][0, length:].tolist() == response
        assert torch.equal(joined["input_ids"][:, :length], prompt["input_ids"])


REPORTS = [
    "The heart is normal in size. The lungs are clear.",
    "Findings: 4 cm nodule; no effusion/pneumothorax (see CT).\nStable – unchanged.",
    "ärztlich: keine Ergüsse, Ø 5 mm. 肺野清晰。",
    "  leading and trailing blanks  ",
    "Line one.\n\nLine two.",
    "mild",
    "1. Cardiomegaly.",
]


@pytest.mark.parametrize("report", REPORTS)
def test_offsets_tile_the_report(prompter, cases, report):
    study = replace(cases[0], findings=report)
    text, ids, offsets = prompter.response(study)
    assert text == report.strip() and len(offsets) == len(ids) - 1
    covered = set()
    for index, (start, end) in zip(ids, offsets, strict=False):
        assert 0 <= start <= end <= len(text)
        covered |= set(range(start, end))
        piece = prompter.tokenizer.decode([index])
        if start < end and "�" not in piece and len(piece.strip()) > 1:
            assert text[start:end].strip() == piece.strip()
    missed = {text[place] for place in range(len(text)) if place not in covered}
    assert not missed - {" ", "\n"}


def test_an_answer_that_holds_a_special_token_is_refused(prompter, cases):
    token = prompter.tokenizer.convert_ids_to_tokens(prompter.end_token_id)
    study = replace(cases[0], findings=f"Clear.{token} Really.")
    with pytest.raises(DiveError, match=r"study-00.*the report holds the special token"):
        prompter.response(study)


def test_special_tokens_in_texts_are_refused_wherever_they_are(any_backbone, prompter, cases):
    """As ids, they would be images and ends of turns; other text in angle brackets stays text."""
    tokenizer = any_backbone.tokenizer
    marks = {tokenizer.convert_ids_to_tokens(prompter.end_token_id), *tokenizer.all_special_tokens}
    marks = {mark for mark in marks if mark != tokenizer.unk_token}
    if any_backbone.image_token_id is not None:
        marks.add(tokenizer.convert_ids_to_tokens(any_backbone.image_token_id))
    assert marks
    for mark in sorted(marks):
        text = f"Cough {mark} since May."
        with pytest.raises(DiveError, match=r"the prompt holds the special token .*want plain"):
            Prompter(any_backbone, prompt=text)
        for study, shown, what in [
            (replace(cases[0], indication=text), [], "study-00.*: the indication"),
            (cases[0], [replace(cases[1], indication=text)], "study-01.*: the indication"),
            (cases[0], [replace(cases[1], findings=text)], "study-01.*: the report"),
        ]:
            with pytest.raises(DiveError, match=f"{what} holds the special token"):
                prompter.encode(study, shown)
        with pytest.raises(DiveError, match=r"study-00.*the report holds the special token"):
            prompter.response(replace(cases[0], findings=text))
    plain = replace(cases[0], indication="Size < 3 cm > 2 cm, <b>, [x], a|b, image, s, !")
    assert prompter.encode(plain)["input_ids"].shape[0] == 1


def test_absent_reports_and_slow_tokenizers_are_refused(tiny_llama, studies):
    backbone = dive.load_backbone(tiny_llama)
    prompter = Prompter(backbone, target="both")
    study = replace(studies[0], images=())
    with pytest.raises(
        DiveError, match="studies.jsonl:1: study 'study-00': 'impression' is absent"
    ):
        prompter.response(replace(study, impression=None))
    with pytest.raises(DiveError, match="'findings' is empty; the target is 'both'"):
        prompter.encode(study, [replace(study, findings=" ")])

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    backbone.processor.__class__ = Slow
    with pytest.raises(DiveError, match="Slow returns no character offsets"):
        prompter.response(study)


def test_the_prompts_words(any_backbone, cases):
    prompter = Prompter(any_backbone, prompt="Report, please.")
    assert "Indication: Cough and fever.\nReport, please." in prompter.render(cases[0])
    assert "Indication" not in prompter.render(cases[1])
    assert DEFAULT_PROMPTS["both"] in Prompter(any_backbone, target="both").render(cases[1])
    k_shot = prompter.render(cases[1], [cases[3], cases[5]])
    places = [k_shot.index(one.report()) for one in (cases[3], cases[5])]
    assert places == sorted(places) and cases[1].report() not in k_shot
    assert k_shot.count("Report, please.") == 3


def test_qwens_system_message_is_the_templates_own(tiny_qwen, studies):
    prompter = Prompter(dive.load_backbone(tiny_qwen))
    text = prompter.render(studies[0], studies[1:2])
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert text.count("system") == 1 and text.endswith("<|im_start|>assistant\n")


def test_sequence_tensors_go_on_with_the_texts_value(prompter, cases):
    prompt = prompter.encode(cases[0])
    extra = torch.zeros(1, prompt["input_ids"].shape[1], 2, 3)
    extra[:, -1] = 1
    more = {"cross_attention_mask": extra, "kind_ids": torch.ones_like(prompt["input_ids"])}
    joined = prompter.with_response(prompt | more, [7, 8, 9])
    length = prompt["input_ids"].shape[1]
    for name in sequence_names(prompt):
        assert joined[name].shape == (1, length + 3) and joined[name].dtype == prompt[name].dtype
    assert joined["input_ids"][0, length:].tolist() == [7, 8, 9]
    assert joined["attention_mask"].all()
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in joined:
            assert prompt[name].any() and not joined[name][0, length:].any()
    assert joined["cross_attention_mask"][0, length:].all()
    assert joined["kind_ids"][0, :length].all() and not joined["kind_ids"][0, length:].any()
    expected = {"Gemma3ForConditionalGeneration": "token_type_ids",
                "Qwen2_5_VLForConditionalGeneration": "mm_token_type_ids"}  # fmt: skip
    name = expected.get(type(prompter.backbone.model).__name__)
    assert name is None or name in joined
    if "pixel_values" in prompt:
        assert joined["pixel_values"] is prompt["pixel_values"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_its_rows(prompter, cases, side):
    rows = [prompter.encode(case) for case in (cases[1], cases[2], cases[4])]
    batch = prompter.collate(rows, side)
    longest = max(row["input_ids"].shape[1] for row in rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, longest)
    for index, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        real = slice(longest - length, None) if side == "left" else slice(0, length)
        for name in sequence_names(row):
            assert torch.equal(batch[name][index, real], row[name][0])
        assert batch["attention_mask"][index].sum() == length
        padding = batch["attention_mask"][index] == 0
        assert (batch["input_ids"][index][padding] == prompter.pad_token_id).all()
    if prompter.sees:
        pixels = torch.cat([row["pixel_values"] for row in rows])
        assert torch.equal(batch["pixel_values"], pixels)


def test_image_tensors_of_different_tile_counts_are_padded(tiny_llama):
    prompter = Prompter(dive.load_backbone(tiny_llama))
    ids = {"input_ids": torch.ones(1, 2, dtype=torch.long)}
    small, large = torch.ones(1, 1, 3, 2, 2), torch.ones(1, 2, 3, 2, 4)
    pixels = prompter.collate([ids | {"pixel_values": small}, ids | {"pixel_values": large}])[
        "pixel_values"
    ]
    assert pixels.shape == (2, 2, 3, 2, 4)
    assert pixels[0].sum() == small.sum() and torch.equal(pixels[1:], large)
    with pytest.raises(DiveError, match="some prompts of the batch have 'token_type_ids' and some"):
        prompter.collate([ids, ids | {"token_type_ids": torch.zeros(1, 2)}])
    with pytest.raises(DiveError, match="side is 'top'"):
        prompter.collate([ids], side="top")


@pytest.mark.parametrize("side", ["left", "right"])
def test_response_positions_predict_the_answer(prompter, cases, side):
    prompts = [prompter.encode(case) for case in cases[:3]]
    answers = [prompter.response(case).ids for case in cases[:3]]
    rows = [prompter.with_response(p, a) for p, a in zip(prompts, answers, strict=True)]
    batch = prompter.collate(rows, side)["input_ids"]
    lengths = [p["input_ids"].shape[1] for p in prompts]
    positions = response_positions(lengths, [len(a) for a in answers], batch.shape[1], side)
    assert positions.sum(1).tolist() == [len(a) for a in answers]
    targets = response_targets(batch, positions)
    assert targets.tolist() == [index for answer in answers for index in answer]
    for row, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        first = batch.shape[1] - length - len(answer) if side == "left" else 0
        # the last prompt position predicts the first token; the end token's predicts nothing
        assert not positions[row, : first + length - 1].any()
        assert positions[row, first + length - 1 : first + length + len(answer) - 1].all()
        assert not positions[row, first + length + len(answer) - 1 :].any()


def test_to_device_casts_images_and_nothing_else(tiny_gemma, studies):
    prompter = Prompter(dive.load_backbone(tiny_gemma, dtype="bfloat16"))
    encoded = prompter.encode(studies[0])
    moved = prompter.to_device(encoded)
    assert moved["pixel_values"].dtype == torch.bfloat16
    assert {v.dtype for k, v in moved.items() if k != "pixel_values"} == {torch.int64}
    with pytest.warns(FutureWarning, match=r"Prompter\.place is called to_device now"):
        again = prompter.place(encoded)
    assert all(torch.equal(again[name], value) for name, value in moved.items())


def test_overlong_prompts_and_reports_say_how_long(prompter, cases):
    prompt = prompter.encode(cases[1], cases[2:4])
    length, images = prompt["input_ids"].shape[1], prompter.count_image_tokens(prompt)
    prompter.max_length = length
    said = (
        rf"studies.jsonl:2: study 'study-01': the prompt with 2 demonstrations has {length} tokens "
        rf"\({images} of them for images\); the model's context is {length}"
    )
    with pytest.raises(DiveError, match=said):
        prompter.encode(cases[1], cases[2:4])
    prompter.max_length = length + 1
    prompter.encode(cases[1], cases[2:4])
    prompter.with_response(prompt, [7])
    with pytest.raises(DiveError, match=rf"prompt and report have {length + 2} tokens, 2 of them"):
        prompter.with_response(prompt, [7, 8])


def test_the_context_is_the_text_models(any_backbone, prompter):
    assert (
        prompter.max_length == any_backbone.model.config.get_text_config().max_position_embeddings
    )


def test_a_tokenizers_own_limit_is_kept(tiny_llama, studies):
    """LLaVA-Med's is 2,048 tokens, its decoder has 32,768 positions."""
    backbone = dive.load_backbone(tiny_llama)
    study = replace(studies[0], images=())
    positions = Prompter(backbone).max_length
    for own, wanted in [(2048, 2048), (10 * positions, positions), (int(1e30), positions)]:
        backbone.tokenizer.model_max_length = own
        assert Prompter(backbone).max_length == wanted
    backbone.tokenizer.model_max_length = 20
    with pytest.raises(
        DiveError, match=r"context is 20 by its tokenizer's model_max_length, though .* 4096 pos"
    ):
        Prompter(backbone).encode(study)


def test_an_image_budget_scales_qwens_images_down(tiny_qwen):
    backbone = dive.load_backbone(tiny_qwen)
    film = Image.new("RGB", (280, 140), 90)
    whole = {"shortest_edge": 4 * 28 * 28, "longest_edge": 1280 * 28 * 28}
    backbone.processor.image_processor.size = whole  # the default size
    assert tokens_of(Prompter(backbone, max_image_tokens=None), film) == 50
    assert tokens_of(Prompter(backbone), film) == 50  # within the default of 576
    for budget in (32, 18, 8, 4, 1):
        tokens = tokens_of(Prompter(backbone, max_image_tokens=budget), film)
        assert budget / 2 <= tokens <= budget
    assert dict(backbone.processor.image_processor.size) == whole
    for bad in (0, -3):
        with pytest.raises(DiveError, match="max_image_tokens is"):
            Prompter(backbone, max_image_tokens=bad)


def test_a_full_sized_film_stays_within_the_default_budget(tiny_qwen):
    backbone = dive.load_backbone(tiny_qwen)
    backbone.processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 12845056}
    film = Image.new("L", (2544, 3056))
    tokens = tokens_of(Prompter(backbone), film)
    assert 500 <= tokens <= 576


def test_tiling_is_off_under_a_budget_and_fixed_sizes_are_left(tiny_gemma):
    backbone = dive.load_backbone(tiny_gemma)
    images = backbone.processor.image_processor
    images.do_pan_and_scan = True
    within = Prompter(backbone)
    assert within.image_settings == {"images_kwargs": {"do_pan_and_scan": False}}
    assert tokens_of(within, draw_film(0, size=(200, 60), mode="RGB")) == 4
    assert Prompter(backbone, max_image_tokens=None).image_settings == {}


def test_what_a_study_lacks_or_has_too_much(tiny_llava, tiny_llama, studies, tmp_path):
    prompter = Prompter(dive.load_backbone(tiny_llava))
    with pytest.raises(DiveError, match="study-00.*: has no image, want one or more"):
        prompter.encode(replace(studies[0], images=()))
    with pytest.raises(DiveError, match=r"study-01.*: the indication holds the special .*<image>"):
        prompter.encode(replace(studies[1], indication="An <image> of what?"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DiveError, match=r"study 'x'.*image .1 of 1.: cannot identify"):
        prompter.encode(Study(id="x", images=(tmp_path / "broken.png",)))
    with pytest.raises(DiveError, match=r"study-00.*text model; it takes no image, got 1"):
        Prompter(dive.load_backbone(tiny_llama)).encode(studies[0])
    for options, message in [
        ({"prompt": " "}, "the prompt is empty"),
        ({"target": "x"}, "target is"),
    ]:
        with pytest.raises(DiveError, match=message):
            Prompter(prompter.backbone, **options)


def test_a_tokenizer_that_appends_an_end_token(tiny_llava, studies):
    """Under a plain template transformers would close the prompt before the answer."""
    from tokenizers.processors import TemplateProcessing

    plain = Prompter(dive.load_backbone(tiny_llava)).encode(studies[0])
    backbone = dive.load_backbone(tiny_llava)
    backbone.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert backbone.tokenizer("a")["input_ids"][-1] == 2
    encoded = Prompter(backbone).encode(studies[0])
    assert all(torch.equal(encoded[name], plain[name]) for name in plain)


def test_models_without_a_chat_template(any_backbone, cases):
    processor, own = any_backbone.processor, any_backbone.processor.chat_template
    processor.chat_template = any_backbone.tokenizer.chat_template = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # see test_templates.py
            prompter = Prompter(any_backbone)
    finally:
        processor.chat_template = any_backbone.tokenizer.chat_template = own
    prompt = prompter.encode(cases[1], cases[2:3])
    ids = prompt["input_ids"][0].tolist()
    tokenizer = any_backbone.tokenizer
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert bos is None or (ids[0] == bos and ids.count(bos) == 1)
    assert ids.count(end) == 1 and prompter.end_token_id == end
    shown = prompter.response(cases[2]).ids
    # the demonstration's answer is in the prompt as an answer is taught, end token included
    assert any(ids[at : at + len(shown)] == shown for at in range(len(ids)))


def test_metadata_is_what_another_prompter_is_made_from(any_backbone):
    import json

    prompter = Prompter(any_backbone, prompt="Tell.", target="both", max_image_tokens=99)
    stored = json.loads(json.dumps(prompter.metadata()))
    assert stored == prompter.metadata() and stored["template"] is None
    names = ("prompt", "target", "max_image_tokens", "template")
    assert Prompter(any_backbone, **{name: stored[name] for name in names}).metadata() == stored
    assert stored["end_token_id"] == stored["eos_token_ids"][0]


def test_tokens_that_the_embedding_has_no_row_for(tiny_llava, studies):
    """The tokenizer was added to, and the model was not resized."""
    backbone = dive.load_backbone(tiny_llava)
    rows = backbone.model.get_input_embeddings().num_embeddings
    beyond = len(backbone.tokenizer)
    backbone.tokenizer.add_tokens([f"zz{index}" for index in range(rows - beyond + 2)])
    inside, outside = "zz0" if rows > beyond else "clear", f"zz{rows - beyond + 1}"
    prompter = Prompter(backbone)
    said = f"with the id {rows + 1}, and the model's embedding has {rows} rows"
    good = replace(studies[0], indication=inside, findings=inside)
    assert prompter.encode(good)["input_ids"].max() < rows and prompter.response(good).ids
    with pytest.raises(DiveError, match=f"study .*: the prompt has a token {said}"):
        prompter.encode(replace(studies[0], indication=outside))
    with pytest.raises(DiveError, match=f"study .*: the report has a token {said}"):
        prompter.response(replace(studies[0], findings=outside))
    bad = replace(studies[0], id="bad", indication=outside)
    reports = dive.generate(backbone, [bad, good], max_new_tokens=2, on_error="skip")
    assert [one.id for one in reports] == [good.id]
    with pytest.raises(DiveError, match="the prompt has a token"):
        Prompter(backbone, prompt=f"Write. {outside}")


def test_a_padding_token_without_a_row_is_not_used(tiny_llava, studies):
    """It is masked: any token will do, and no model has to be resized for it."""
    backbone = dive.load_backbone(tiny_llava)
    wanted = [one.token_ids for one in dive.generate(backbone, studies[:3], max_new_tokens=4)]
    rows = backbone.model.get_input_embeddings().num_embeddings
    backbone.tokenizer.add_tokens([f"zz{index}" for index in range(rows + 1)])
    backbone.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert backbone.tokenizer.pad_token_id >= rows
    assert Prompter(backbone).pad_token_id == backbone.tokenizer.eos_token_id
    got = dive.generate(backbone, studies[:3], max_new_tokens=4)
    assert [one.token_ids for one in got] == wanted
