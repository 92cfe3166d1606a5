"""Grids: what a page decodes is the matrix, off by less than half a step."""

import base64
import json

import pytest
import torch
from decoded_grids import decoded

from dive.errors import DiveError
from dive.page.grids import grid_of


@pytest.mark.parametrize("size", [1.0, 3e-39, 1e-300, 1e38])
@pytest.mark.parametrize("signed", [False, True])
def test_a_grid_is_its_matrix(size, signed):
    torch.manual_seed(0)
    values = torch.randn(5, 37, dtype=torch.float64) * size
    values = values if signed else values.abs()
    grid = json.loads(json.dumps(grid_of(values, signed)))
    assert (grid["rows"], grid["columns"], grid["signed"]) == (5, 37, signed)
    assert grid["maximum"] == values.abs().max().item()
    error = (decoded(grid) - values).abs().max().item()
    assert error <= grid["maximum"] / (254 if signed else 510) * (1 + 1e-12)
    # the largest number is exact, and of zero no colour is left
    at = values.abs().argmax()
    assert decoded(grid).flatten()[at] == pytest.approx(values.flatten()[at].item(), rel=1e-15)
    assert (decoded(grid_of(torch.tensor([[0.0, 1.0]]), signed)) == torch.tensor([[0, 1]])).all()


def test_rows_are_rows():
    grid = grid_of(torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]]))
    assert base64.b64decode(grid["data"]) == bytes([0, 128, 255, 255, 0, 0])
    grid = grid_of(torch.tensor([[-2.0, 0.0, 2.0]]), signed=True)
    assert base64.b64decode(grid["data"]) == bytes([1, 128, 255])


@pytest.mark.parametrize("signed", [False, True])
def test_zeros(signed):
    grid = grid_of(torch.zeros(2, 3), signed)
    assert grid["maximum"] == 0 and (decoded(grid) == 0).all()


def test_half_precision_and_views():
    values = torch.rand(4, 6, dtype=torch.bfloat16)
    grid = grid_of(values.T)
    assert (decoded(grid) - values.T).abs().max() <= grid["maximum"] / 510 * (1 + 1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_no_page_can_draw(bad):
    with pytest.raises(DiveError, match="not finite"):
        grid_of(torch.tensor([[0.0, bad]]), signed=True)
    with pytest.raises(DiveError, match=r"has the number -0\.5, want 0 or more"):
        grid_of(torch.tensor([[1.0, -0.5]]))
