"""Decisive tokens: the mentions of pathology in a report, their polarity, and the report's end."""

from dive.decisive.tokens import DecisiveTokens, Mention, find_mentions

__all__ = ["DecisiveTokens", "Mention", "find_mentions"]
