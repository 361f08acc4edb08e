"""Runs that come apart: numbers that are not finite, a loss that went up, answers that are unlearned."""

from __future__ import annotations

import math
from statistics import fmean

from orpo_lightning.observing.evidence import of_difference
from orpo_lightning.observing.finding import DIVERGING, Curves, Finding, ends
from orpo_lightning.observing.held_out import LEVEL, HeldOut, points
from orpo_lightning.observing.trend import PARTS, thirds

_COLLAPSE = 1.0
"""Nats a token: an answer's words are e times less likely than they were. No preference is worth that; it is
where `DivergenceWatch` warns while the run goes on."""
_ADVICE = "Lower model.optimizer.lr by ten, warm up longer, and set trainer.gradient_clip_val 1.0."


def diverging(curves: Curves, facts: HeldOut) -> Finding | None:
    """Return that a run diverges, and what shows it; None where nothing does."""
    broken = _ends_broken(curves)
    if broken is not None:
        return broken
    collapse = facts.chosen_change
    if collapse is not None and collapse.high < -_COLLAPSE:
        return Finding(
            DIVERGING,
            f"the log-probability of held-out chosen answers fell by {-collapse.mean:.2f} nats a token "
            f"({ends(collapse, turned=True)}): the model unlearns how to write them.",
            _ADVICE,
        )
    return _skips_go_on(curves) or _loss_returns(curves)


def _ends_broken(curves: Curves) -> Finding | None:
    """Find a loss that is not finite at the end.

    On the way it was a step that FiniteSteps left out: one is enough to make the mean of all logged with it
    NaN, and had the weights taken it, no later loss were finite. How many they were, `_skips_go_on` counts.
    """
    for name in ("train/loss", "val/loss"):
        values = points(curves, name)
        broken = [step for step, value in values if not math.isfinite(value)]
        if not broken or math.isfinite(values[-1][1]):
            continue
        if name == "train/loss" and _is_odd_step(curves, [step for step, _ in values]):
            continue
        return Finding(DIVERGING, f"{name} is not finite, first at step {broken[0]}.", _ADVICE)
    return None


def _is_odd_step(curves: Curves, logged: list[int]) -> bool:
    """Tell whether less than half of the steps since the training loss before the last were left out."""
    start, end = (logged[-2] if len(logged) > 1 else 0), logged[-1]
    return 0 < _skipped(curves, start, end) < (end - start) / 2


def _skipped(curves: Curves, start: float, end: float) -> float:
    """Return how many steps were left out from one step to another; the first one begins the count."""
    counts = points(curves, "train/skipped_steps")
    until = [max((count for step, count in counts if step <= edge), default=0.0) for edge in (start, end)]
    return until[1] - until[0]


def _skips_go_on(curves: Curves) -> Finding | None:
    """Find steps whose gradient was not finite, still at the end of the run.

    In half precision a few at the start are how the scale of the loss is found, and one in some thousand
    steps later is how it is kept: a tenth of the last steps is neither.
    """
    counts = points(curves, "train/skipped_steps")
    if not counts:
        return None
    last, skipped = counts[-1]
    since = last * (PARTS - 1) / PARTS
    recent = _skipped(curves, since, last)
    if recent * 10 < last - since:
        return None
    return Finding(
        DIVERGING,
        f"the gradient was not finite in {skipped:,.0f} of {last:,} steps, {recent:,.0f} of them "
        "in the last third of the run.",
        _ADVICE,
    )


def _loss_returns(curves: Curves) -> Finding | None:
    """Find a training loss that ends well above its lowest, with half of what was won lost again."""
    windows = thirds(curves, "train/loss")
    if not windows:
        return None
    means = [fmean(window) for window in windows]
    best = min(range(len(windows)), key=means.__getitem__)
    # The lowest of three was picked: its chance of lying low by luck is three times that of any one.
    rise = of_difference(windows[-1], windows[best], 1 - (1 - LEVEL) / PARTS)
    if rise is None or not rise.rises or means[-1] - means[best] < (means[0] - means[best]) / 2:
        return None
    return Finding(
        DIVERGING,
        f"the training loss went up, from {means[best]:.4g} at its lowest to {means[-1]:.4g} at the end "
        f"(at least {rise.low:.3g} more, noise allowed for).",
        _ADVICE,
    )
