"""What is one value for all adapters of a server, in the entry `dive_steering` of hf_overrides.

The operator is compiled and captured with them, so they are known when the server starts, and an
adapter that wants others is refused by name.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from dive.adapter.config import SteeringConfig
from dive.errors import DiveError

ENTRY = "dive_steering"


@dataclass(frozen=True)
class ServerSteering:
    """The settings of steering on one server; see `dive.SteeringConfig` for their meaning.

    other_weights: serve adapters also where the fingerprint says that they were made on other
        weights.
    """

    activation: str = "silu"
    norm_preserving: bool = False
    eps: float = 1e-6
    positions: str = "all"
    other_weights: bool = False

    @classmethod
    def of_adapter(cls, config: SteeringConfig) -> Self:
        return cls(config.activation, config.norm_preserving, float(config.eps), config.positions)

    @classmethod
    def of_model(cls, hf_config: Any) -> Self:
        """The entry of a served model's configuration; defaults where it has none.

        Raises:
            DiveError: an unknown setting, or a value that it cannot have.
        """
        given = getattr(hf_config, ENTRY, None) or {}
        if not isinstance(given, dict):
            raise DiveError(f"hf_overrides: {ENTRY} is {given!r}, want an object")
        odd = sorted(given.keys() - {one.name for one in fields(cls)})
        if odd:
            raise DiveError(f"hf_overrides: {ENTRY} has an unknown setting {odd[0]!r}")
        found = cls(**given)
        try:
            SteeringConfig(1, "all", *(getattr(found, name) for name in _SHARED))
        except DiveError as error:
            raise DiveError(f"hf_overrides: {ENTRY}: {error}") from error
        if not isinstance(found.other_weights, bool):
            raise DiveError(
                f"hf_overrides: {ENTRY}: other_weights is {found.other_weights!r}, want true or "
                "false"
            )
        return found

    def as_override(self) -> dict[str, Any]:
        """The entry as hf_overrides take it, without what is the default."""
        usual = asdict(type(self)())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    def difference(self, wanted: dict[str, Any]) -> str | None:
        """The first setting that an adapter wants otherwise, as "eps 1e-05 (here 1e-06)"."""
        for name in ("activation", "norm_preserving", "eps", "positions"):
            if wanted.get(name) != getattr(self, name):
                return f"{name} {wanted.get(name)!r} (here {getattr(self, name)!r})"
        return None


# the order of SteeringConfig's fields after rank and layers
_SHARED = ("activation", "norm_preserving", "positions", "eps")
