"""What one process of a run does wrong, the others say of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import Forks

Fit = Callable[..., list[Any]]


def one_rank(rank: int, do: str) -> list[str]:
    """Return the words that let one rank go wrong."""
    return [
        "--trainer.callbacks+=one_rank.OneRank",
        f"--trainer.callbacks.rank={rank}",
        f"--trainer.callbacks.do={do}",
    ]


def test_a_rank_that_raises_says_why_and_the_others_say_that_it_did(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    first, second = forks.run_ranks(fit("run", *one_rank(1, "raise")), tmp_path, 2)
    assert second.code == 1
    assert "error: LookupError: something of its own" in second.err
    assert first.code == 5
    assert "error: rank 1 (process " in first.err
    assert "ended with an error of its own, see its message. The run ends" in first.err


def test_a_rank_that_is_alive_but_hangs_is_named_when_the_timeout_is_over(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    strategy = [
        "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
        "--trainer.strategy.timeout=0:00:05",
    ]
    began = time.monotonic()
    first, second = forks.run_ranks(fit("run", *strategy, *one_rank(1, "sleep")), tmp_path, 2)
    assert time.monotonic() - began < 60
    assert (first.code, second.code) == (5, -signal.SIGKILL), first.err + second.err
    assert "error: rank 1 (process " in first.err
    assert "is alive but hangs: it did not come to where the others wait. The run ends" in first.err
