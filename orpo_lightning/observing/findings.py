"""What a run's figures mean, in plain sentences: what is wrong with it, or that it learns.

Pure, and of the standard library alone: the console says at the end of a run what its page says, in the same
words. A rule speaks where an interval leaves no other reading, and is silent otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from orpo_lightning.observing import held_out
from orpo_lightning.observing.evidence import FEWEST, Interval, of_correlation, of_difference, of_share
from orpo_lightning.observing.held_out import LEVEL, SEEN, Column, HeldOut, points

REVERSED, DIVERGING, LENGTH_ONLY = "reversed labels", "diverging", "length only"
DISPLACEMENT, NOT_LEARNING, LEARNING = "displacement", "not learning", "learning"
FAULTS = (DIVERGING, REVERSED, LENGTH_ONLY)
"""After one of these nothing else that the run shows is worth much."""

Curves = Sequence[Mapping[str, Any]]
_WINDOWS = 5
"""A training curve is compared in fifths: few enough that each holds several logged values of a short run."""
_COLLAPSE = 1.0
"""Nats a token: an answer's words are e times less likely than they were. No preference is worth that; it is
where `DivergenceWatch` warns while the run goes on."""
_ONE_SIDED = 0.95
"""Share of held-out pairs with the longer answer chosen, from which on the others are too few to judge by."""
_TENTH = 0.3
"""A correlation above it explains a tenth of the spread (0.3 squared)."""


class Finding(NamedTuple):
    """One thing that a run shows."""

    kind: str
    sentence: str
    """What was seen, with its figures."""
    advice: str
    """What to do, or what to do next."""

    @property
    def line(self) -> str:
        """All of it as one line."""
        return f"{self.kind}: {self.sentence} {self.advice}".strip()


def findings(curves: Curves, pairs: Mapping[str, Any] | None) -> list[Finding]:
    """Return what a run shows, faults first; of a run that logged nothing, nothing.

    Args:
        curves: the lines of `curves.jsonl`: {"step", "train/loss", "val/loss", "val_ci_low/loss", …}.
        pairs: the arrays of `pairs.npz`; None where there is none, and the logged validations must do.
    """
    column = held_out.columns(pairs) if pairs is not None else None
    facts = held_out.of_pairs(column) if column and column.prompts else held_out.of_curves(curves)
    diverging = _diverging(curves, facts)
    if diverging:
        return [diverging]
    # A liking for length turns held-out pairs round as well, where their better answers are the shorter ones.
    fault = _length_only(column, facts) or _reversed(curves, facts)
    if fault is not None and fault.kind == REVERSED:
        return [fault]
    rest = [fault, _displacement(facts), None if fault else _learning(curves, facts)]
    return [one for one in rest if one is not None]


def _diverging(curves: Curves, facts: HeldOut) -> Finding | None:
    advice = "Lower model.optimizer.lr by ten, warm up longer, and set trainer.gradient_clip_val 1.0."
    broken = [(step, name) for name in ("train/loss", "val/loss") for step in _not_finite(curves, name)]
    # A single value may be one odd batch, left out by FiniteSteps; the last one is what the run ends with.
    last = max((int(row["step"]) for row in curves), default=0)
    if len(broken) > 1 or any(step == last for step, _ in broken):
        step, name = min(broken)
        return Finding(DIVERGING, f"{name} is not finite, first at step {step}.", advice)
    collapse = facts.chosen_change
    if collapse is not None and collapse.high < -_COLLAPSE:
        return Finding(
            DIVERGING,
            f"the log-probability of held-out chosen answers fell by {-collapse.mean:.2f} nats a token "
            f"({_ends(collapse)}): the model unlearns how to write them.",
            advice,
        )
    return _skips_go_on(curves, advice) or _loss_returns(curves, advice)


def _not_finite(curves: Curves, name: str) -> list[int]:
    return [step for step, value in points(curves, name) if not math.isfinite(value)]


def _skips_go_on(curves: Curves, advice: str) -> Finding | None:
    """Find steps whose gradient was not finite, still at the end of the run.

    In half precision a few at the start are how the scale of the loss is found, and one in some thousand steps
    later is how it is kept: a tenth of the last steps is neither.
    """
    counts = points(curves, "train/skipped_steps")
    if not counts:
        return None
    last, skipped = counts[-1]
    since = last * (_WINDOWS - 1) / _WINDOWS
    before = max((count for step, count in counts if step <= since), default=0.0)
    if (skipped - before) * 10 < last - since:
        return None
    return Finding(
        DIVERGING,
        f"the gradient was not finite in {skipped:,.0f} of {last:,} steps, {skipped - before:,.0f} of them in "
        "the last fifth of the run.",
        advice,
    )


def _loss_returns(curves: Curves, advice: str) -> Finding | None:
    """Find a training loss that ends well above its lowest, with half of what was won lost again."""
    windows = _windows(curves, "train/loss")
    if not windows:
        return None
    means = [fmean(window) for window in windows]
    best = min(range(len(windows)), key=means.__getitem__)
    # The lowest of five was picked: its chance of lying low by luck is five times that of any one.
    rise = of_difference(windows[-1], windows[best], 1 - (1 - LEVEL) / _WINDOWS)
    if rise is None or not rise.rises or means[-1] - means[best] < (means[0] - means[best]) / 2:
        return None
    return Finding(
        DIVERGING,
        f"the training loss went up, from {means[best]:.4g} at its lowest to {means[-1]:.4g} at the end "
        f"({_ends(rise)} more).",
        advice,
    )


def _windows(curves: Curves, name: str) -> list[list[float]]:
    """Return a training curve in fifths; nothing where a fifth would hold fewer than three values."""
    values = [value for _, value in points(curves, name) if math.isfinite(value)]
    each = len(values) // _WINDOWS
    if each < 3:
        return []
    return [values[len(values) - each * (left + 1) : len(values) - each * left] for left in range(_WINDOWS)][
        ::-1
    ]


def _rise(curves: Curves, name: str) -> Interval | None:
    """Return how far the last fifth of a training curve lies above its first."""
    windows = _windows(curves, name)
    return of_difference(windows[-1], windows[0], LEVEL) if windows else None


def _training_rise(curves: Curves) -> tuple[str, Interval] | None:
    """Return by how much training accuracy or margin rose, where that is no chance."""
    for name, words in (("train/rewards/accuracies", "accuracy"), ("train/rewards/margins", "margin")):
        rise = _rise(curves, name)
        if rise is not None and rise.rises:
            return words, rise
    return None


def _reversed(curves: Curves, facts: HeldOut) -> Finding | None:
    """Find training pairs and held-out pairs that pull in opposite directions."""
    rise, fall, now = _training_rise(curves), facts.accuracy_change, facts.accuracy
    if rise is None or fall is None or now is None or not fall.falls:
        return None
    # Overfitting costs held-out accuracy too; it neither turns most pairs round nor the mean margin.
    turned = now.high < 0.5 or (facts.margin_change is not None and facts.margin_change.falls)
    if not turned:
        return None
    before = now.mean - fall.mean
    return Finding(
        REVERSED,
        f"held-out accuracy fell from {before:.3f} to {now.mean:.3f} since {facts.since} (by "
        f"{-fall.mean:.3f}, {_ends(fall, turned=True)}) while training {rise[0]} rose by {rise[1].mean:.3f} "
        f"({_ends(rise[1])}): the two sets prefer opposite answers.",
        "Look at pairs of both (`inspect`): in one of them chosen and rejected are swapped.",
    )


def _length_only(column: Column | None, facts: HeldOut) -> Finding | None:
    """Find a model that prefers the longer answer, whether it is the chosen one or not."""
    if column is None or not column.prompts:
        return None
    longer = column.longer
    right = column.where([by > 0 for by in longer])
    wrong = column.where([by < 0 for by in longer])
    where_right, where_wrong = (of_share(one.wins, one.prompts, LEVEL) for one in (right, wrong))
    if where_right is None or where_wrong is None:
        return _length_alone(column, facts)
    gained, lost = _change_of_wins(right), _change_of_wins(wrong)
    follows = where_right.low > 0.5 and where_wrong.high < 0.5 and not (lost and lost.rises)
    turned = gained is not None and lost is not None and gained.rises and lost.falls
    if not (follows or turned):
        return _length_alone(column, facts)
    return Finding(
        LENGTH_ONLY,
        f"accuracy is {where_right.mean:.3f} ({_range(where_right)}) on the {len(right.prompts):,} held-out "
        f"pairs whose chosen answer is the longer one, and {where_wrong.mean:.3f} ({_range(where_wrong)}) on "
        f"the {len(wrong.prompts):,} where it is the shorter one: the model prefers the longer answer"
        f"{'' if _is_learned(right, wrong) else ', as the base model did'}.",
        _BALANCE,
    )


_BALANCE = (
    "Balance the lengths of chosen and rejected answers in the training data (`inspect` shows them), and "
    "judge by the accuracy where the longer answer is wrong."
)


def _change_of_wins(column: Column) -> Interval | None:
    known = column.with_base()
    return held_out.change(known.wins, known.base_wins, known.prompts) if known.prompts else None


def _is_learned(right: Column, wrong: Column) -> bool:
    """Tell whether the run taught the preference for length; where the base is not known, it did."""
    now: list[float] = []
    before: list[float] = []
    prompts: list[int] = []
    for column, sign in ((right.with_base(), 1.0), (wrong.with_base(), -1.0)):
        now += [sign * win for win in column.wins]
        before += [sign * win for win in column.base_wins]
        prompts += column.prompts
    learned = held_out.change(now, before, prompts) if prompts else None
    return learned is None or learned.rises


def _length_alone(column: Column, facts: HeldOut) -> Finding | None:
    """Find margins that grow with length, where the shorter answer is hardly ever the chosen one."""
    longer = [by > 0 for by in column.longer]
    known = column.with_base()
    if fmean(longer) < _ONE_SIDED or len(known.prompts) < FEWEST or not facts.improves:
        return None
    moved = [now - before for now, before in zip(known.margins, known.base_margins, strict=True)]
    linked = of_correlation(known.longer, moved, LEVEL)
    if linked is None or linked.low < _TENTH:
        return None
    return Finding(
        LENGTH_ONLY,
        f"the longer answer is the chosen one in {sum(longer):,} of {len(longer):,} held-out pairs, and the "
        f"margin has grown most where it is longest (correlation {linked.mean:.2f}, {_range(linked)}): these "
        "pairs cannot tell a preference from a liking for length.",
        _BALANCE,
    )


def _displacement(facts: HeldOut) -> Finding | None:
    """Find both answers less likely than under the base."""
    chosen, rejected = facts.chosen_change, facts.rejected_change
    if chosen is None or rejected is None or not (chosen.falls and rejected.falls) or chosen.mean > -SEEN:
        return None
    learned = " Preferences are learned, fluency is being paid for it." if facts.improves else ""
    return Finding(
        DISPLACEMENT,
        f"both held-out answers have become less likely than under the base model: chosen {chosen.mean:+.3f} "
        f"nats a token ({_range(chosen)}), rejected {rejected.mean:+.3f} ({_range(rejected)}).{learned}",
        "A lower model.objective.init_args.beta or model.optimizer.lr costs less fluency.",
    )


def _learning(curves: Curves, facts: HeldOut) -> Finding | None:
    if facts.accuracy is None or facts.accuracy_change is None:
        return _training_alone(curves)
    now, change = facts.accuracy, facts.accuracy_change
    words = (
        f"held-out accuracy {now.mean - change.mean:.3f} → {now.mean:.3f} since {facts.since} "
        f"(change {change.mean:+.3f}, {_range(change)})"
    )
    margin = facts.margin_change
    words += "" if margin is None else f", margin {margin.mean:+.3f} ({_range(margin)})"
    if facts.improves:
        return Finding(LEARNING, f"{words}.", "")
    verdict = "worse than before" if facts.worsens else "no more than chance"
    rise = _training_rise(curves)
    if rise is not None:
        seen = f"training {rise[0]} rose by {rise[1].mean:.3f} ({_ends(rise[1])})"
        advice = (
            "More prompts would tell more than more steps; fewer epochs and a lower rank learn less by heart."
        )
        return Finding(NOT_LEARNING, f"{words}: {verdict}, while {seen}.", advice)
    advice = (
        "Lower model.optimizer.lr, and look at the pairs (`inspect`)."
        if facts.worsens
        else "Train longer, or raise model.optimizer.lr or model.objective.init_args.beta."
    )
    return Finding(NOT_LEARNING, f"{words}: {verdict}.", advice)


def _training_alone(curves: Curves) -> Finding | None:
    """Say what the training pairs show, where nothing held out can."""
    known = any(_windows(curves, f"train/rewards/{name}") for name in ("accuracies", "margins"))
    if not known:
        return None
    advice = "Set data.validation, to know whether it holds for other pairs."
    rise = _training_rise(curves)
    if rise is None:
        return Finding(NOT_LEARNING, "accuracy and margin of the training pairs have not risen.", advice)
    return Finding(
        LEARNING,
        f"training {rise[0]} rose by {rise[1].mean:.3f} ({_ends(rise[1])}); no pairs held out say the same.",
        advice,
    )


def _ends(interval: Interval, *, turned: bool = False) -> str:
    """Return the ends of an interval, of a rise or, turned, of a fall."""
    low, high = (-interval.high, -interval.low) if turned else (interval.low, interval.high)
    return f"{100 * LEVEL:.0f} % {low:.3f} to {high:.3f}"


def _range(interval: Interval) -> str:
    signed = "+" if interval.low < 0 else ""
    return f"{100 * LEVEL:.0f} % {interval.low:{signed}.3f} to {interval.high:{signed}.3f}"
