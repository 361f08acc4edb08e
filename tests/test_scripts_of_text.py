"""Which script a text is written in."""

from __future__ import annotations

import time

import pytest

from orpo_lightning.data.scripts_of_text import script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The answer is 42.", "Latin"),
        ("Größe, naïve, Łódź, điện", "Latin"),
        ("Привет, мир", "Cyrillic"),
        ("Καλημέρα, ἀρχή", "Greek"),
        ("مرحبا بالعالم", "Arabic"),
        ("שלום עולם", "Hebrew"),
        ("नमस्ते दुनिया", "Devanagari"),
        ("你好,世界", "Han"),
        ("東京都庁を訪問", "Hiragana/Katakana"),
        ("カタカナ", "Hiragana/Katakana"),
        ("안녕하세요", "Hangul"),
        ("สวัสดีชาวโลก", "Thai"),
        ("வணக்கம்", "other"),
        ("1 + 1 = 2", "other"),
        ("😀 → ✓", "other"),
        ("", "other"),
    ],
)
def test_a_text_is_of_the_script_of_its_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_the_script_of_most_letters_wins() -> None:
    assert script_of("GPU означает графический процессор") == "Cyrillic"
    assert script_of("The word мир means peace or world") == "Latin"


def test_a_chinese_text_with_one_kana_among_many_characters_stays_han() -> None:
    assert script_of("这个符号叫做の" + "好" * 40) == "Han"


def test_an_answer_of_megabytes_takes_no_longer_than_a_short_one() -> None:
    text = "д" * 20_000_000
    begun = time.perf_counter()
    assert script_of(text) == "Cyrillic"
    assert time.perf_counter() - begun < 0.1
