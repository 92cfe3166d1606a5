"""Every further family: attach, teacher, distil, generate, save; and its own particulars."""

import logging
from dataclasses import replace

import pytest
import torch
from tiny_steering import logits, prompts, randomised, steered_layers

import dive
from dive.adapter.attach import steer
from dive.backbone.structure import decoder_layers, last_hidden_state, output_head
from dive.data import Skipped
from dive.decisive.tokens import DecisiveTokens
from dive.prompting.batch import response_positions
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter
from dive.training.calibration import calibrate
from dive.training.survey import survey
from dive.training.teacher import Teacher

PREFIX = ("PaliGemma", "PaliGemma 2")


@pytest.fixture(scope="session")
def backbone(family):
    """Loaded once per family; a test restores it."""
    return dive.load_backbone(family[1], device="cpu")


def fresh(family):
    return dive.load_backbone(family[1], device="cpu")


def answered(prompter, study, ids, shown=()):
    """The model's inputs with `ids` as the answer, and the positions that predict them."""
    prompt = prompter.encode(study, shown)
    length = prompt["input_ids"].shape[1]
    inputs = prompter.to_device(prompter.with_response(prompt, ids))
    return inputs, response_positions([length], [len(ids)], length + len(ids))


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(backbone, studies):
    batch = prompts(backbone, studies[:3])
    bare = logits(backbone.model, batch)
    assert len(decoder_layers(backbone)) == 3
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone)
    with steer(backbone, adapter), steered_layers(adapter) as steered:
        assert torch.equal(logits(backbone.model, batch), bare)
        assert len(steered) == 3
    with steer(backbone, randomised(backbone)):
        assert (logits(backbone.model, batch) - bare).abs().max() > 0.05
    assert torch.equal(logits(backbone.model, batch), bare)


def test_the_head_makes_the_models_own_logits(backbone, studies):
    batch = prompts(backbone, studies[:2])
    with torch.no_grad():
        made = output_head(backbone)(last_hidden_state(backbone, batch))
    assert torch.equal(made, logits(backbone.model, batch))


def test_teacher_lengths_are_exact(backbone, studies):
    prompter = Prompter(backbone)
    examples, found = survey(
        studies, prompter, DecisiveTokens(backbone.tokenizer), skipped=Skipped()
    )
    for count in (1, 3):
        shown = Demonstrations(examples.studies, count)
        lengths = Teacher(prompter, examples, shown).prompt_lengths(found)
        real = [prompter.encode(s, shown.of(s))["input_ids"].shape[1] for s in examples.studies]
        assert lengths == real


