"""Visual weights: the divergence, the images that are drawn, and what a report's tokens get."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import tiny
import torch
from trainings import short

import dive
from dive.backbone.structure import Head
from dive.data import Skipped, Study, read_studies
from dive.decisive.tokens import EOS, PATHOLOGY, TEMPLATE
from dive.demo.methods import BACKBONE, PROMPT, open_hospital
from dive.errors import DiveError
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter
from dive.training.examples import in_memory
from dive.training.other_images import OTHERS, OtherImages, _shuffled
from dive.training.survey import survey
from dive.training.teacher import Teacher
from dive.training.visual_weights import EndAlone, VisualWeights, divergence, visual_values


def louder(backbone, factor=40.0):
    """The same model with sharper expectations: those of a random one hardly depend on an image."""
    head, embeddings = backbone.model.get_output_embeddings(), backbone.model.get_input_embeddings()
    with torch.no_grad():
        if head.weight is not embeddings.weight:
            head.weight.mul_(factor)
        for name, weight in backbone.model.named_parameters():
            if name.endswith("mm_input_projection_weight"):  # 0 in a new Gemma 3
                weight.normal_(generator=torch.Generator().manual_seed(0))
    return backbone


@pytest.fixture(params=["tiny_llava", "tiny_llava_mistral", "tiny_qwen", "tiny_gemma"])
def backbone(request):
    return louder(dive.load_backbone(request.getfixturevalue(request.param), device="cpu"))


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Twelve studies of six patients; every third has two images."""
    folder = tiny.save_studies(tmp_path_factory.mktemp("twelve"), 12)
    return read_studies(folder / "studies.jsonl")


def made(backbone, studies, shown=2, seed=0, weights=(2.5, 2.5), features=None):
    """Examples, and their visual weights; a number of demonstrations is drawn from the studies."""
    prompter = Prompter(backbone)
    examples, _ = survey(studies, prompter, EndAlone(backbone.tokenizer), skipped=Skipped())
    demonstrations = Demonstrations(*((studies, shown) if isinstance(shown, int) else (shown,)))
    return VisualWeights(OtherImages(Teacher(prompter, examples, demonstrations), seed), *weights)


def computed(visual, index):
    images, examples = visual.images, visual.images.examples
    study = in_memory(examples.studies[index])
    prompts = images.prompts(examples[index], study, bad := {}, bad)
    assert not bad
    states = visual.compute(examples[index], prompts)
    return visual.of(index), states


def by_hand(backbone, study, shown, others, report_of):
    """v from the logits of the model's own forward, with prompts made here."""
    prompter = Prompter(backbone)
    ids = prompter.response(report_of).ids

    def expected(query):
        inputs = prompter.with_response(prompter.encode(query, shown), ids)
        with torch.no_grad():
            logits = backbone.model(**prompter.to_device(inputs)).logits[0, -len(ids) - 1 : -1]
        return logits.double().softmax(-1)

    p = expected(study)
    q = torch.stack([expected(replace(study, images=one.images)) for one in others]).mean(0)
    return (p * (p.log() - q.log())).sum(-1)


def test_weights_are_those_of_the_models_own_logits(backbone, studies):
    visual = made(backbone, studies)
    demonstrations = Demonstrations(studies, 2)
    seen = []
    for index in (0, 2, 5):  # with one and with two images
        study = studies[index]
        values, states = computed(visual, index)
        others = [studies[at] for at in visual.images.others(index)]
        assert len(others) == OTHERS
        wanted = by_hand(backbone, study, demonstrations.of(study), others, study)
        assert torch.allclose(values.double(), wanted, rtol=1e-4, atol=1e-7)
        assert wanted.max() > 1e-3
        example = visual.weighed(visual.images.examples[index])
        shares = 1 - torch.exp(-wanted[:-1])
        assert example.weights[:-1] == pytest.approx((1 + 1.5 * shares).tolist(), rel=1e-5)
        assert example.weights[-1] == 2.5 and example.classes[-1] == EOS
        assert [c == PATHOLOGY for c in example.classes[:-1]] == (shares >= 0.5).tolist()
        seen.append(values)
        # the states of its own prompt serve the loss
        assert torch.equal(states, visual.images.teacher.hidden([index]))
    assert len({len(values) for values in seen}) > 1


def test_every_study_in_one_call(tiny_llava, studies):
    backbone = louder(dive.load_backbone(tiny_llava, device="cpu"))
    each = visual_values(Prompter(backbone), studies, Demonstrations(studies, 2, seed=3), seed=3)
    visual = made(backbone, studies, seed=3)
    visual.images.teacher.demonstrations.seed = 3
    assert len(each) == 12
    for index in (1, 7):
        assert torch.equal(each[index], computed(visual, index)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 64 << 20])
