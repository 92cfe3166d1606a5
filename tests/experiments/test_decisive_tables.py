"""Tables and sentences of the study of decisive weights: every outcome has its words."""

import pytest
from decisive_records import BIG, NOTHING, SMALL, WIDE, record, runs_of, whole_study

from experiments.decisive_weights import pilot, protocol, sentences, tables, verdicts
from experiments.decisive_weights.records import Study
from experiments.decisive_weights.verdicts import Verdict

EMPTY = Study([])


def said(study):
    return " ".join(sentences.outcome(study).split())


def changed(made, arm, **changes):
    return [one | changes if one["arm"] == arm else one for one in made]


def test_before_the_first_run():
    for name, make in tables.tables(EMPTY).items():
        assert "no confirmatory run yet" in make(), name
    assert said(EMPTY).endswith("a toy world cannot judge them on real models.")
    assert pilot.pilot(EMPTY) == "There is no run on the development hospitals yet."
    # runs on the development hospitals are none of the study
    assert "no confirmatory run yet" in said(Study([record(2901, part="pilot")]))


@pytest.mark.parametrize("words", [sentences.PATHOLOGY, sentences.DECISION, sentences.END])
def test_every_verdict_has_words_of_its_own(words):
    assert set(words) == set(Verdict) - {Verdict.INCOMPLETE}
    assert len(set(words.values())) == len(words)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (BIG, "Weighting pathology tokens ranks rare findings better here (rare AUROC +0.051 ± "
              "0.005; above 0 in 12 of 12 hospitals; p <.001, corrected .001: **SHOWN**)."),
        (SMALL, "better here, by less than matters (rare AUROC +0.010 ± 0.000; above 0 in 12 of 12 "
                "hospitals; p <.001, corrected .001: **real, and smaller than matters**)."),
        (NOTHING, "brings no better ranking of findings here (rare AUROC +0.000 ± 0.003; above 0 "
                  "in 6 of 12 hospitals; p 1, corrected 1: **REFUTED**)."),
        ([-one for one in BIG], "ranks rare findings worse here (rare AUROC -0.051"),
        ([-one for one in SMALL], "worse here, by less than matters (rare AUROC -0.010"),
        (WIDE, "Weighting pathology tokens: whether it ranks rare findings better here is "),
    ],
)  # fmt: skip
def test_the_words_follow_the_verdict(differences, words):
    assert words in said(Study(whole_study(P=differences)))


def test_the_words_of_the_other_hypotheses():
    found = said(Study(whole_study(D=BIG)))
    assert "between present and absent ranks rare findings better here (rare AUROC +0.051" in found
    assert "Weighting the end tells no better where a report ends here (AUROC of ends +0" in found


def test_the_threshold_is_said_to_move_only_where_it_did():
    made = changed(whole_study(P=NOTHING), "P", slot_positives=40, slot_hits=18,
                   slot_positives_T=40, slot_hits_T=18)  # fmt: skip
    found = said(Study(made))
    assert (
        "- Weighting pathology tokens moves the threshold and brings no better ranking of findings "
        "here (rare AUROC" in found
    )
    assert (
        "+20.0 rare slots are stated per hospital, recall changes by +20.0 and precision by -5.0 "
        "points; uniform weights with a threshold that states as many change them by +20.0 and "
        "-5.0, the same within the interval of the difference." in found
    )
    same = said(Study(whole_study(P=NOTHING)))
    assert "- Weighting pathology tokens brings no better ranking of findings here (" in same
    other = said(Study(changed(made, "P", slot_hits_T=10)))
    assert "+0.0 and -25.0, which is not the same: the interval of" in other


