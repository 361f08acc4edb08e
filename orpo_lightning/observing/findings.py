"""What a run's figures mean, in plain sentences: what is wrong with it, or that it learns.

Pure, and of the standard library alone: the console says at the end of a run what its page says, in the same
words. A rule speaks where an interval leaves no other reading, and is silent otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.observing import held_out
from orpo_lightning.observing.diverging import diverging
from orpo_lightning.observing.finding import (
    DISPLACEMENT,
    LEARNING,
    NOT_LEARNING,
    REVERSED,
    Curves,
    Finding,
    around,
    ends,
)
from orpo_lightning.observing.held_out import FIRST, SEEN, HeldOut
from orpo_lightning.observing.length_only import beside_length, length_only
from orpo_lightning.observing.trend import thirds, training_rise


def findings(curves: Curves, pairs: Mapping[str, Any] | None) -> list[Finding]:
    """Return what a run shows, faults first; of a run that logged nothing, nothing.

    Args:
        curves: the lines of `curves.jsonl`: {"step", "train/loss", "val/loss", "val_ci_low/loss", …}.
        pairs: the arrays of `pairs.npz`; None where there is none, and the logged validations must do.
    """
    column = held_out.columns(pairs) if pairs is not None else None
    facts = held_out.of_run(curves, column)
    apart = diverging(curves, facts)
    if apart is not None:
        return [apart]
    # A liking for length turns held-out pairs round as well, where their better answers are the shorter ones.
    fault = length_only(column, facts) or _reversed(curves, facts)
    if fault is not None and fault.kind == REVERSED:
        return [fault]
    learned = None if fault else _learning(curves, facts)
    if learned is not None and learned.kind == LEARNING:
        learned = beside_length(learned, column, facts)
    return [one for one in (fault, _displacement(facts), learned) if one is not None]


def _reversed(curves: Curves, facts: HeldOut) -> Finding | None:
    """Find training pairs and held-out pairs that pull in opposite directions."""
    rise, fall, now = training_rise(curves), facts.accuracy_change, facts.accuracy
    if rise is None or fall is None or now is None or not fall.falls:
        return None
    is_below, margin = now.high < 0.5, facts.margin_change
    # Overfitting costs some held-out accuracy too; it does not turn the mean margin round.
    if not is_below and (margin is None or not margin.falls):
        return None
    meaning = (
        "the two sets prefer opposite answers"
        if is_below
        else "what the training pairs teach is not what the held-out ones want"
    )
    return Finding(
        REVERSED,
        f"held-out accuracy fell from {now.mean - fall.mean:.3f} to {now.mean:.3f} since {facts.since} (by "
        f"{-fall.mean:.3f}, {ends(fall, turned=True)}) while training {rise[0]} rose by {rise[1].mean:.3f} "
        f"({ends(rise[1])}): {meaning}.",
        "Look at pairs of both (`inspect`): in one of them chosen and rejected are probably swapped.",
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
        f"nats a token ({around(chosen)}), rejected {rejected.mean:+.3f} ({around(rejected)}).{learned}",
        "A lower model.objective.init_args.beta or model.optimizer.lr costs less fluency.",
    )


def _learning(curves: Curves, facts: HeldOut) -> Finding | None:
    if facts.accuracy is None or facts.accuracy_change is None:
        return _training_alone(curves, facts)
    now, change = facts.accuracy, facts.accuracy_change
    words = (
        f"held-out accuracy {now.mean - change.mean:.3f} → {now.mean:.3f} since {facts.since} "
        f"(change {change.mean:+.3f}, {around(change)})"
    )
    margin = facts.margin_change
    words += "" if margin is None else f", margin {margin.mean:+.3f} ({around(margin)})"
    if facts.improves:
        return Finding(LEARNING, f"{words}.", "")
    verdict = "worse than before" if facts.worsens else "no more than chance"
    if facts.since == FIRST and not facts.worsens:
        verdict += " (what was learned before that validation is not seen here)"
    rise = training_rise(curves)
    if rise is not None:
        seen = f"training {rise[0]} rose by {rise[1].mean:.3f} ({ends(rise[1])})"
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


def _training_alone(curves: Curves, facts: HeldOut) -> Finding | None:
    """Say what the training pairs show, where nothing held out can."""
    now = facts.accuracy
    known = any(thirds(curves, f"train/rewards/{name}") for name in ("accuracies", "margins"))
    if not known:
        return None
    how = "Set data.validation" if now is None else "Validate more often (trainer.val_check_interval)"
    advice = f"{how}, to know whether it holds for other pairs."
    rise = training_rise(curves)
    if rise is None:
        return Finding(NOT_LEARNING, "accuracy and margin of the training pairs have not risen.", advice)
    others = (
        "no pairs held out say the same"
        if now is None
        else f"held-out accuracy is {now.mean:.3f} ({around(now)}), with nothing before it to compare it with"
    )
    seen = f"training {rise[0]} rose by {rise[1].mean:.3f} ({ends(rise[1])})"
    return Finding(LEARNING, f"{seen}; {others}.", advice)
