"""Exact tests over a few hospitals: sign flips for one comparison, Holm's correction for many."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

from dive.errors import DiveError

MOST = 20  # differences: a million ways to give them signs


def sign_flip(differences: Sequence[Fraction]) -> Fraction:
    """Returns the two-sided p of the exact sign-flip test that differences are symmetric around 0.

    Of all 2^n choices of signs for the n differences, it is the share whose sum is at least as far
    from 0 as the observed one: never below 2 / 2^n. Fractions, so that ties are exact.
    """
    if not 1 <= len(differences) <= MOST:
        raise DiveError(f"sign_flip has {len(differences)} differences, want 1 to {MOST}")
    found = abs(sum(differences, Fraction(0)))
    flipped = product(*((value, -value) for value in differences))
    as_far = sum(abs(sum(signs, Fraction(0))) >= found for signs in flipped)
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