def test_an_interrupted_study_says_so():
    made = [one for one in whole_study(P=BIG) if one["hospital"] != 2012]
    made = changed(made, "D", status="diverged")
    found = said(Study(made))
    assert "The study is incomplete: 220 of 264 runs have measures." in found
    assert "No verdict on pathology tokens (P - U): 11 of 12 hospitals are known." in found
    assert "No verdict on decision tokens (D - U): 0 of 12 hospitals are known." in found
    assert "No word on the threshold control (P - U beside T - U): 11 of 12 hospitals" in found
    assert "SHOWN" not in found
    verdict_table = tables.verdict_table(Study(made))
    assert "| H1 | D - U | rare AUROC | incomplete | - | 0 of 0 (of 12) | - | - |" in verdict_table
    assert (
        "| H1 | P - U | rare AUROC | incomplete | +0.050 ± 0.004 | 11 of 11 (of 12)"
        in verdict_table
    )
    flat = " ".join(verdict_table.split())
    assert "- P - U, rare AUROC: 11 of 12 hospitals (2012: P not run, U not run)." in flat
    assert "2011: D diverged; 2012: D not run, U not run)" in flat
    assert "2011: D diverged, P" not in flat


def test_the_table_of_verdicts():
    text = tables.verdict_table(Study(whole_study(P=BIG)))
    lines = text.splitlines()
    assert len(lines) == 2 + 3 + 19
    assert lines[3] == (
        "| H1 | P - U | rare AUROC | SHOWN | +0.051 ± 0.005 | 12 of 12 | <.001 | .001 |"
    )
    assert lines[-1].startswith(
        "| S4 | (FP - FU) - (P - U), 200 steps | rare AUROC | HARMS | -0.051"
    )
    assert "| S2 | P - U | style F1 | undecided | +0.0 ± 0.0 | 0 of 12 | 1 | 1 |" in lines


def test_the_secondary_comparisons_by_verdict():
    text = " ".join(tables.secondary(Study(whole_study(V=BIG))).split())
    assert text.startswith(
        "- 19 secondary comparisons, corrected together. - undecided: P - U in slot"
    )
    assert "- SHOWN: V - P in rare AUROC (+0.051 ± 0.005), V - U in rare AUROC (+0.051" in text
    assert "(FP - FU) - (P - U), 50 steps in rare AUROC (+0.000 ± 0.000)" in text


def test_the_table_of_arms_has_every_arm():
    made = [one for one in whole_study(P=BIG) if one["arm"] != "V"]
    made[0] |= {"status": "diverged"}
    made[1] |= {"status": "failed"}
    made[2].pop("bleu4")
    lines = tables.arm_table(Study(made)).splitlines()
    assert len(lines) == 2 + len(protocol.ARMS) + 2
    by_arm = {line.split(":")[0].removeprefix("| "): line for line in lines[2:]}
    assert "| 10 | 1 | 1 | 0.800 ± 0.000 | 0.900 ± 0.000 |" in by_arm["U"]
    assert "70.0 ± 0.0 (of 9)" in by_arm["U"]
    assert "| 12 | 0 | 0 | 0.851 ± 0.007 |" in by_arm["P"]
    assert by_arm["V"].endswith("| 0 | 0 | 0 |" + " - |" * len(tables.MEASURES))
    assert by_arm["T"].count("0.250 ± 0.000") == 1 and by_arm["T"].count("0.500 ± 0.000") == 1


def test_the_table_of_steps():
    lines = tables.step_table(Study(whole_study())).splitlines()
    assert len(lines) == 2 + 4 * 3 + 3
    assert [line.split(" | ")[2] for line in lines[2:5]] == ["50", "100", "200"]
    assert lines[-1].startswith("| noisy | D: decision tokens, both branches | 100 | 12 | 0 | 0 |")


def test_the_exploratory_table_has_no_p():
    text = tables.size_table(Study(whole_study(P8=BIG)), verdicts.EXPLORATORY)
    assert "| P8 - U | rare AUROC | +0.051 ± 0.005 | 12 of 12 |" in text
    assert "| P - U, world noisy | rare AUROC |" in text and "| P - U, 50 steps |" in text
    assert " p " not in text