def test_divergence_with_bias_and_softcap(dtype, chunk, monkeypatch):
    monkeypatch.setattr("dive.training.visual_weights.CHUNK_BYTES", chunk)
    torch.manual_seed(0)
    weight, bias = torch.randn(50, 8).to(dtype), torch.randn(50).to(dtype)
    bias[7] = -math.inf  # a token that is never expected
    states, *others = torch.randn(4, 5, 8).to(dtype)

    def expected(hidden, cap):
        logits = hidden.double() @ weight.double().T + bias.double()
        return (logits if cap is None else cap * torch.tanh(logits / cap)).softmax(-1)

    for cap in (None, 2.0):
        p = expected(states, cap)
        q = torch.stack([expected(one, cap) for one in others]).mean(0)
        wanted = torch.special.xlogy(p, p / q).nan_to_num().sum(-1)
        got = divergence(Head(weight, bias, cap), states, others)
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), wanted, rtol=1e-4), cap
        assert wanted.min() > 0.01


def test_one_picture_for_all_gives_weight_one(tiny_llava, studies):
    backbone = louder(dive.load_backbone(tiny_llava, device="cpu"))
    image = studies[0].load_images()[0]
    for patients in (6, 4):  # a mean over four, and over three, which is no power of two
        same = [replace(one, images=(image,)) for one in studies[: 2 * patients]]
        visual = made(backbone, same)
        for index in range(4):
            computed(visual, index)
            example = visual.weighed(visual.images.examples[index])
            assert set(torch.tensor(example.weights[:-1]).tolist()) == {1.0}
            assert set(example.classes[:-1]) == {TEMPLATE}
    # and another picture does not
    visual = made(backbone, [replace(same[0], images=studies[3].images), *same[1:]])
    assert computed(visual, 0)[0].max() > 1e-4


