"""Bad values in the arguments of `decisive_cross_entropy`: found on the device, raised on the host.

A status is float64 [3] on the device: a code, the row, and the value found there. Code 0 means that
there is no bad value.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dive.errors import DiveError
from dive.ops.loss_arguments import LossArguments, wide_of
from dive.reference import DecisiveLoss

# code -> the argument and what is wanted of it
_WANTED = {
    1: ("targets", "an index into the {vocab} rows of lm_head wherever the weight is not 0"),
    2: ("weights", "a finite number >= 0, and 0 or not in the dtype of the sums as in its own"),
    3: ("kd_weights", "a finite number >= 0, and 0 or not in the dtype of the sums as in its own"),
    4: ("rows", "-1 or the index of one of the {rows} rows"),
    5: ("normalizer", "a finite number >= 0 that is not denormal: its reciprocal is needed"),
    6: ("kd_normalizer", "a finite number >= 0 that is not denormal: its reciprocal is needed"),
    7: ("the sum of weights", "a finite number that is not denormal: its reciprocal is needed"),
    8: ("the sum of kd_weights", "a finite number that is not denormal: its reciprocal is needed"),
    9: ("the loss", "a finite number, as that of every row is: smaller weights"),
}


def first_violation(given: LossArguments) -> Tensor:
    """Returns the status of the arguments, cast to the dtype of the sums, without a host sync."""
    targets, weights, rows = given.targets, given.weights, given.rows
    wide = wide_of(given.hidden)
    unlabelled = (weights > 0) & ((targets < 0) | (targets >= given.lm_head.shape[0]))
    cases = [(1, unlabelled, targets), (4, (rows < -1) | (rows >= targets.shape[0]), rows)]
    numbers = (
        (2, weights),
        (3, given.kd_weights),
        (5, given.normalizer),
        (6, given.kd_normalizer),
    )
    for code, numbered in numbers:
        if numbered is not None:
            values = numbered.detach().reshape(-1)
            cast = values.to(wide)  # a number that is finite in float64 may be infinite here
            good = divides(cast) if code >= 5 else (cast >= 0) & (cast < float("inf"))
            if values.dtype != wide:
                good &= (cast != 0) | (values == 0)
            cases.append((code, ~good, values))  # true for NaN, too
    status = weights.new_zeros(3, dtype=torch.float64)
    for code, bad, values in cases:
        if values.numel() == 0:
            continue
        row = bad.to(torch.uint8).argmax()
        found = torch.stack([torch.full_like(row, code), row, torch.zeros_like(row)]).double()
        found[2] = values.index_select(0, row.view(1))[0].double()
        status = torch.where((status[0] == 0) & bad.any(), found, status)
    return status


def divides(normalizer: Tensor) -> Tensor:
    """Whether a normaliser is 0 or has a finite reciprocal on every device; denormals have none."""
    least = torch.finfo(normalizer.dtype).tiny
    return (normalizer == 0) | ((normalizer >= least) & (normalizer < float("inf")))


def sum_violation(status: Tensor, code: int, total: Tensor) -> Tensor:
    """Returns the status, or if it is 0 that of a sum used as a normaliser; no host sync."""
    found = torch.stack([torch.full_like(total, code), torch.zeros_like(total), total]).double()
    return torch.where((status[0] == 0) & ~divides(total), found, status)


def loss_violation(status: Tensor, loss: Tensor, row_ce: Tensor, row_kl: Tensor) -> Tensor:
    """Returns the status, or if it is 0 that of a loss that only weights made infinite.

    No host sync.
    """
    good = loss.detach().isfinite().reshape(-1)
    rows = row_ce.isfinite().all() & row_kl.isfinite().all()
    value = torch.where(good, 0.0, loss.detach().reshape(-1)).double().sum()
    found = torch.stack([torch.full_like(value, 9), torch.zeros_like(value), value])
    return torch.where((status[0] == 0) & rows & ~good.all(), found, status)


def violation(
    status: Sequence[float], rows: int | None = None, vocab: int | None = None
) -> str | None:
    """Returns a status on the host in words: argument, row, value and what is wanted."""
    code, row, value = status
    if not code:
        return None
    argument, want = _WANTED[int(code)]
    want = want.replace("{vocab} ", "" if vocab is None else f"{vocab} ")
    want = want.replace("{rows} ", "" if rows is None else f"{rows} ")
    name = argument if code >= 5 else f"{argument}[{int(row)}]"
    return f"decisive_cross_entropy: {name} is {value:g}, want {want}"


def raise_for(status: Tensor, rows: int | None = None, vocab: int | None = None) -> None:
    """Raises a DiveError with argument, row and value for a status that is not 0; one host sync."""
    message = violation(status.tolist(), rows, vocab)
    if message is not None:
        raise DiveError(message)


def check(result: DecisiveLoss) -> None:
    """Raises a DiveError naming argument, row and value if bad values led to this result.

    For calls with validate=False, whose loss is then NaN: call it at the next logging step, as it
    costs a host sync. With gradient accumulation check the result of every call, or keep `status`.
    """
    if result.status is not None:
        raise_for(result.status)


def check_listed(rows: Tensor, live: Tensor) -> None:
    """Raises a DiveError unless `rows` has every live row once; its indices must be in range."""
    listed = torch.bincount(rows[rows >= 0], minlength=live.shape[0])
    for bad, got in ((listed > 1, "twice"), (live & (listed == 0), "not at all")):
        if bad.any():
            row = int(bad.to(torch.uint8).argmax())
            raise DiveError(
                f"decisive_cross_entropy: rows lists row {row} {got}, want every row with a weight "
                "once"
            )


def raise_for_bad(status: Tensor, given: LossArguments) -> None:
    """Raises a DiveError for a bad value or for wrong `rows`; takes a few host syncs."""
    weights, kd_weights = given.weights.detach(), given.kd_weights
    raise_for(status, weights.shape[0], given.lm_head.shape[0])
    live = given.ce_weight * weights > 0
    if given.teacher_hidden is not None:
        live |= given.kd_weight * (weights if kd_weights is None else kd_weights) > 0
    check_listed(given.rows, live)
