"""Several adapters at work on one model, each on rows of its own."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import Attachment
from dive.backbone.structure import computes_on, decoder_layers, unwrap
from dive.errors import DiveError


class RowAttachment(Attachment):
    """An `Attachment` with an adapter of its own, or none, for every row of a batch.

    rows: what steers each row of the next forwards. A batch k times as long repeats each k times,
        as beams and `num_return_sequences` do. Set as often as wanted: nothing is attached anew.
    A row is computed as it would be alone, by its adapter's own rule of positions; there is no
    `mask` here.
    """

    def __init__(
        self,
        backbone_or_model: Any,
        rows: Sequence[SteeringAdapter | None] = (None,),
        check: bool = True,
        scoped: bool = False,
    ) -> None:
        self.adapter = None
        self._check = check
        self._known: list[SteeringAdapter] = []
        model = unwrap(backbone_or_model)
        self._devices = [computes_on(layer) for layer in decoder_layers(model)]
        self._hang(model, range(len(self._devices)), scoped)
        try:
            self.rows = rows
        except DiveError:
            self.detach()
            raise

    @property
    def rows(self) -> tuple[SteeringAdapter | None, ...]:
        return self._rows

    @rows.setter
    def rows(self, rows: Iterable[SteeringAdapter | None]) -> None:
        rows = tuple(rows)
        if not rows:
            raise DiveError("rows is empty, want an adapter or None for every row")
        for adapter in rows:
            if adapter is None or any(adapter is known for known in self._known):
                continue
            if self._check:
                adapter.check_backbone(self.model)
            for index, steering in adapter.layers.items():
                steering.to(self._devices[int(index)])
            self._known.append(adapter)
        self._rows = rows

    @property
    def steers(self) -> tuple[SteeringAdapter | None, ...]:
        return self._rows

    def _edit(self, index: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        def edit(hidden: Tensor) -> Tensor:
            if self.mask is not None:
                raise DiveError("a mask of positions does not go with an adapter for every row")
            each, left = divmod(hidden.shape[0], len(self._rows))
            if left:
                raise DiveError(
                    f"{len(self._rows)} adapters were given, one a row, for a batch of "
                    f"{hidden.shape[0]} rows"
                )
            parts = list(hidden.split(each))
            for row, adapter in enumerate(self._rows):
                layers: Any = () if adapter is None else adapter.layers
                if adapter is not None and str(index) in layers:
                    last_only = adapter.config.positions == "response"
                    positions = self._positions(parts[row], last_only)
                    parts[row] = layers[str(index)](parts[row], positions)
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return edit