def test_the_written_token_does_not_matter(tiny_llava, studies):
    backbone = louder(dive.load_backbone(tiny_llava, device="cpu"))
    shown, report = studies[2:4], studies[0].findings
    words = report.split()
    half = len(words) // 2
    twin = replace(studies[0], findings=" ".join([*words[:half], "nodule", *words[half + 1 :]]))
    one, other = (made(backbone, [study, *studies[1:]], shown) for study in (studies[0], twin))
    ids = [visual.images.examples[0].response.ids for visual in (one, other)]
    apart = next(n for n, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    values = [computed(visual, 0)[0] for visual in (one, other)]
    assert apart > 2 and ids[0][apart] != ids[1][apart]
    # the position that predicts the two tokens has one value; those after them differ
    assert torch.allclose(values[0][: apart + 1], values[1][: apart + 1], rtol=1e-4, atol=1e-9)
    assert not torch.allclose(values[0][apart + 1 : -1][:3], values[1][apart + 1 : -1][:3])


def test_the_draw(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    images = made(backbone, studies).images
    drawn = images.check()
    for index, study in enumerate(studies):
        patients = [studies[at].patient for at in drawn[index]]
        assert study.patient not in patients and len(set(patients)) == OTHERS
        if len(study.images) == 1:
            assert all(len(studies[at].images) == 1 for at in drawn[index])
        else:  # three others have two, but for its demonstrations and their patients' other studies
            theirs = {one.patient for one in images.teacher.demonstrations.of(study)}
            two = {one.patient for one in studies if len(one.images) == 2}
            first = two - theirs - {study.patient}
            assert set(patients[: len(first)]) == first
    # whatever was drawn before, and by another object
    again = made(backbone, list(studies)).images
    assert [again.others(index) for index in reversed(range(12))] == drawn[::-1]
    assert made(backbone, studies, seed=1).images.check() != drawn


def test_images_of_demonstrations_are_drawn_last(tiny_llava, studies):
    """The teacher has their reports before it."""
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    alone = [one for one in studies if len(one.images) == 1]  # of six patients, mostly
    for fixed in (True, False):
        visual = made(backbone, alone, alone[:2] if fixed else 1)
        shown = visual.images.teacher.demonstrations
        for index, study in enumerate(alone):
            theirs = {one.patient for one in shown.of(study)}
            patients = [alone[at].patient for at in visual.images.others(index)]
            left = {one.patient for one in alone} - theirs - {study.patient}
            known = [patient in theirs for patient in patients]
            assert known == sorted(known) and known.count(False) == min(OTHERS, len(left))


def test_shuffled_is_a_fair_order_and_takes_only_what_is_asked_for():
    import random

    items = list(range(5))
    counts = [[0] * 5 for _ in range(5)]
    for seed in range(2000):
        order = list(_shuffled(items, random.Random(seed)))
        assert sorted(order) == items
        for place, one in enumerate(order):
            counts[place][one] += 1
    assert all(320 < count < 480 for row in counts for count in row)  # 400 each, 4 sigma
    assert len(set(islice(_shuffled(range(10**9), random.Random(0)), 50))) == 50


def test_few_other_patients(tiny_llava, studies, caplog):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    visual = made(backbone, studies[:4], studies[4:6])
    assert [len(chosen) for chosen in visual.images.check()] == [1] * 4
    assert "4 studies have fewer than 4 other patients" in caplog.text
    assert computed(visual, 0)[0].isfinite().all()
    with pytest.raises(DiveError, match="all 2 studies to learn from are of one patient, want 4"):
        made(backbone, studies[:2], studies[4:6]).images.check()


def test_on_the_built_in_world_the_picture_decides_where_reports_part():
    """Tokens at which reports with the same words before them go on in different ways, against
    those at which they all go on alike."""
    backbone = dive.load_backbone(BACKBONE, dtype="float32", device="cpu")
    hospital = open_hospital(2901, train=24, test=1)
    prompter = Prompter(backbone, prompt=PROMPT)
    each = visual_values(prompter, hospital.train, Demonstrations(hospital.demonstrations))
    reports = [tuple(prompter.response(study).ids) for study in hospital.train]
    follow, count = {}, {}
    for ids in reports:
        for at, token in enumerate(ids):
            follow.setdefault(ids[:at], set()).add(token)
            count[ids[:at]] = count.get(ids[:at], 0) + 1
    parts, alike = [], []
    for ids, values in zip(reports, each, strict=True):
        for at, value in enumerate(values.tolist()):
            if count[ids[:at]] > 1:
                (parts if len(follow[ids[:at]]) > 1 else alike).append(value)
    assert len(parts) > 50 and len(alike) > 50
    ratio = (sum(parts) / len(parts)) / (sum(alike) / len(alike))
    assert ratio > 30, ratio  # 114


# what cannot be used


def test_a_text_backbone_is_refused(tiny_llama):
    backbone = dive.load_backbone(tiny_llama, device="cpu")
    words = [Study(id=str(n), images=(), findings="No effusion.") for n in range(3)]
    with pytest.raises(DiveError, match="decisive is 'visual', and LlamaForCausalLM takes no imag"):
        dive.distill(backbone, words, 1, short(decisive="visual"))


def test_a_study_without_an_image_is_refused_before_the_first_step(llava, studies, recorder):
    bare = replace(studies[3], images=())
    with pytest.raises(DiveError, match="has no image, want one or more"):
        dive.distill(llava, [*studies[:3], bare], 1, short(decisive="visual"))
    assert not recorder


def test_too_long_with_anothers_images_is_found_before_the_first_step(tiny_qwen, studies):
    """Its own prompt fits, the one with a larger image does not."""
    backbone = dive.load_backbone(tiny_qwen, device="cpu")
    small = tiny.draw_film(3, size=(30, 30))
    one = [one for one in studies if len(one.images) == 1]
    mixed = [replace(one[0], images=(small,)), *one[1:]]
    prompter = Prompter(backbone)
    examples, found = survey(mixed, prompter, EndAlone(backbone.tokenizer), skipped=Skipped())
    teacher = Teacher(
        prompter, examples, Demonstrations([replace(one[1], id="shown", patient="shown")])
    )
    images = OtherImages(teacher, 0)
    drawn = [[1, 2], *([0] for _ in mixed[1:])]
    own = teacher.prompt_lengths(found)
    longest = teacher.prompt_lengths(found, others=drawn)
    for at in (0, 1):
        query = [mixed[0], mixed[1]][at]
        pictures = [mixed[n].images for n in (at, *drawn[at])]
        shown = teacher.demonstrations.of(query)
        real = [prompter.encode(replace(query, images=i), shown) for i in pictures]
        assert longest[at] == max(inputs["input_ids"].shape[1] for inputs in real)
    assert longest[0] > own[0]
    prompter.max_length = own[0] + max(found.response_lengths)
    with pytest.raises(DiveError, match=r"and the images of .* has \d+ tokens"):
        teacher.prompt_lengths(found, others=[images.others(n) for n in range(len(mixed))])


def test_logits_that_are_not_finite(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    visual = made(backbone, studies)
    with torch.no_grad():
        backbone.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(DiveError, match="study-00.*the teacher's logits are not finite"):
        computed(visual, 0)
    assert not visual.knows(0)
