"""Times in words."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