@pytest.mark.parametrize("positions", ["all", "response"])
def test_training_and_generation_see_the_same(backbone, studies, positions):
    """Step by step over a cache, in a batch padded on the left, with an adapter: the logits are
    those of one training forward over prompt and answer."""
    prompter = Prompter(backbone)
    pair = [studies[0], studies[2]]
    batch, head = prompts(backbone, pair), output_head(backbone)
    with steer(backbone, randomised(backbone, strength=0.2, positions=positions)) as attached:
        torch.manual_seed(0)  # drawn, as random models tend to repeat the likeliest token
        out = backbone.model.generate(
            **batch, max_new_tokens=6, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=0,
            suppress_tokens=[backbone.image_token_id],
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        stepped = torch.stack(out.logits, dim=1)
        for row, study in enumerate(pair):
            ids = out.sequences[row, -6:].tolist()
            inputs, marked = answered(prompter, study, ids)
            attached.mask = marked if positions == "response" else None
            with torch.no_grad():
                whole = head(last_hidden_state(backbone, inputs)[marked])
            attached.mask = None
            assert len({*ids}) > 2
            torch.testing.assert_close(whole, stepped[row], atol=2e-4, rtol=1e-4)


def test_who_attends_to_whom(family, backbone, studies):
    """PaliGemma: a prompt's token attends to later ones of the prompt; an answer's never does."""
    prompter = Prompter(backbone)
    answer = prompter.response(studies[0]).ids
    inputs, _ = answered(prompter, studies[0], answer)
    length = inputs["input_ids"].shape[1] - len(answer)

    def states(**changes):
        with torch.no_grad():
            return last_hidden_state(backbone, {**inputs, **changes})[0]

    def changed(place):
        ids = inputs["input_ids"].clone()
        ids[0, place] = prompter.tokenizer("left", add_special_tokens=False)["input_ids"][-1]
        assert not torch.equal(ids, inputs["input_ids"])
        return states(input_ids=ids)

    whole = states()
    torch.testing.assert_close(changed(length + 5)[: length + 5], whole[: length + 5])
    in_prompt = changed(length - 2)
    moved = (in_prompt[: length - 2] - whole[: length - 2]).abs().amax() > 1e-3
    assert moved == (family[0] in PREFIX)
    torch.testing.assert_close(states()[:length], last(backbone, prompter, studies[0]))


@torch.no_grad()
def last(backbone, prompter, study):
    return last_hidden_state(backbone, prompter.to_device(prompter.encode(study)))[0]


def test_distil_save_load_generate(family, backbone, studies, tmp_path):
    config = dive.DistillConfig(rank=2, steps=2, batch_size=2, calibration_studies=2)
    adapter = dive.distill(backbone, studies[:4], 1, config, progress=False)
    assert all(layer.up.abs().max() > 0 for layer in adapter.layers.values())
    adapter.save_pretrained(tmp_path / "adapter")
    again = dive.SteeringAdapter.from_pretrained(tmp_path / "adapter")
    assert again.metadata["backbone"]["model_type"] == backbone.model.config.model_type
    options = {"max_new_tokens": 5, "batch_size": 2, "progress": False}
    bare = [one.token_ids for one in dive.generate(backbone, studies[:3], **options)]
    for layer in adapter.layers.values():  # two steps change little, so the change is enlarged
        layer.scale.data.fill_(30.0)
    adapter.save_pretrained(tmp_path / "adapter")
    again = dive.SteeringAdapter.from_pretrained(tmp_path / "adapter")
    made = dive.generate(backbone, studies[:3], adapter=adapter, **options)
    loaded = dive.generate(fresh(family), studies[:3], adapter=again, **options)
    assert [one.token_ids for one in made] == [one.token_ids for one in loaded] != bare
    assert [one.prompt_tokens for one in made] == [
        Prompter(backbone).encode(study)["input_ids"].shape[1] for study in studies[:3]
    ]


def test_interleaved_calls_are_those_of_fresh_models(family, studies):
    """Teacher, student and generate in turn on one model, each as on a model of its own: state that
    a forward leaves on the module (rope_deltas of the Qwen line) affects no other."""

    def parts(model):
        prompter = Prompter(model)
        examples, _ = survey(studies, prompter, DecisiveTokens(model.tokenizer), skipped=Skipped())
        teacher = Teacher(prompter, examples, Demonstrations(studies, 2))
        return prompter, examples, teacher

    def student(model, prompter, examples):
        batch = examples.collate([examples[0], examples[2]])
        with torch.no_grad(), steer(model, randomised(model, strength=0.2)):
            return last_hidden_state(model, prompter.to_device(batch["inputs"]))

    def written(model, which):
        adapter = randomised(model, strength=0.2)
        reports = dive.generate(model, which, adapter=adapter, max_new_tokens=4, progress=False)
        return [one.token_ids for one in reports]

    one = fresh(family)
    prompter, examples, teacher = parts(one)
    got = [
        written(one, studies[:2]),
        teacher.hidden([1]),
        student(one, prompter, examples),
        written(one, studies[2:3]),
        teacher.hidden([2]),
        student(one, prompter, examples),
        logits(one.model, {"input_ids": torch.tensor([[5, 6, 7]])}),
    ]
    models = [fresh(family) for _ in got]
    wanted = [
        written(models[0], studies[:2]),
        parts(models[1])[2].hidden([1]),
        student(models[2], *parts(models[2])[:2]),
        written(models[3], studies[2:3]),
        parts(models[4])[2].hidden([2]),
        student(models[5], *parts(models[5])[:2]),
        logits(models[6].model, {"input_ids": torch.tensor([[5, 6, 7]])}),
    ]
    for place, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        equal = torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        assert equal, f"call {place}"


def test_calibration_measures_every_layer(backbone, studies):
    prompter = Prompter(backbone)
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=1), backbone)
    calibrate(
        backbone, adapter, [answered(prompter, s, prompter.response(s).ids) for s in studies[:2]]
    )
    assert all(float(layer.sigma) not in (0.0, 1.0) for layer in adapter.layers.values())


def test_a_composed_processor_saves_and_loads(backbone, studies, tmp_path):
    backbone.processor.save_pretrained(tmp_path)
    backbone.model.save_pretrained(tmp_path)
    again = dive.load_backbone(tmp_path, device="cpu")
    mine, theirs = (Prompter(one).encode(studies[2]) for one in (backbone, again))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_budget_of_image_tokens(family, backbone, studies, caplog):
    large = replace(
        studies[1], images=tuple(i.resize((300, 260)) for i in studies[1].load_images())
    )
    free = Prompter(backbone, max_image_tokens=None)
    held = Prompter(backbone, max_image_tokens=6)
    with caplog.at_level(logging.WARNING, "dive"):
        counts = [one.count_image_tokens(one.encode(large)) for one in (free, held)]
        held.encode(large)
    said = [record for record in caplog.records if "max_image_tokens is 6" in record.message]
    if family[0] in ("LLaVA", "Gemma 3", "LLaVA-OneVision", "LLaVA-NeXT", *PREFIX):
        assert counts[0] == counts[1]
        assert len(said) == (counts[1] > 6)
    else:
        assert counts[0] > counts[1] <= 6
        assert not said
