"""One thing that was looked at, and how it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from orpo_lightning.errors import first_line

Status = Literal["ok", "warning", "error"]


class Check(NamedTuple):
    """A line of the report."""

    name: str
    status: Status
    """warning: something is slower, or cannot be had; error: training cannot work."""
    found: str
    advice: str = ""
    """What to do; empty where it is well."""


def checked(name: str, look: Callable[[], Check | Iterable[Check]]) -> list[Check]:
    """Return what a look gives; where it fails itself, that is what is reported.

    Args:
        name: of the thing, should the look fail.
        look: returns one line, or several.
    """
    try:
        found = look()
        return [found] if isinstance(found, Check) else list(found)
    except Exception as error:  # whatever a library raises: this must tell it, not end of it
        line = f"{type(error).__name__}: {first_line(error)}"
        return [Check(name, "error", f"could not be looked at ({line})", "set this right, then look again")]
