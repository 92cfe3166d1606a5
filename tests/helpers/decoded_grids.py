"""A `Grid` of the page as numbers again."""

import base64

import numpy as np
import torch


def decoded(grid):
    """As the page's script does it, by the words of `Grid`."""
    coded = np.frombuffer(base64.b64decode(grid["data"]), dtype=np.uint8).astype(np.float64)
    assert len(coded) == grid["rows"] * grid["columns"]
    if grid["signed"]:
        values = (coded - 128) / 127 * grid["maximum"]
    else:
        values = coded / 255 * grid["maximum"]
    return torch.from_numpy(values.reshape(grid["rows"], grid["columns"]))
