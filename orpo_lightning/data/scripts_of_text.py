"""In which script a text is written, roughly: by the blocks of Unicode that most of its letters stand in."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections import Counter

OTHER = "other"
_KANA, _HAN = "Hiragana/Katakana", "Han"
_SPANS = {
    "Latin": "41-5A 61-7A AA BA C0-D6 D8-F6 F8-24F 250-2AF 1E00-1EFF 2C60-2C7F A722-A7FF AB30-AB6F FB00-FB06 "
    "FF21-FF3A FF41-FF5A",
    "Greek": "370-3FF 1F00-1FFF",
    "Cyrillic": "400-52F 1C80-1C8F 2DE0-2DFF A640-A69F",
    "Hebrew": "590-5FF FB1D-FB4F",
    "Arabic": "600-6FF 750-77F 870-8FF FB50-FDFF FE70-FEFE",
    "Devanagari": "900-97F A8E0-A8FF",
    "Thai": "E00-E7F",
    "Hangul": "1100-11FF 3130-318F A960-A97F AC00-D7FF",
    _KANA: "3040-30FF 31F0-31FF FF66-FF9D",
    _HAN: "2E80-2FDF 3005-3007 3400-4DBF 4E00-9FFF F900-FAFF 20000-323AF",
}
# Beginning and end of an answer of a megabyte are written alike.
_MOST_CHARACTERS = 2000
# Japanese is written with more Han characters than kana, Chinese without any kana.
_KANA_OF_JAPANESE = 0.05


def _span(text: str, script: str) -> tuple[int, int, str]:
    first, _, last = text.partition("-")
    return int(first, 16), int(last or first, 16), script


_TABLE = sorted(_span(text, script) for script, spans in _SPANS.items() for text in spans.split())
_FIRSTS = [first for first, _, _ in _TABLE]


def script_of(text: str) -> str:
    """Return the script of most of a text's letters; "other" where it has none or another.

    Args:
        text: only its first 2,000 characters are looked at.
    """
    beginning = text[:_MOST_CHARACTERS]
    if beginning.isascii():
        return "Latin" if any(map(str.isalpha, beginning)) else OTHER
    counts: Counter[str] = Counter()
    for character, count in Counter(beginning).items():
        # A vowel sign of Devanagari is no letter by itself, but a mark.
        if character.isalpha() or unicodedata.category(character).startswith("M"):
            counts[_script_of_letter(ord(character))] += count
    if counts[_KANA] > _KANA_OF_JAPANESE * (counts[_KANA] + counts[_HAN]):
        counts[_KANA] += counts.pop(_HAN, 0)
    return max(counts, key=counts.__getitem__, default=OTHER) if counts.total() else OTHER


def _script_of_letter(code: int) -> str:
    place = bisect_right(_FIRSTS, code) - 1
    if place < 0 or code > _TABLE[place][1]:
        return OTHER
    return _TABLE[place][2]
