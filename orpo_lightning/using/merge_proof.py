"""Whether merged weights are the adapted model: log-probabilities of answers, before and after.

Afterwards they are those of the written folder, as plain transformers loads it in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.errors import CheckpointError, SurroundingsError, says_out_of_memory
from orpo_lightning.scoring import score, take_apart

BOUNDS = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""By the type of the merged weights: how far the mean log-probability of an answer's tokens may move."""
_BATCH = 8


class Difference(NamedTuple):
    """How far apart two models are, in nats of the mean log-probability of an answer's tokens."""

    max: float
    mean: float
    """Of the absolute values."""

    @classmethod
    def of(cls, one: Sequence[float], other: Sequence[float]) -> Difference:
        """Return that of two models' values; not a number in either is infinitely far."""
        gaps = [abs(a - b) if a - b == a - b else float("inf") for a, b in zip(one, other, strict=True)]
        return cls(max(gaps), sum(gaps) / len(gaps))

    def __str__(self) -> str:
        """Return both in words."""
        return f"max {self.max:.2g}, mean {self.mean:.2g}"


@torch.no_grad()
def answer_logps(model: Any, pairs: Sequence[TokenizedPair]) -> list[float]:
    """Return the mean log-probability of the tokens of each answer: of pair i at 2i the chosen one's."""
    scorer, device = take_apart(model), next(model.parameters()).device
    found: dict[int, list[float]] = {}
    order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    for start in range(0, len(pairs), _BATCH):
        places = order[start : start + _BATCH]
        batch = pad_pairs([pairs[index] for index in places], pad_id=0)
        means = torch.stack(score(scorer, _on(batch, device)).answer_means(), dim=1)
        found.update(zip(places, means.tolist(), strict=True))
    return [mean for index in range(len(pairs)) for mean in found[index]]


def _on(batch: Any, device: torch.device) -> Any:
    """Return a batch whose tensors are on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _on(value, device) for key, value in batch.items()}
    return type(batch)(*(_on(value, device) for value in batch)) if isinstance(batch, tuple) else batch


def answer_logps_of_folder(
    folder: Path, pairs: Sequence[TokenizedPair], device: torch.device, trust_remote_code: bool
) -> list[float]:
    """Return `answer_logps` of a folder as `AutoModelForCausalLM` loads it, in a process of its own.

    Raises:
        SurroundingsError: it cannot be loaded there.
        MemoryError: the memory does not hold it.
        CheckpointError: the folder lacks weights, or has some that the architecture has not.
    """
    with tempfile.TemporaryDirectory(prefix="orpo-proof-") as scratch:
        asked, answered = Path(scratch, "pairs.json"), Path(scratch, "logps.json")
        asked.write_text(json.dumps([list(pair) for pair in pairs]))
        code = "from orpo_lightning.using.merge_proof import main; main()"
        words = [str(folder), str(asked), str(answered), str(device), str(int(trust_remote_code))]
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            if says_out_of_memory(last):
                raise MemoryError(last)
            raise SurroundingsError(f"the merged folder does not load in plain transformers: {last}")
        found = json.loads(answered.read_text())
    if found["wrong"]:
        raise CheckpointError(f"the merged folder is not this architecture's: {found['wrong']}")
    return list(found["logps"])


def main() -> None:
    """Score a folder's model on pairs; the words of the command are those of `answer_logps_of_folder`."""
    from transformers import AutoModelForCausalLM

    folder, asked, answered, device, trust = sys.argv[1:]
    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(
        folder,
        dtype="auto",
        device_map={"": torch.device(device)},
        trust_remote_code=bool(int(trust)),
        output_loading_info=True,
    )
    wrong = [f"{kind} {sorted(info[kind])[0]}" for kind in ("missing_keys", "unexpected_keys") if info[kind]]
    pairs = [TokenizedPair(*pair) for pair in json.loads(Path(asked).read_text())]
    logps = answer_logps(model.eval(), pairs)
    Path(answered).write_text(json.dumps({"wrong": ", ".join(wrong), "logps": logps}))


def check(difference: Difference, dtype: str, kept: Path) -> None:
    """Refuse a merge that moved the log-probabilities further than rounding does.

    Raises:
        CheckpointError: naming the folder that was kept aside.
    """
    if difference.max > BOUNDS[dtype]:
        raise CheckpointError(
            f"the merged model is not the adapted one: log-probabilities differ by {difference} nats a "
            f"token, allowed are {BOUNDS[dtype]:g} in {dtype}; its folder is kept as {kept}"
        )
