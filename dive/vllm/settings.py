"""What is one value for all adapters of a server, in the entry `dive_steering` of hf_overrides.

The operator is compiled and captured with them, so they are known when the server starts, and an
adapter that wants others is refused by name.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from dive.adapter.config import SteeringConfig
from dive.errors import DiveError

ENTRY = "dive_steering"
SHARED = ("activation", "norm_preserving", "eps")  # of SteeringConfig


@dataclass(frozen=True)
class ServerSteering:
    """The settings of steering on one server; see `dive.SteeringConfig` for their meaning.

    other_weights: serve adapters also where the fingerprint says that they were made on other
        weights.
    """

    activation: str = "silu"
    norm_preserving: bool = False
    eps: float = 1e-6
    other_weights: bool = False

    @classmethod
    def of_adapter(cls, config: SteeringConfig) -> Self:
        """The settings that an adapter wants.

        Raises:
            DiveError: it steers the response alone: vLLM does not tell a model which tokens of a
                batch belong to prompts.
        """
        if config.positions != "all":
            raise DiveError(
                f"the adapter has positions {config.positions!r}, and in vLLM adapters steer all "
                'positions, those of the prompt too, want one trained with positions="all" (or '
                "--engine auto, dive._C or transformers)"
            )
        return cls(config.activation, config.norm_preserving, float(config.eps))

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
            SteeringConfig(**{name: getattr(found, name) for name in SHARED})
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
        for name in SHARED:
            if wanted.get(name) != getattr(self, name):
                return f"{name} {wanted.get(name)!r} (here {getattr(self, name)!r})"
        return None
