"""How numbers, settings and tokens are written on a page."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any

from markupsafe import Markup, escape

NOTHING = "–"
"""Stands where a report has no value."""
_SPACE = "\u00a0"  # between a number and its sign, where no line may break
# Half of a surrogate pair cannot be written as UTF-8, and HTML has no way to write a control character.
_NOT_TEXT = re.compile("[\ud800-\udfff\ufffe\uffff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Separators, controls, format characters (right-to-left overrides), unassigned and private ones.
_INVISIBLE = {"Zs", "Zl", "Zp", "Cc", "Cf", "Cn", "Co", "Cs"}
_SIGNS = {" ": "·", "\n": "⏎\n", "\t": "→", "\r": "␍"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """Return a number with separated thousands: whole from 1,000 on, else with up to two decimals.

    What is no number is given back as text, and what is missing as a dash.
    """
    if not _is_number(value):
        return NOTHING if value is None or value != value else str(value)
    if isinstance(value, int):
        return _minus(f"{value:,}")
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    return _minus(text.rstrip("0").rstrip(".") if "." in text else text)


def _minus(text: str) -> str:
    return text.replace("-", "−")  # as wide as a digit


def percent(share: Any) -> str:
    """Return a share of 1 as a percentage with one decimal; a small one never reads as none at all."""
    if not _is_number(share):
        return number(share)
    if 0 < share < 0.0005:
        return f"<{_SPACE}0.1{_SPACE}%"
    if 0.9995 <= share < 1:
        return f">{_SPACE}99.9{_SPACE}%"
    return f"{100 * share:,.1f}{_SPACE}%"


def amount(value: Any) -> str:
    """Return what a check found or allows: a fraction as a percentage, all else as a number."""
    return percent(value) if isinstance(value, float) and 0 <= value <= 1 else number(value)


def setting(value: Any) -> str:
    """Return a setting as a user writes it."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number and its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def writable(text: str) -> str:
    """Replace what cannot stand in an HTML file in UTF-8."""
    return _NOT_TEXT.sub("\ufffd", text)


def visible(token: str) -> Markup:
    """Return a token's text with a sign for each white space and each character that cannot be seen."""
    pieces = []
    for character in token:
        if character in _SIGNS:
            pieces.append(f"<b>{_SIGNS[character]}</b>")
        elif unicodedata.category(character) in _INVISIBLE:
            pieces.append(f"<b>U+{ord(character):04X}</b>")
        else:
            pieces.append(str(escape(character)))
    return Markup("".join(pieces))  # every piece was escaped above
