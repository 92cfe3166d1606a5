"""The study of decisive weights: its world, its slots, its scores, and what a run leaves behind."""

import json

import numpy as np
import pytest
import torch

import dive
from dive.adapter.attach import steer
from dive.demo.methods import BACKBONE, PROMPT
from dive.errors import DiveError
from dive.prompting.prompter import Prompter
from dive.training.loss_watch import NonFiniteLoss
from experiments.decisive_weights import protocol, runner
from experiments.decisive_weights.arms import ARMS, counted, random_words, settings
from experiments.decisive_weights.scores import Scorer, auroc
from experiments.decisive_weights.slots import ABSENT, decision_tree, sentences, unambiguous
from experiments.decisive_weights.world import (
    NOISE,
    NOISY_POSITIVES,
    POSITIVES,
    RARE,
    RARE_CONCEPTS,
    RARE_NAMES,
    closing_sentences,
    draw_wording,
    open_hospital,
)


@pytest.fixture(scope="module")
def backbone():
    return dive.load_backbone(BACKBONE, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def hospital():
    return open_hospital(2901, train=48, test=12, enriched=8)


@pytest.mark.parametrize("number", range(2901, 2907))
def test_rare_findings_are_seen_twice_and_on_one_side(number):
    hospital = open_hospital(number, test=40, enriched=16)
    rare = hospital.train.severities[:, RARE] > 0
    assert rare.sum(0).tolist() == [POSITIVES] * 4
    assert rare.sum(1).max() == 1
    for cases in (hospital.test, hospital.enriched):
        left, right = cases.severities[:, RARE[::2]], cases.severities[:, RARE[1::2]]
        assert not ((left > 0) & (right > 0)).any()
    assert ((hospital.enriched.severities[:, RARE] > 0).sum(1) == 1).all()
    assert (hospital.enriched.severities[:, RARE] > 0).sum(0).tolist() == [4] * 4


def test_noise_hides_a_share_of_the_further_positives():
    hospital = open_hospital(2901, "noisy", test=4, enriched=4)
    rare = hospital.train.severities[:, RARE] > 0
    assert rare.sum(0).tolist() == [POSITIVES + NOISY_POSITIVES] * 4
    wording = hospital.wording
    texts = [report.text for report in hospital.train.reports]
    stated = sum(
        any(
            wording.style.phrase_for(finding, severity) in text
            for finding, severity in zip(RARE, own[list(RARE)], strict=True)
            if severity
        )
        for text, own in zip(texts, hospital.train.severities, strict=True)
    )
    assert rare.sum() - stated == round(NOISE * NOISY_POSITIVES * len(RARE))


def test_a_hospital_is_drawn_anew_the_same():
    one, two = (open_hospital(2902, train=16, test=3, enriched=4) for _ in range(2))
    assert [s.findings for s in one.train.studies] == [s.findings for s in two.train.studies]
    assert one.test.studies[0].images[0].tobytes() == two.test.studies[0].images[0].tobytes()


def test_the_findings_decide_how_a_report_ends(hospital):
    wording = hospital.wording
    advice, notice = wording.advice, wording.notice
    assert closing_sentences(wording, [0] * 13) == []
    assert closing_sentences(wording, [2] + [0] * 12) == []
    assert closing_sentences(wording, [3] + [0] * 12) == [advice]
    assert closing_sentences(wording, [1, 1] + [0] * 11) == [notice]
    assert closing_sentences(wording, [1, 3] + [0] * 11) == [advice, notice]
    for report in hospital.test.reports:
        for before, ends in report.ends:
            assert report.text.startswith(before)
            assert ends == (report.text == before)


@pytest.mark.parametrize("number", range(2901, 2913))
def test_the_answers_of_a_slot_part(number, backbone):
    wording = draw_wording(number)

    def encode(text):
        return backbone.tokenizer(text, add_special_tokens=False)["input_ids"]

    for concept in RARE_CONCEPTS:
        groups = {
            group: [tuple(encode(text)) for text in texts]
            for group, texts in sentences(wording, concept).items()
        }
        assert len(groups) == 3 and ABSENT in groups
        prefixes = unambiguous(groups)
        for group, own in prefixes.items():
            for prefix in own:
                begun = {
                    g for g, all_ in groups.items() for s in all_ if s[: len(prefix)] == prefix
                }
                assert begun == {group}
                shorter = {
                    g
                    for g, all_ in groups.items()
                    for s in all_
                    if s[: len(prefix) - 1] == prefix[:-1]
                }
                assert shorter != {group}
        assert sum(map(len, prefixes.values())) == len(
            decision_tree(wording, concept, encode).leaves
        )


def test_a_sentence_that_begins_another_answer_is_refused():
    with pytest.raises(ValueError, match="begins one of another group"):
        unambiguous({0: [(1, 2)], ABSENT: [(1, 2, 3)]})


def test_slots_stand_where_the_reference_states_or_denies(hospital):
    for report, severities in zip(hospital.test.reports, hospital.test.severities, strict=True):
        for concept, before in report.slots.items():
            follows = report.text[len(before) :].strip()
            for group, texts in sentences(hospital.wording, concept).items():
                if any(follows.startswith(text) for text in texts):
                    assert group == ABSENT or severities[group] > 0
                    break
            else:
                pytest.fail(f"no sentence of {concept} stands at its slot: {follows}")


def test_scores_are_those_of_one_forward_per_prefix(backbone, hospital):
    config = dive.DistillConfig(preset="dive-ce", rank=4, steps=4, learning_rate=5e-2)
    adapter = dive.distill(
        backbone, hospital.train.studies, config=config, prompt=PROMPT, progress=False
    )
    scorer, prompter = Scorer(backbone, hospital), Prompter(backbone, prompt=PROMPT)
    found, ends = scorer._decide(adapter, scorer.test)
    with torch.no_grad(), steer(backbone, adapter):

        def log_p(study, ids):
            prompt = prompter.encode(study)
            joined = torch.cat([prompt["input_ids"][0], torch.tensor(ids)])[None]
            pixels = prompt["pixel_values"]
            logits = backbone.model(input_ids=joined, pixel_values=pixels).logits[0]
            return logits.log_softmax(-1)[-len(ids) - 1 :].double()

        for n, (study, report) in enumerate(
            zip(hospital.test.studies[:3], hospital.test.reports, strict=False)
        ):
            for tree in scorer.trees:
                before = scorer._encode(report.slots[tree.concept])
                groups = unambiguous(
                    {
                        group: [tuple(scorer._encode(text)) for text in texts]
                        for group, texts in sentences(hospital.wording, tree.concept).items()
                    }
                )
                for group, prefixes in groups.items():
                    each = []
                    for prefix in prefixes:
                        rows = log_p(study, [*before, *prefix])[len(before) : -1]
                        each.append(sum(row[t] for row, t in zip(rows, prefix, strict=True)))
                    want = float(torch.stack(each).logsumexp(0))
                    assert found[tree.concept][n][group] == pytest.approx(want, abs=1e-4)
        wanted = []
        for study, report in zip(hospital.test.studies, hospital.test.reports, strict=True):
            for before, end in report.ends:
                own = log_p(study, scorer._encode(before))[-1, scorer.end_token]
                wanted.append((float(own - torch.log(-torch.expm1(own))), end))
    assert len(wanted) == len(ends)
    for (got, end), (want, stops) in zip(sorted(ends), sorted(wanted), strict=True):
        assert end == stops and got == pytest.approx(want, abs=1e-3)


def test_auroc_counts_ties_half():
    assert auroc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(3.5 / 4)
    assert np.isnan(auroc(np.array([]), np.array([1.0])))


def test_the_arms_add_the_same_weight(backbone, hospital, tmp_path):
    from dive.decisive.tokens import DecisiveTokens

    studies = hospital.train.studies
    reports = [study.report() for study in studies]
    mentions = counted(DecisiveTokens(None, modifiers=True), reports, backbone.tokenizer)
    added = (ARMS["P"].pathology - 1) * sum(mentions)
    assert added > 0
    for name in ("D", "S"):
        made = settings(ARMS[name], backbone, studies, 2901, hospital.demonstrations, tmp_path)
        weigher = DecisiveTokens(backbone.tokenizer, unit=made["decisive_unit"])
        weigher.fit(reports)
        own = sum(counted(weigher, reports, backbone.tokenizer))
        assert (made["pathology_weight"] - 1) * own == pytest.approx(added)


def test_the_floor_lifts_the_rare_classes(backbone, hospital, tmp_path):
    from dive.decisive.tokens import DecisiveTokens

    made = settings(
        ARMS["C"], backbone, hospital.train.studies, 2901, hospital.demonstrations, tmp_path
    )
    plain = settings(
        ARMS["P"], backbone, hospital.train.studies, 2901, hospital.demonstrations, tmp_path
    )
    assert made == plain | {"class_floor": made["class_floor"]} and made["class_floor"] > 0
    floor, pathology = made["class_floor"], made["pathology_weight"]
    weigher = DecisiveTokens(None, pathology, modifiers=True, class_floor=floor)
    weigher.fit([study.report() for study in hospital.train.studies])
    weights = weigher._weight_of_class
    rare = min(weights[name] for name in ("Pneumothorax", "Lung Lesion"))
    assert rare > 1.5 * pathology and min(weights.values()) == pathology


def test_random_words_are_as_many_and_none_of_the_mentions(backbone, hospital):
    from dive.decisive.tokens import PATHOLOGY, DecisiveTokens

    weigher, rng = DecisiveTokens(None, modifiers=True), np.random.default_rng(0)
    for report in hospital.train.reports:
        text = report.text
        annotation = random_words(backbone, text, rng)
        offsets = backbone.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        classes = weigher.label(text, offsets, len(offsets))
        drawn = [entity["start_ix"] for entity in annotation["entities"].values()]
        assert len(drawn) == classes.count(PATHOLOGY)
        assert all(classes[index] != PATHOLOGY for index in drawn)


def run_of(arm="U", part="confirmatory"):
    return runner.Run(part, "tail", 2001, arm, 100, 0.025)


def test_no_hospital_serves_two_ends():
    assert not set(protocol.CONFIRMATORY) & set(protocol.DEVELOPMENT)
    assert set(runner.hospitals_of("rates")) <= set(protocol.DEVELOPMENT)
    assert list(protocol.ARMS) == list(ARMS)
    assert tuple(RARE_NAMES.values()) == protocol.RARE
    keys = [json.dumps(run.key) for run in runner.runs("confirmatory", 2001)]
    assert len(set(keys)) == len(keys)
    assert next(runner.runs("confirmatory", 2001)).arm == "U"


def test_a_run_that_diverges_has_a_record(monkeypatch, backbone, hospital):
    class Fixed:
        pass

    Fixed.hospital = hospital

    def diverges(*_, **__):
        raise NonFiniteLoss("step 3: the loss is nan")

    monkeypatch.setattr(dive, "distill", diverges)
    found = runner._measured(run_of(), backbone, Fixed)
    assert found["status"] == "diverged" and "step 3" in found["reason"]

    def fails(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(dive, "distill", fails)
    found = runner._measured(run_of(), backbone, Fixed)
    assert found["status"] == "failed" and found["reason"] == "MemoryError: no room"


def test_an_interrupted_study_goes_on(monkeypatch, tmp_path):
    """Records that are there are kept, a failed run is made again, a diverged one is not."""
    made = []
    plan = [run_of("U"), run_of("P"), run_of("E"), run_of("D")]
    monkeypatch.setattr(runner, "runs", lambda part, number: plan)
    monkeypatch.setattr(
        runner, "_measured", lambda run, *_: made.append(run.arm) or {"status": "diverged"}
    )
    monkeypatch.setattr("experiments.decisive_weights.scores.Scorer", lambda *_: None)
    path = tmp_path / "records.jsonl"
    known = [("U", "ok"), ("P", "failed"), ("E", "diverged")]
    lines = [json.dumps(run_of(arm).key | {"status": status}) + "\n" for arm, status in known]
    path.write_text("".join(lines))
    runner.perform("confirmatory", [2001], tuple(ARMS), path)
    assert made == ["P", "D"]
    assert path.read_text().startswith("".join(lines))
    runner.perform("confirmatory", [2001], tuple(ARMS), path)
    assert made == ["P", "D"]


def test_the_threshold_control_states_as_many_slots():
    uniform = run_of("U").key | {"status": "ok", "hits_by_count": [1, 2, 2, 3]}
    for arm in ("P", "C"):
        found = runner._threshold_control(run_of(arm), {"slot_positives": 3}, [uniform])
        assert found == {"slot_positives_T": 3, "slot_hits_T": 2}
    assert runner._threshold_control(run_of("P"), {"slot_positives": 9}, [uniform]) == {}
    assert runner._threshold_control(run_of("P"), {"slot_positives": 3}, []) == {}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--part", "main"], "part is 'main', want one of confirmatory, pilot, rates"),
        (["--hospitals", "11"], "hospital is 11, want one of part confirmatory"),
        (["--arms", "X"], "arm is 'X', want one of U, P"),
    ],
)
def test_bad_arguments_are_named(arguments, named, tmp_path):
    with pytest.raises(DiveError, match=named):
        runner.main([*arguments, "--out", str(tmp_path / "records.jsonl")])
