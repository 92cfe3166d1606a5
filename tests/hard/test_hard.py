"""A few attempts of every trial of `make hard`."""

import pytest

from tests.hard.all_trials import TRIALS


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_trial(trial, tmp_path):
    outcome = trial.run(trial.short, 0, tmp_path)
    assert outcome.tried >= trial.short
    assert not outcome.faults
