"""Which of two answers a judge prefers: each comparison in both orders, and what the verdicts add up to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from orpo_lightning.bootstrap import estimate
from orpo_lightning.data.messages import Message
from orpo_lightning.judging.figures import written
from orpo_lightning.judging.kept import Kept, key_of
from orpo_lightning.judging.progress import Progress

Verdict = Literal["first", "second", "tie", "malformed"]


class Comparison(NamedTuple):
    """Two answers to one prompt, in the order in which they are shown."""

    turns: str | list[Message]
    first: str
    second: str


class Reply(NamedTuple):
    """What a judge said of a comparison."""

    verdict: Verdict
    text: str = ""
    """In its own words, where it has some."""
    is_final: bool = True
    """It would say the same again."""


class Judge(Protocol):
    """Compares answers."""

    name: str
    """For people."""
    key: Any
    """All that decides its verdicts."""

    def compare(self, asked: Sequence[Comparison], keep: Callable[[int, Reply], None]) -> None:
        """Compare each, and hand each reply to `keep` with its place as soon as it is there.

        Raises:
            SurroundingsError: the judge cannot be reached any more; what it said before was kept.
        """


def judged(
    judge: Judge,
    turns: Sequence[str | list[Message]],
    answers: Mapping[str, Sequence[str]],
    pair: tuple[str, str],
    kept: Kept,
) -> dict[str, Any]:
    """Let a judge compare two models' answers, and return how often the second model's is the better.

    Args:
        judge: asked only what is not kept.
        turns: of each prompt.
        answers: of each model, to each prompt.
        pair: the model before and the one after.
        kept: the file of verdicts.

    Raises:
        SurroundingsError: the judge cannot be reached.
    """
    before, after = (answers[name] for name in pair)
    different = [place for place in range(len(turns)) if before[place] != after[place]]
    shown = [Comparison(turns[place], before[place], after[place]) for place in different]
    swapped = [Comparison(turns[place], after[place], before[place]) for place in different]
    verdicts = _ask(judge, [*shown, *swapped], kept)
    both = zip(verdicts[: len(shown)], verdicts[len(shown) :], strict=True)
    return {
        "name": judge.name,
        "from": pair[0],
        "to": pair[1],
        "prompts": len(turns),
        **summary(list(both), len(turns) - len(different)),
    }


def _ask(judge: Judge, comparisons: Sequence[Comparison], kept: Kept) -> list[Verdict]:
    keys = [key_of(judge.key, *comparison) for comparison in comparisons]
    verdicts: dict[str, Verdict] = {key: found["verdict"] for key in keys if (found := kept.get(key))}
    missing = [place for place, key in enumerate(keys) if key not in verdicts]
    progress = Progress(f"comparisons by {judge.name}", len(missing))

    def keep(index: int, reply: Reply) -> None:
        asked, key = comparisons[missing[index]], keys[missing[index]]
        verdicts[key] = reply.verdict
        if reply.is_final:
            said = {"verdict": reply.verdict, "reply": reply.text}
            kept.add(key, judge=judge.name, **asked._asdict(), **said)
        progress.add(1)

    judge.compare([comparisons[place] for place in missing], keep)
    return [verdicts[key] for key in keys]


def summary(both: Sequence[tuple[Verdict, Verdict]], identical: int) -> dict[str, Any]:
    """Return counts, and the win rate of the model after with its interval.

    Args:
        both: of each prompt with two different answers: the verdict on (before, after), and on (after,
            before).
        identical: how many prompts got the same answer twice; a tie that nobody is asked about.

    Returns:
        `win_rate` is (wins + ties / 2) / judged prompts; None where none was judged. `first_preferred` is how
        often the answer shown first won, of the comparisons that had a winner: one half of a judge that does
        not mind the order.
    """
    outcomes = [outcome(*verdicts) for verdicts in both]
    known = [value for value in outcomes if value is not None] + [0.5] * identical
    said = Counter(verdict for verdicts in both for verdict in verdicts)
    decided = said["first"] + said["second"]
    return {
        "judged": len(known),
        "wins": known.count(1.0),
        "losses": known.count(0.0),
        "ties": known.count(0.5),
        "identical": identical,
        "disagreements": sum(a == b and a in ("first", "second") for a, b in both),
        "malformed": said["malformed"],
        "first_preferred": said["first"] / decided if decided else None,
        "win_rate": written(estimate(known, range(len(known)))) if known else None,
    }


def outcome(shown: Verdict, swapped: Verdict) -> float | None:
    """Return 1 where the model after wins in both orders, 0 where it loses in both, else a tie.

    A judge who prefers whatever is shown first has no opinion on the answers: that is a tie. Where one of the
    two replies could not be understood there is no outcome (None).
    """
    if "malformed" in (shown, swapped):
        return None
    if (shown, swapped) == ("second", "first"):
        return 1.0
    return 0.0 if (shown, swapped) == ("first", "second") else 0.5


def readable(turns: str | list[Message]) -> str:
    """Return a prompt as text for a judge: a raw one as it is, messages with their roles."""
    if isinstance(turns, str):
        return turns
    return "\n\n".join(f"{turn['role']}: {_content(turn)}" for turn in turns)


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    return f"{content or ''} {json.dumps(rest, ensure_ascii=False, default=str) if rest else ''}".strip()
