"""Two network namespaces and a cable are two nodes: torchrun trains over both as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, Forks, load

Fit = Callable[..., list[Any]]
ADDRESSES = ("10.77.1.1", "10.77.1.2")


def ip(*words: str) -> None:
    """Run the command that shows and changes the network."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Return two namespaces that see each other and nothing else."""
    names = [f"orpo{os.getpid()}{side}" for side in "ab"]
    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_nodes_make_the_step_that_one_process_makes(
    nodes: list[str], fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    dropout = "--model.lora_dropout=0"
    words = fit("two", dropout, "--trainer.max_steps=1", "--trainer.val_check_interval=2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--master-addr={ADDRESSES[0]}", "--master-port=29512"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "cable"}
    runs = []
    for rank, name in enumerate(nodes):
        command = ["ip", "netns", "exec", name, *torchrun, f"--node-rank={rank}", "-m", "orpo_lightning"]
        file = (tmp_path / f"node{rank}").open("w")
        runs.append(
            subprocess.Popen(
                [*command, *map(str, words)], cwd=tmp_path, env=environment, stdout=file, stderr=file
            )
        )
    codes = [run.wait(timeout=200) for run in runs]
    printed = [(tmp_path / f"node{rank}").read_text() for rank in range(2)]
    assert codes == [0, 0], "\n".join(printed)
    assert "8 (batch 2 x 2 accumulated x 2 devices)" in printed[0]
    assert "pairs per step" not in printed[1]  # one log
    alone = fit("one", dropout, "--trainer.max_steps=1", "--trainer.accumulate_grad_batches=4")
    ended = forks.run(alone, tmp_path)
    assert ended.code == 0, ended.err
    first, second = (load(tmp_path / name)["optimizer_states"][0]["state"] for name in ("one", "two"))
    assert first.keys() == second.keys()
    for number, state in first.items():  # after one step the moment is a tenth of the gradient
        scale = state["exp_avg"].abs().max().item()
        found = second[number]["exp_avg"]
        assert torch.allclose(found, state["exp_avg"], rtol=1e-6, atol=1e-6 * scale), number
