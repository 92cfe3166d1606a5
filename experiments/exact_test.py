"""Tests over a few hospitals: sign flips and an interval for one comparison, Holm's for many."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import lcm, sqrt
from statistics import stdev

from dive.errors import DiveError

MOST = 20  # differences: a million ways to give them signs

# Two-sided 95% quantiles of Student's t with 1, 2, ... degrees of freedom.
_T95 = (
    12.70620, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814,
    2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302,
)  # fmt: skip


def sign_flip(differences: Sequence[Fraction]) -> Fraction:
    """Returns the two-sided p of the exact sign-flip test that differences are symmetric around 0.

    Of all 2^n choices of signs for the n differences, it is the share whose sum is at least as far
    from 0 as the observed one: never below 2 / 2^n. Whole numbers of the common denominator, so
    that ties are exact.
    """
    if not 1 <= len(differences) <= MOST:
        raise DiveError(f"sign_flip has {len(differences)} differences, want 1 to {MOST}")
    scale = lcm(*(value.denominator for value in differences))
    whole = [int(value * scale) for value in differences]
    found = abs(sum(whole))
    as_far = sum(abs(sum(signs)) >= found for signs in product(*((n, -n) for n in whole)))
    return Fraction(as_far, 2 ** len(differences))


def holm(p_values: Sequence[Fraction]) -> list[Fraction]:
    """Returns the p values of one family after Holm's correction, in the order given.

    The k-th smallest of m is multiplied by m - k + 1, is never smaller than the one before it, and
    never above 1. Rejecting below .05 bounds the probability of any false finding by .05.
    """
    corrected = [Fraction(1)] * len(p_values)
    least = Fraction(0)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        least = max(least, min(Fraction(1), (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def half_interval(differences: Sequence[Fraction]) -> float | None:
    """Returns half of the mean's 95% interval (Student's t); None for less than two differences."""
    if len(differences) < 2:
        return None
    if len(differences) > MOST:
        raise DiveError(f"half_interval has {len(differences)} differences, want {MOST} at most")
    spread = stdev([float(one) for one in differences])
    return _T95[len(differences) - 2] * spread / sqrt(len(differences))


def as_text(p: Fraction) -> str:
    """Returns a p value in three digits, ".031"; halves are rounded up, so never too small."""
    if p == 1:
        return "1"
    thousandths = int(1000 * p + Fraction(1, 2))
    return f"{thousandths / 1000:.3f}".removeprefix("0") if thousandths else "<.001"
