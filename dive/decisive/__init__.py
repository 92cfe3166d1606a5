"""Decisive tokens: the mentions of pathology in a report, their polarity, and the report's end."""

from dive.decisive.mentions import Mention, find_mentions
from dive.decisive.tokens import DecisiveTokens

__all__ = ["DecisiveTokens", "Mention", "find_mentions"]
