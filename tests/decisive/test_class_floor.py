"""A floor on each finding class's share of the weight of decisive tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive import DecisiveTokens
from dive.decisive.class_floor import raised
from dive.errors import DiveError

COUNTS = st.dictionaries(st.text(min_size=1), st.floats(0.01, 1e6), min_size=1, max_size=15)


@settings(deadline=None)  # a machine that has other work is slow at times
@given(COUNTS, st.floats(0.0, 1.0), st.sampled_from([0.5, 2.5, 8.0]))
def test_every_class_has_its_share_and_none_weighs_less(counts, part, weight):
    floor = part / len(counts)
    weights = raised(counts, floor, weight)
    total = sum(counts[name] * weights[name] for name in counts)
    assert weights.keys() == counts.keys()
    for name, count in counts.items():
        assert count * weights[name] >= floor * total * (1 - 1e-9)
        assert weights[name] >= weight * (1 - 1e-9)
        # nothing is raised beyond its floor
        above = weights[name] > weight * (1 + 1e-9)
        assert not above or count * weights[name] <= floor * total * (1 + 1e-9)
    # of two that are as frequent one may be raised, by a last bit
    assert weights[max(counts, key=lambda name: counts[name])] == pytest.approx(weight)


def test_figures():
    # 10 of 110 tokens; to be a quarter of the weight beside 100 * 2 they weigh 200 / 3 / 10
    assert raised({"a": 100, "b": 10}, 0.25, 2.0) == {"a": 2.0, "b": pytest.approx(20 / 3)}
    assert raised({"a": 100, "b": 10, "c": 0}, 0.05, 2.0) == {"a": 2.0, "b": 2.0}


def test_what_cannot_be():
    with pytest.raises(DiveError, match=r"class_floor is 0\.4, .* 3 finding classes \(a, b, c\)"):
        raised({"a": 1, "b": 1, "c": 1}, 0.4, 2.0)
    with pytest.raises(DiveError, match="no decisive token"):
        raised({"a": 0}, 0.1, 2.0)
    for floor in (-0.1, 1.0, 2, float("nan"), "much", True, None):
        with pytest.raises(DiveError, match="class_floor is .*, want a share from 0 to below 1"):
            DecisiveTokens(None, class_floor=floor)


REPORTS = ["Small effusion. No nodule."] * 9 + ["Small nodule and effusion. No edema."]


@pytest.mark.parametrize("unit", ["mention", "clause", "decision"])
def test_rare_classes_are_raised_with_any_unit(unit):
    weigher = DecisiveTokens(None, 2.0, 1.0, unit=unit, class_floor=0.3, modifiers=True)
    texts = REPORTS if unit == "mention" else ["No effusion. Nodule.", *REPORTS]
    if unit == "clause":
        weigher.class_floor = 0.25
    weigher.fit(texts)
    totals: dict[str, float] = {}
    for text in texts:
        offsets = weigher._offsets(text)
        classes, weights = weigher.weigh(text, offsets, len(offsets) + 1)
        assert classes == weigher.label(text, offsets, len(offsets) + 1) and weights[-1] == 1.0
        for index, names in weigher._classes_of(text, offsets).items():
            assert classes[index] == 1 and weights[index] >= 2.0
            for name in set(names) - {"No Finding"}:
                totals[name] = totals.get(name, 0.0) + weights[index] / len(names)
    whole = sum(totals.values())
    assert min(totals.values()) >= weigher.class_floor * whole * (1 - 1e-9) and len(totals) >= 2


def test_it_needs_fit():
    weigher = DecisiveTokens(None, class_floor=0.1)
    with pytest.raises(DiveError, match="how rare a class is is learnt from the training reports"):
        weigher.weigh("Effusion.", [(0, 8)], 1)


def test_a_class_that_no_training_report_has():
    weigher = DecisiveTokens(None, 2.0, class_floor=0.3)
    weigher.fit(REPORTS)
    assert weigher.weigh("Pneumothorax.", [(0, 12)], 1) == ([1], [2.0])


def test_normality_is_no_rare_class():
    texts = ["Lungs are clear.", *["Small effusion. Nodule."] * 9]
    weigher = DecisiveTokens(None, 2.0, polarity="all", class_floor=0.4)
    weigher.fit(texts)
    assert weigher.weigh("Lungs are clear.", [(10, 15)], 1) == ([1], [2.0])
    assert weigher.weigh("Nodule.", [(0, 6)], 1) == ([1], [2.0])
