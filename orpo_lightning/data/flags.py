"""What was noticed about a pair on its way, one bit each: none is a reason to leave it out."""

from __future__ import annotations

CONTROL_TOKEN = 1
"""A control token's text stands in a message; it was encoded as text."""
CONTROL_CHARACTER = 2
"""NUL or another control character stands in a text."""
PROMPT_REPEATED = 4
"""The prompt stands again at the beginning of both answers."""
CHOSEN_CUT = 8
REJECTED_CUT = 16
