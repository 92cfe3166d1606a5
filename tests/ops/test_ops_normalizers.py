"""Sums of weights that float32 cannot represent, or that have no reciprocal there, are errors.

Also under Triton's interpreter, by test_kernels_cross_entropy.py.
"""

import pytest
from loss_normalizers import ONLY_TOLD, RIGHT, WRONG, check_right, check_wrong

from dive import ops, reference


@pytest.mark.parametrize("name", WRONG)
def test_an_error_and_no_number(name: str) -> None:
    check_wrong(name, ops.decisive_cross_entropy)


@pytest.mark.parametrize("name", [name for name in WRONG if name not in ONLY_TOLD])
def test_the_reference_gives_nan(name: str) -> None:
    check_wrong(name, reference.decisive_cross_entropy, told=False)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_a_number_stays_one(name: str) -> None:
    check_right(name, ops.decisive_cross_entropy)
    check_right(name, reference.decisive_cross_entropy)
