"""Drawn demonstrations, and the hidden states of the teacher that is shown them."""

import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny_steering import steered_layers

import dive
from dive.backbone.structure import decoder_layers
from dive.data import Skipped, read_studies
from dive.decisive.tokens import DecisiveTokens
from dive.errors import DiveError
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter
from dive.training.survey import survey
from dive.training.teacher import Teacher


@pytest.fixture(params=["tiny_llava", "tiny_llava_mistral", "tiny_qwen", "tiny_gemma"])
def backbone(request):
    return dive.load_backbone(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def studies(studies_folder):
    return read_studies(studies_folder / "studies.jsonl")


def look(backbone, studies):
    prompter = Prompter(backbone)
    examples, found = survey(
        studies, prompter, DecisiveTokens(backbone.tokenizer), skipped=Skipped()
    )
    return prompter, examples, found


def test_draws_repeat_and_differ_by_study_seed_and_epoch(studies):
    drawn = Demonstrations(studies, 2, seed=3, redraw=True)
    again = Demonstrations(list(studies), 2, seed=3, redraw=True)
    table = {
        (s.id, epoch): [d.id for d in drawn.of(s, epoch)] for s in studies for epoch in range(8)
    }
    for study in studies:
        for epoch in range(8):
            assert [d.id for d in again.of(study, epoch)] == table[study.id, epoch]
        assert len({tuple(table[study.id, epoch]) for epoch in range(8)}) > 1
    other = Demonstrations(studies, 2, seed=4, redraw=True)
    assert any([d.id for d in other.of(s)] != table[s.id, 0] for s in studies)
    fixed = Demonstrations(studies, 2, seed=3)
    assert all(fixed.of(s, 0) == fixed.of(s, 3) for s in studies)


def test_no_study_of_the_same_patient_demonstrates(studies):
    for count in (None, 3):
        chosen = Demonstrations(studies, count)
        for study in studies:
            shown = chosen.of(study)
            assert len(shown) == (count or len(studies) - 2)  # patients have two studies each
            assert all(one.patient != study.patient for one in shown)


def test_draws_are_even_and_do_not_go_through_the_pool(studies):
    """By patient and by id; 50,000 draws from 50,000 studies take seconds."""
    pool = [replace(studies[0], id=f"s{n}", patient=f"p{n // 3}") for n in range(12)]
    counts: Counter[str] = Counter()
    for seed in range(900):
        shown = Demonstrations(pool, 3, seed=seed).of(pool[4])
        assert len({one.id for one in shown}) == 3
        counts.update(one.id for one in shown)
    assert set(counts) == {f"s{n}" for n in (0, 1, 2, *range(6, 12))}
    assert max(counts.values()) < 360 and min(counts.values()) > 240  # 300 each, 5 sigma
    alone = replace(studies[0], id="s4", patient=None)
    assert {one.id for one in Demonstrations(pool, 11).of(alone)} == {
        f"s{n}" for n in range(12) if n != 4
    }
    many = [replace(studies[0], id=f"s{n}", patient=f"p{n // 2}") for n in range(50_000)]
    start, drawn = time.process_time(), Demonstrations(many, 4)
    for study in many:
        drawn.of(study)
    assert time.process_time() - start < 60  # 2.5 s here; through the pool it would be an hour


def test_too_few_to_draw_from(studies):
    with pytest.raises(DiveError, match="want 5 demonstrations, and there are 4"):
        Demonstrations(studies, 5).of(studies[0])
    for bad in ([], None):
        with pytest.raises(DiveError, match="demonstrations"):
            Demonstrations(studies if bad is None else bad, 0 if bad is None else None)


def test_lengths_are_known_without_opening_an_image(backbone, studies):
    prompter, examples, found = look(backbone, studies)
    shown = Demonstrations(examples.studies, 2)
    lengths = Teacher(prompter, examples, shown).prompt_lengths(found)
    real = [prompter.encode(s, shown.of(s))["input_ids"].shape[1] for s in examples.studies]
    assert lengths == real
    assert found.prompt_lengths == [
        prompter.encode(s)["input_ids"].shape[1] for s in examples.studies
    ]


def test_an_overlong_teacher_is_refused_with_its_length(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    prompter, examples, found = look(backbone, studies)
    prompter.max_length = max(found.prompt_lengths) + max(found.response_lengths) + 5
    with pytest.raises(DiveError, match=r"teacher's prompt with 4 demonstrations has \d+ tokens"):
        Teacher(prompter, examples, Demonstrations(studies, 4)).prompt_lengths(found)


def test_states_are_those_of_the_bare_model_on_the_kshot_prompt(backbone, studies):
    prompter, examples, _ = look(backbone, studies)
    shown = Demonstrations(studies, 2)
    teacher = Teacher(prompter, examples, shown)
    states = teacher.hidden([1, 0])
    expected = []
    for index in (1, 0):
        study, ids = studies[index], examples[index].response.ids
        inputs = prompter.with_response(prompter.encode(study, shown.of(study)), ids)
        with torch.no_grad():
            out = backbone.model(**prompter.to_device(inputs), output_hidden_states=True)
        # the row before each response token; hidden_states[-1] is after the final norm
        expected.append(out.hidden_states[-1][0, -len(ids) - 1 : -1])
    assert torch.equal(states, torch.cat(expected))


def test_the_teacher_is_never_steered_and_runs_once(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    prompter, examples, _ = look(backbone, studies)
    bare = Teacher(prompter, examples, Demonstrations(studies, 1)).hidden([0, 3])
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone)
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.up)
    runs = []
    handle = decoder_layers(backbone)[0].register_forward_hook(lambda *_: runs.append(1))
    with dive.steer(backbone, adapter) as attachment, steered_layers(adapter) as steered:
        teacher = Teacher(prompter, examples, Demonstrations(studies, 1))
        assert torch.equal(teacher.hidden([0, 3]), bare)
        assert not steered and attachment.enabled
        assert len(runs) == 2
        assert torch.equal(teacher.hidden([3, 0], epoch=5), teacher.hidden([3, 0]))
        assert len(runs) == 2
    handle.remove()


def test_redrawn_demonstrations_run_the_teacher_in_every_epoch(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    prompter, examples, _ = look(backbone, studies)
    teacher = Teacher(prompter, examples, Demonstrations(studies, 2, redraw=True))
    first = teacher.hidden([0, 1, 2], epoch=0)
    later = [teacher.hidden([0, 1, 2], epoch=e) for e in (1, 2, 3)]
    assert any(not torch.equal(first, states) for states in later)
    assert torch.equal(teacher.hidden([0, 1, 2], epoch=0), first)
    assert not any(teacher.knows(index) for index in range(3)) and not teacher._kept


@pytest.mark.parametrize("room", [0, 1, 2.5, 6, 100])
def test_what_does_not_fit_is_computed_again(room, tiny_llava, studies, monkeypatch, caplog):
    """The capacity is kept, and states are the same bit for bit."""
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    prompter, examples, _ = look(backbone, studies)
    shown = Demonstrations(studies, 1)
    each = [Teacher(prompter, examples, shown).hidden([index]) for index in range(6)]
    sizes = [states.numel() * states.element_size() for states in each]
    budget = int(room * max(sizes))
    monkeypatch.setattr("dive.training.teacher.KEPT_BYTES", budget)
    teacher = Teacher(prompter, examples, shown)
    for _epoch in range(2):
        assert torch.equal(teacher.hidden(range(6)), torch.cat(each))
    known = [index for index in range(6) if teacher.knows(index)]
    left, fit = budget, []
    for index, size in enumerate(sizes):
        if size <= left:
            left -= size
            fit.append(index)
    assert known == fit and len(known) == {0: 0, 100: 6, 6: 6}.get(room, len(fit))
    # with everything that a view would keep in memory
    held = sum(kept.untyped_storage().nbytes() for kept in teacher._kept.values())
    assert held == sum(sizes[index] for index in known) <= budget
    told = caplog.text.count("the teacher's hidden states of")
    assert told == (len(known) < 6)
    runs = []
    handle = decoder_layers(backbone)[0].register_forward_hook(lambda *_: runs.append(1))
    teacher.hidden(range(6), epoch=1)
    handle.remove()
    assert len(runs) == 6 - len(known)
