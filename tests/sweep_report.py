"""A sweep's report with everything that a page of one can show."""

from __future__ import annotations

import math
from typing import Any

RANKS = ["lora_r 4, lora_alpha 4", "lora_r 16, lora_alpha 16"]


def _trial(number: int) -> dict[str, Any]:
    rate, beta = 10 ** (-5 + 3 * (number * 7 % 20) / 19), 0.1 + 1.9 * (number * 3 % 20) / 19
    value = 0.3 + 0.4 * (math.log10(rate) + 3.2) ** 2 + 0.1 * (beta - 1) ** 2
    state = "failed" if number == 9 else "pruned" if value > 1 and number > 5 else "complete"
    chosen = {
        "model.optimizer.init_args.lr": rate,
        "model.objective.init_args.beta": beta,
        "rank": RANKS[number % 2],
    }
    seen = [[25 * step, value * (1 + 1 / step)] for step in range(1, 3 if state == "pruned" else 5)]
    return {
        "number": number,
        "state": state,
        "value": None if state == "failed" else value,
        "chosen": chosen,
        "settings": {
            **{key: chosen[key] for key in list(chosen)[:2]},
            "model.lora_r": 4 if number % 2 == 0 else 16,
            "model.lora_alpha": 4 if number % 2 == 0 else 16,
        },
        "values": seen,
        "seconds": 61.5,
        "reason": "exit code 6: no finite gradient in 5 optimizer steps in a row"
        if state == "failed"
        else "",
        "folder": f"sweeps/smollm2/trials/{number:04d}",
    }


def report() -> dict[str, Any]:
    """Return it anew."""
    trials = [_trial(number) for number in range(1, 21)]
    # One that went astray.
    trials[4] |= {"value": 40.0, "state": "complete"}
    complete = [trial for trial in trials if trial["state"] == "complete"]
    return {
        "package": "0.1.0",
        "created": "2026-11-25T17:00:00",
        "command": "sweep --config configs/smollm2.yaml --search configs/sweeps/smollm2.yaml --trials 24",
        "metric": "val/odds_ratio_loss",
        "goal": "min",
        "space": {
            "model.optimizer.init_args.lr": {"low": 1e-5, "high": 1e-2, "log": True},
            "model.objective.init_args.beta": {"low": 0.1, "high": 2.0, "log": False},
            "rank": {"values": RANKS},
        },
        "planned": 24,
        "trials": trials,
        "best": min(complete, key=lambda trial: trial["value"])["number"],
    }
