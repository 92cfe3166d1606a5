"""The steering adapter: its parameters and files, and how it is attached to a frozen model."""

from dive.adapter.adapter import SteeringAdapter, as_adapter
from dive.adapter.attach import Attachment, attachment_of, steer
from dive.adapter.config import SteeringConfig

__all__ = [
    "Attachment",
    "SteeringAdapter",
    "SteeringConfig",
    "as_adapter",
    "attachment_of",
    "steer",
]
