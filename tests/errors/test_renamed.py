"""Old names work, warn once a call, and reach what the new name is."""

import pytest

from dive.errors.renamed import renamed_arguments, renamed_attribute


@renamed_arguments(rows="slots")
def room(slots: int = 8, tokens: int = 2) -> int:
    return slots * tokens


class Batch:
    slots = 3
    rows = renamed_attribute("rows", "slots")

    def count(self) -> int:
        return 5

    @renamed_arguments(n="count")
    def times(self, count: int) -> int:
        return count * self.slots


def test_the_old_argument_is_the_new_one() -> None:
    with pytest.warns(
        FutureWarning, match=r"room\(rows=\.\.\.\) is called slots=\.\.\. now"
    ) as seen:
        assert room(rows=3, tokens=5) == 15
    assert seen[0].filename == __file__
    with pytest.warns(FutureWarning, match=r"Batch\.times\(n=\.\.\.\)"):
        assert Batch().times(n=4) == 12


def test_new_names_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    assert (room(3), room(slots=4), Batch().times(2), Batch().slots) == (6, 8, 6, 3)
    assert not recwarn


def test_both_names_are_an_error() -> None:
    with pytest.raises(TypeError, match="both 'slots' and its old name 'rows'"):
        room(rows=1, slots=2)


def test_the_old_attribute_is_the_new_one() -> None:
    with pytest.warns(FutureWarning, match=r"Batch\.rows is called slots now") as seen:
        assert Batch().rows == 3
    assert seen[0].filename == __file__
