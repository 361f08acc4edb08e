"""A report as `inspect` writes it, of a set that never was: three splits, every part filled."""

from __future__ import annotations

import random
from copy import deepcopy
from functools import cache
from typing import Any

Report = dict[str, Any]


def histogram(values: list[float], step: float, count: int) -> Report:
    """Return counts between equally far edges, the last of them above the largest value."""
    edges = [round(step * index, 6) for index in range(count + 1)]
    counts = [0] * count
    for value in values:
        counts[int(value / step)] += 1
    ordered = sorted(values)
    return {
        "edges": edges,
        "counts": counts,
        "median": ordered[len(ordered) // 2],
        "p95": ordered[int(0.95 * len(ordered))],
        "max": ordered[-1],
        "mean": sum(values) / len(values),
    }


def lengths(dice: random.Random, pairs: int) -> Report:
    drawn = {
        name: [min(2499, int(dice.lognormvariate(middle, spread))) for _ in range(pairs)]
        for name, middle, spread in (("prompt", 4.2, 0.7), ("chosen", 5.3, 0.7), ("rejected", 5.1, 0.75))
    }
    longer = map(max, drawn["chosen"], drawn["rejected"])
    drawn["pair"] = [
        min(3199, prompt + answer) for prompt, answer in zip(drawn["prompt"], longer, strict=True)
    ]
    return {
        name: histogram([float(value) for value in values], 64.0 if name == "pair" else 50.0, 50)
        for name, values in drawn.items()
    }


def limits(pairs: int) -> list[Report]:
    over = {128: 0.83, 256: 0.47, 512: 0.131, 1024: 0.012, 2048: 0.0003, 4096: 0.0}
    return [
        {
            "max_length": limit,
            "pairs_over": round(share * pairs),
            "share": share,
            "tokens_lost": round(share * pairs * 310),
            "tokens_lost_share": share * 0.6,
            "is_set": limit == 1024,
        }
        for limit, share in over.items()
    ]


def row(where: str, words: str, chosen: str, rejected: str) -> Report:
    """Return a row's tokens in the ChatML manner, its answers cut into words."""
    tokens = [("<s>", "masked"), ("<|im_start|>", "prompt"), ("user", "prompt"), ("\n", "prompt")]
    tokens += [(part, "prompt") for part in pieces(words)]
    tokens += [(part, "prompt") for part in ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n")]
    for kind, answer in (("chosen", chosen), ("rejected", rejected)):
        tokens += [*((part, kind) for part in pieces(answer)), ("<|im_end|>", "stop")]
    return {"where": where, "tokens": [{"text": text, "kind": kind} for text, kind in tokens]}


def pieces(text: str) -> list[str]:
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


ROWS = [
    (
        "Name three things that float.\nOne line each.",
        "Cork\nIce\nA boat that is not too heavily laden",
        "Things that float: cork, ice, a boat.",
    ),
    (
        "Is 91 a prime number?",
        "No: 91 = 7 × 13.",
        "Yes, 91 is prime. " + "It has no divisors but one and itself. " * 40,
    ),
    ("Übersetze:\tgood morning", "Guten Morgen", "\u202eBuenos días\u202c 🙂"),
]


@cache
def split(name: str, pairs: int, seed: int) -> Report:
    dice = random.Random(seed)
    file = f"{name}.jsonl"
    read, reasons = pairs, []
    for reason, rows, is_broken in (
        ("identical answers", pairs // 33, False),
        ("pair longer than max_length", pairs // 60, False),
        ("broken row", 2, True),
    ):
        read += rows
        reasons.append({"reason": reason, "rows": rows, "broken": is_broken})
    for index, reason in enumerate(reasons):
        reason["share"] = reason["rows"] / read
        reason["examples"] = [f"{file}:{12 + 31 * index + 97 * example}" for example in range(5)]
    return {
        "sources": [
            {
                "source": file,
                "shape": "explicit messages",
                "rows": read - 300,
                "kept": pairs - 290,
                "weight": None,
            },
            {"source": "more/pairs.csv", "shape": "implicit text", "rows": 300, "kept": 290, "weight": 0.25},
        ],
        "rows": {"read": read, "kept": pairs, "left_out": read - pairs},
        "left_out": reasons,
        "suspicious": [
            {
                "kind": "contradictory pairs",
                "rows": 4,
                "share": 4 / read,
                "meaning": "The same two answers stand in both orders; keep the one you trust.",
                "examples": [f"{file}:3 and {file}:88", f"{file}:120 and {file}:1411"],
            },
            {
                "kind": "duplicate pairs",
                "rows": 37,
                "share": 37 / read,
                "meaning": "The same pair stands more than once and weighs more; drop all but one.",
                "examples": [f"{file}:41", f"{file}:77", f"{file}:90"],
            },
            {"kind": "control tokens in a text", "rows": 0, "share": 0.0, "meaning": "–", "examples": []},
        ],
        "lengths": lengths(dice, pairs),
        "limits": limits(pairs),
        "answers": {"count": 2 * pairs, "cut": pairs // 80, "cut_share": pairs // 80 / (2 * pairs)},
        "longer": {
            "chosen_longer": 0.67,
            "equal": 0.03,
            "rejected_longer": 0.30,
            "longer_wins_accuracy": 0.685,
        },
        "overlap": {
            **histogram([min(0.999, dice.betavariate(2.2, 4)) for _ in range(pairs)], 0.05, 20),
            "near_identical": 7,
        },
        "scripts": [{"script": "Latin", "share": 0.962}, {"script": "Cyrillic", "share": 0.031}],
        "margins": {
            "edges": [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            "counts": [1, 1, pairs // 3, pairs // 4, pairs // 6, pairs // 9, 12],
            "rows_with_scores": pairs - 40,
            "zero": 3,
            "negative": 2,
            "median": 1.5,
        },
        "stop_tokens": [{"token": "<|im_end|>", "answers": 2 * pairs - pairs // 80}],
        "hints": ["2 chosen answers have a lower score than the rejected ones: the labels may be swapped."],
        "rendered": [row(f"{file}:{line}", *texts) for line, texts in enumerate(ROWS, start=1)],
    }


def report() -> Report:
    """Return a whole report, two of its checks failed; it is the caller's to change."""
    checks = [
        ("rows left out", 0.047, 0.05, True, "Look at the reasons below."),
        ("prompts shared by train and validation", 3, 0, False, "Take the three prompts out of validation."),
        ("contradictory pairs", 4, 0, False, "Keep of each two the one you trust."),
        ("answers cut", 0.006, 0.01, True, "Raise max_length."),
    ]
    names = ("name", "found", "limit", "passed", "meaning")
    return {
        "version": 1,
        "package": "0.1.0",
        "created": "2026-11-25T10:00:00",
        "command": "python -m orpo_lightning inspect --config configs/mistral.yaml --out report",
        "settings": {
            "tokenizer": "example/tiny-7b",
            "template": "the tokenizer's own",
            "max_length": 1024,
            "max_prompt_length": 256,
            "overlong": "truncate",
            "batch_size": 2,
            "accumulate": 4,
            "seed": 42,
            "validation": None,
            "packed": True,
        },
        "splits": deepcopy(
            {
                "train": split("train", 12840, 1),
                "validation": split("validation", 640, 2),
                "test": split("test", 500, 3),
            }
        ),
        "across": {
            "train_validation": {
                "shared_prompts": 3,
                "validation_pairs_of_shared_prompts": 5,
                "shared_pairs": 1,
                "examples": ["train.jsonl:7 and validation.jsonl:2"],
            }
        },
        "epoch": [
            {
                "layout": "left-padded, like lengths together (what fit uses)",
                "steps": 1605,
                "micro_batches": 6420,
                "tokens": 5417032,
                "padded_tokens": 5771284,
                "padded_share": 0.0614,
                "slowest_device": 1.0132,
            },
            {
                "layout": "left-padded, random batches",
                "steps": 1605,
                "micro_batches": 6420,
                "tokens": 5417032,
                "padded_tokens": 7944190,
                "padded_share": 0.3181,
            },
            {
                "layout": "no padding (the floor)",
                "steps": 1605,
                "micro_batches": 6420,
                "tokens": 5417032,
                "padded_tokens": 5417032,
                "padded_share": 0.0,
            },
        ],
        "verdict": {
            "strict": False,
            "checks": [dict(zip(names, check, strict=True)) for check in checks],
            "passed": False,
        },
    }
