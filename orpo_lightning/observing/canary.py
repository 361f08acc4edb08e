"""Texts that have nothing to do with the pairs: what a model loses of its language shows in their loss."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orpo_lightning.batching.base import PairBatch
from orpo_lightning.errors import DataError
from orpo_lightning.scoring import Scorer, score_targets

GENERAL = "general"
"""The name of the texts that come with the package: a dozen short ones in plain English."""
MOST_TEXTS, MOST_TOKENS = 64, 256
ALARM = 0.1
"""Nats a token above the base's loss: a tenth more perplexity."""
_ROWS = 16


def read_texts(name: str) -> list[str]:
    """Return the first MOST_TEXTS texts of a file: of .jsonl each line's `text`, else its paragraphs.

    Args:
        name: path of the file, or GENERAL.

    Raises:
        DataError: there is no such file, or no text in it.
    """
    path = Path(__file__).with_name("canary.txt") if name == GENERAL else Path(name).expanduser()
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            texts = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
        else:
            texts = [" ".join(part.split()) for part in content.split("\n\n")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"canary: expected a text file, paragraphs apart by empty lines, or a .jsonl file of rows with "
            f"`text`, or {GENERAL}; {name}: {type(error).__name__}: {error}"
        ) from error
    texts = [text for text in texts if isinstance(text, str) and text][:MOST_TEXTS]
    if not texts:
        raise DataError(f"canary: {name} holds no text")
    return texts


def digest_of(rows: Sequence[Sequence[int]]) -> str:
    """Return a hash of some texts' tokens: a loss is comparable with that of the same ones alone."""
    return hashlib.sha256(repr([list(row) for row in rows]).encode()).hexdigest()[:16]


def token_rows(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the first MOST_TOKENS ids of each text, as the tokenizer begins a text."""
    rows = [list(tokenizer(text)["input_ids"])[:MOST_TOKENS] for text in texts]
    return [row for row in rows if len(row) > 1]


def mean_nll(scorer: Scorer, rows: Sequence[Sequence[int]], device: torch.device) -> float:
    """Return the mean negative log-probability of a token of some texts; arguments as for `text_nlls`."""
    tokens = sum(len(row) - 1 for row in rows)
    return float(text_nlls(scorer, rows, device).sum()) / max(tokens, 1)


@torch.no_grad()
def text_nlls(scorer: Scorer, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the negative log-probability of each text but for its first token, (n,) float64 on the CPU.

    Args:
        scorer: of a model in eval mode.
        rows: ids of each text, at least two; those of like length are computed together.
        device: of the model.
    """
    found = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    for first in range(0, len(order), _ROWS):
        some = order[first : first + _ROWS]
        batch = text_batch([rows[number] for number in some])
        moved = batch._replace(
            model_inputs={name: value.to(device) for name, value in batch.model_inputs.items()},
            target_ids=batch.target_ids.to(device),
            target_positions=batch.target_positions.to(device),
        )
        logps, _ = score_targets(scorer, moved)
        found[some] = torch.bincount(batch.target_sequences, -logps.cpu().double(), minlength=len(some))
    return found


def text_batch(rows: Sequence[Sequence[int]]) -> PairBatch:
    """Lay texts out as rows padded on the left; every token but the first of each is a target."""
    sizes = torch.tensor([len(row) for row in rows])
    width = int(sizes.max())
    positions = torch.arange(width) - (width - sizes)[:, None]
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    ids[positions >= 0] = torch.tensor([token for row in rows for token in row])
    is_target = positions >= 1
    sequences, columns = is_target.nonzero(as_tuple=True)
    return PairBatch(
        model_inputs={
            "input_ids": ids,
            "attention_mask": (positions >= 0).long(),
            "position_ids": positions.clamp(min=0),
        },
        target_ids=ids[is_target],
        target_positions=sequences * width + columns - 1,
        target_sequences=sequences,
        target_is_completion=torch.ones_like(sequences, dtype=torch.bool),
        num_pairs=len(rows),
    )
