"""The further families, one folder each."""

from pathlib import Path

import pytest
from tiny_features import needs
from tiny_more import FAMILIES


@pytest.fixture(scope="session", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """(name, folder) of each family in turn."""
    needs(request.param)
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    return request.param, FAMILIES[request.param](folder)