def test_the_lines_of_records():
    made = whole_study()
    assert tables.record_lines(Study(made, 3)).splitlines() == [
        "- Runs: 264 of 264; 264 with measures, 0 diverged, 0 failed.",
        "- Runs added later: 0 of 12; 0 with measures, 0 diverged, 0 failed.",
        "- Failed before and repeated: 3.",
        "- By commit: abc (264).",
        "- By machine: a machine (264).",
        "- Without measures: arm C, 100 steps, world tail: not run (all hospitals).",
    ]
    made = changed(made, "E", status="diverged")
    made = [one for one in made if (one["arm"], one["hospital"]) != ("V", 2003)]
    text = " ".join(tables.record_lines(Study(made)).split())
    assert "arm E, 100 steps, world tail: diverged (all hospitals)." in text
    assert "arm V, 100 steps, world tail: not run (2003)." in text


def test_what_was_added_later_counts_for_itself():
    """Neither does it stand in for a missing run of the protocol, nor change a verdict."""
    own, added = whole_study(P=BIG), runs_of(protocol.ADDED_RUNS, C=SMALL)
    assert said(Study(own + added)) == said(Study(own))
    assert tables.verdict_table(Study(own + added)) == tables.verdict_table(Study(own))
    lines = tables.record_lines(Study(own[12:] + added)).splitlines()
    assert lines[0].startswith("- Runs: 252 of 264;")
    assert lines[1].startswith("- Runs added later: 12 of 12;")
    assert "252 of 264 runs have measures" in said(Study(own[12:] + added))


def test_the_floor_per_class_and_its_control():
    added = runs_of(protocol.ADDED_RUNS, C=SMALL)
    added = changed(
        added, "C", slot_positives=30, slot_hits=14, slot_positives_T=30, slot_hits_T=13
    )
    study = Study(whole_study(P=BIG) + added)
    text = tables.size_table(study, verdicts.ADDED)
    assert "| C - U | rare AUROC | +0.010 ± 0.000 | 12 of 12 |" in text
    assert "| C - P | rare AUROC | -0.041 ± " in text
    assert "| C - U | slot recall | +0.100 ± 0.000 | 12 of 12 |" in text
    assert "| TC - U | slot recall | +0.075 ± 0.000 | 12 of 12 |" in text
    assert "| C - TC | slot precision | +0.033 ± 0.000 | 12 of 12 |" in text
    by_arm = {line.split(":")[0]: line for line in tables.arm_table(study).splitlines()}
    assert by_arm["| TC"].startswith("| TC: control, U stating as many slots as C | 12 |")
    assert " ".join(sentences.floor(study).split()) == (
        "- With a floor of 10% on each class's share of the weight, the rare slots stated per "
        "hospital change by +10.0 ± 0.0 against uniform weights, and their recall by +0.100 ± "
        "0.000; uniform weights with a threshold that states as many change it by +0.075 ± 0.000 "
        "(C - TC: +0.025 ± 0.000). Rare AUROC changes by +0.010 ± 0.000."
    )
    assert sentences.floor(Study(whole_study() + added[1:])) == (
        "- A floor per class: 11 of 12 hospitals are known."
    )


def test_the_development_hospitals():
    made = [record(hospital, "U", part="rates", learning_rate=rate, rare=0.8 + rate)
            for hospital in (2901, 2902) for rate in (0.05, 0.1)]  # fmt: skip
    made += [record(hospital, arm, part="pilot", rare=rare) for hospital, arm, rare in
             ((2901, "U", 0.8), (2901, "P8", 0.82), (2902, "U", 0.8), (2902, "P8", 0.79),
              (2903, "U", 0.8))]  # fmt: skip
    text = pilot.pilot(Study(made))
    assert "| U | 0.05 | 2 | 0 | 0.850 ± 0.000 |" in text and "| U | 0.1 | 2 | 0 | 0.900" in text
    assert text.endswith(
        "P8 - U in rare AUROC: 2901 +0.020, 2902 -0.010; mean +0.005, standard deviation 0.021."
    )
