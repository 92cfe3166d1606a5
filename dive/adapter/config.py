"""The form of an adapter's edit, and the names of its files; nothing here imports torch."""

from dataclasses import dataclass

from dive.errors import DiveError, checks
from dive.errors.checks import ACTIVATIONS, MAX_RANK
from dive.files.strict_json import short

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter.safetensors"
FORMAT = 1
POSITIONS = ("all", "response")


@dataclass
class SteeringConfig:
    """The form of the edit; every baseline is a configuration of the same operator.

    rank: number R of in-context vectors mixed by the hidden state, at most 128; 0 leaves one fixed
        vector per layer.
    layers: "all", or the indices of the decoder layers that are steered.
    activation: of the mixing weights: silu, gelu, tanh or identity (a low-rank linear edit).
    norm_preserving: rescale the steered state to the norm that it had.
    positions: "all" (every position, prompt and image included) or "response" (the last prompt
        position and every generated one).
    eps: added to the mean square of the state before the square root; a normal float32.
    """

    rank: int = 16
    layers: str | list[int] = "all"
    activation: str = "silu"
    norm_preserving: bool = False
    positions: str = "all"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        self.rank, self.eps = checks.plain(self.rank), checks.plain(self.eps)
        if isinstance(self.layers, (list, tuple)):
            self.layers = [checks.plain(index) for index in self.layers]

        def want(good: bool, name: str, wanted: str) -> None:
            if not good:
                raise DiveError(
                    f"SteeringConfig: {name} is {short(getattr(self, name))}, want {wanted}"
                )

        def whole(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0

        want(
            whole(self.rank) and self.rank <= MAX_RANK,
            "rank",
            f"a whole number from 0 to {MAX_RANK}",
        )
        want(self.activation in ACTIVATIONS, "activation", "one of " + ", ".join(ACTIVATIONS))
        want(self.positions in POSITIONS, "positions", "one of " + ", ".join(POSITIONS))
        want(isinstance(self.norm_preserving, bool), "norm_preserving", "True or False")
        want(
            checks.is_number(self.eps),
            "eps",
            f"a number > 0 that float32 has ({checks.LEAST:.3g} to {checks.MOST:.3g})",
        )
        if self.layers != "all":
            listed = isinstance(self.layers, (list, tuple)) and len(self.layers) > 0
            want(
                listed and all(map(whole, self.layers)) and len({*self.layers}) == len(self.layers),
                "layers",
                '"all" or a list of different layer indices',
            )
            self.layers = sorted(index for index in self.layers if isinstance(index, int))
