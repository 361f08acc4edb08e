"""What verdicts in both orders add up to, and that results outlive a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from orpo_lightning.judging.kept import Kept, key_of
from orpo_lightning.judging.verdicts import Verdict, outcome, readable, summary


@pytest.mark.parametrize(
    ("shown", "swapped", "wanted"),
    [
        ("second", "first", 1.0),
        ("first", "second", 0.0),
        ("first", "first", 0.5),
        ("second", "second", 0.5),
        ("tie", "tie", 0.5),
        ("tie", "first", 0.5),
        ("second", "tie", 0.5),
        ("malformed", "first", None),
        ("tie", "malformed", None),
    ],
)
def test_a_win_needs_both_orders(shown: Verdict, swapped: Verdict, wanted: float | None) -> None:
    assert outcome(shown, swapped) == wanted


def test_ties_count_one_half_and_what_was_not_understood_counts_nowhere() -> None:
    wins: list[tuple[Verdict, Verdict]] = [("second", "first")] * 5
    found = summary([*wins, ("first", "second"), ("first", "first"), ("malformed", "first")], identical=2)
    assert (found["wins"], found["losses"], found["ties"], found["judged"]) == (5, 1, 3, 9)
    assert (found["identical"], found["disagreements"], found["malformed"]) == (2, 1, 1)
    assert found["win_rate"]["mean"] == pytest.approx((5 + 1.5) / 9)
    assert found["win_rate"]["low"] < found["win_rate"]["mean"] < found["win_rate"]["high"]
    # 5 wins, a loss and the malformed one say "first" once each way; a disagreement twice.
    assert found["first_preferred"] == pytest.approx(9 / 15)


def test_where_nothing_was_understood_there_is_no_win_rate() -> None:
    found = summary([("malformed", "malformed")], identical=0)
    assert found["win_rate"] is None
    assert found["first_preferred"] is None


def test_a_result_is_found_again_and_a_torn_line_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "kept.jsonl"
    kept = Kept(file)
    kept.add("one", text="\u2028 two\nlines")
    kept.add("two", text="x" * 100)
    file.write_bytes(file.read_bytes()[:-30])
    again = Kept(file)
    assert again.get("one") == {"key": "one", "text": "\u2028 two\nlines"}
    assert again.get("two") is None
    again.add("two", text="y")
    assert Kept(file).get("two") == {"key": "two", "text": "y"}
    assert Kept(file).get("one") is not None


def test_a_key_tells_apart_all_that_decides_a_result() -> None:
    assert key_of("a", ["b", 1]) == key_of("a", ("b", 1))
    assert len({key_of("a", "b"), key_of("ab", ""), key_of("b", "a"), key_of("a", "b", 1)}) == 4


def test_a_judge_reads_roles_and_everything_else_a_turn_has() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
    ]
    assert readable(turns) == 'system: Be brief.\n\nassistant: {"tool_calls": [{"name": "add"}]}'
    assert readable("raw text") == "raw text"
