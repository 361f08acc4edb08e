"""An evaluation as `evaluate` writes it, of models that never were: every part filled."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np

from orpo_lightning.judging import calibration
from orpo_lightning.judging.canary import canary
from orpo_lightning.judging.figures import Bucket, Scores, of_buckets, of_change, of_model
from orpo_lightning.judging.verdicts import Verdict, summary

PAIRS = 240


def report() -> dict[str, Any]:
    """Return a whole evaluation of base, adapter and another model; it is the caller's to change."""
    return deepcopy(_report())


@cache
def _report() -> dict[str, Any]:
    draw = np.random.default_rng(4)
    prompts = np.repeat(np.arange(PAIRS // 4, dtype=np.uint64), 4)
    keys = draw.integers(2**63, size=(PAIRS, 3), dtype=np.uint64)
    chosen, rejected = draw.normal(-1.6, 0.4, PAIRS), draw.normal(-1.6, 0.4, PAIRS)
    models = {
        "base": Scores(chosen.clip(max=-0.1), rejected.clip(max=-0.1)),
        "adapter": Scores((chosen + 0.2).clip(max=-0.1), (rejected - 0.3).clip(max=-0.1)),
        "against": Scores((chosen + 0.1).clip(max=-0.1), (rejected - 0.1).clip(max=-0.1)),
    }
    halves = draw.random(PAIRS) < 0.5
    buckets = [
        Bucket("source", "one.jsonl", halves),
        Bucket("source", "more/two.parquet", ~halves),
        Bucket("longer answer", "chosen", draw.random(PAIRS) < 0.7),
        Bucket("agreement", "2", draw.random(PAIRS) < 0.3),
    ]
    calibrated = {
        name: calibration.calibration(calibration.predictions(one.log_odds_ratios, keys), prompts)
        for name, one in models.items()
    }
    verdicts: list[tuple[Verdict, Verdict]] = [("second", "first")] * 11
    verdicts += [("first", "second")] * 5 + [("first", "first")] * 3 + [("malformed", "first")]
    rows, losses = [[1] * 30, [2] * 50, [3] * 20], np.array([2.1, 2.3, 2.6])
    return {
        "package": "0.1.0",
        "created": "2026-11-25T10:00:00",
        "command": "evaluate runs/mistral --against runs/mistral/merged --judge http://localhost:8000/v1",
        "names": {"model": "runs/mistral", "against": "runs/mistral/merged"},
        "data": {
            "origin": "data.test of runs/mistral",
            "name": "one.jsonl + more/two.parquet",
            "left_out": {"identical answers": 12},
        },
        "settings": {
            "model": "example/tiny-7b with runs/mistral/adapter",
            "quantization": "nf4 (as it was trained)",
            "precision": "bfloat16 (compute capability 8.0 has bfloat16, no loss scaling needed)",
            "layout": "shared_prefix (equal to padded on a test batch)",
        },
        "pairs": PAIRS,
        "prompts": PAIRS // 4,
        "models": {name: of_model(one, prompts) for name, one in models.items()},
        "change": {"from": "base", "to": "adapter"} | of_change(models["base"], models["adapter"], prompts),
        "against": {"from": "against", "to": "adapter"}
        | of_change(models["against"], models["adapter"], prompts),
        "calibration": {"definition": calibration.DEFINITION, "models": calibrated},
        "buckets": of_buckets(buckets, models, prompts, ("base", "adapter")),
        "canary": canary({"base": losses, "adapter": losses + 0.02}, rows, ("base", "adapter")),
        "judge": {
            "name": "judge-32b at http://localhost:8000/v1",
            "from": "base",
            "to": "adapter",
            "prompts": 22,
            **summary(verdicts, identical=2),
        },
        "samples": [
            {
                "prompt": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Name three things\nthat float."},
                ],
                "base": "Stones.\nAnd more stones.",
                "adapter": "Cork, ice, a boat. " * 12,
                "against": "",
            },
            {"prompt": "2 + 2 = ", "base": "5", "adapter": "4", "against": "4"},
        ],
    }
