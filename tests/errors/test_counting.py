"""Numbers with their nouns."""

from dive.errors.counting import counted


def test_one_is_singular_and_thousands_are_set_apart():
    assert [counted(n, "study") for n in (0, 1, 2)] == ["0 studies", "1 study", "2 studies"]
    assert counted(1000, "new one") == "1,000 new ones"
