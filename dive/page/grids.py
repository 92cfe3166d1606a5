"""Matrices of numbers as the bytes that a page draws."""

import base64

import torch
from torch import Tensor

from dive.errors import DiveError
from dive.page.schema import Grid


def grid_of(values: Tensor, signed: bool = False) -> Grid:
    """A matrix [rows, columns] as a `Grid`, whose maximum is the largest size of its numbers.

    An entry is off by at most maximum / 510, or maximum / 254 with `signed`. A matrix of zeros has
    the maximum 0.

    Raises:
        DiveError: a number is not finite, or is below 0 without `signed`.
    """
    values = values.detach().to("cpu", torch.float64)
    if not bool(values.isfinite().all()):
        raise DiveError("a grid has numbers that are not finite, want finite ones")
    if not signed and bool((values < 0).any()):
        raise DiveError(f"a grid has the number {values.min():g}, want 0 or more")
    maximum = float(values.abs().max()) if values.numel() else 0.0
    # by the maximum first: a product with the smallest numbers would not be finite
    shares = values / maximum if maximum else values
    coded = (shares * 127).round() + 128 if signed else (shares * 255).round()
    data = base64.b64encode(coded.to(torch.uint8).numpy().tobytes()).decode("ascii")
    return {
        "rows": values.shape[0],
        "columns": values.shape[1],
        "maximum": maximum,
        "signed": signed,
        "data": data,
    }
