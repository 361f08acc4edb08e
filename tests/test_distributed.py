"""Two and four CPU processes over gloo give what one process gives, weights shared out or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent


def case(
    world: int,
    split: tuple[int, int, int],
    layout: str,
    strategy: str = "ddp",
    family: str = "llama",
    pairs: int = 12,
    **model: Any,
) -> Any:
    """Return a case of ddp_run.py: a step of some pairs.

    `split` is pairs in a micro-batch, micro-batches of a step, and a budget of tokens. Under a budget one
    process has fewer micro-batches than the other, and both skip some.
    """
    words = [family, world, pairs, *split, layout, strategy, *model.values()]
    name = "-".join(map(str, words)).replace("|", "")
    return {
        **{"name": name, "world": world, "split": split, "layout": layout},
        **{"strategy": strategy, "family": family, "pairs": pairs, "model": model},
    }


WHOLE = case(1, (12, 1, 0), "padded")
NF4 = case(1, (12, 1, 0), "padded", quantization="nf4")
FULL = case(1, (12, 1, 0), "padded", lora_r=0)
SAME = [
    case(2, (6, 1, 0), "padded"),
    case(2, (1, 6, 200), "padded"),
    case(2, (2, 3, 0), "shared_prefix"),
    case(2, (1, 6, 100), "shared_prefix"),
    case(4, (3, 1, 0), "padded"),
    case(4, (1, 3, 100), "shared_prefix"),
    case(2, (6, 1, 0), "padded", "fsdp2"),
    case(2, (1, 6, 100), "shared_prefix", "fsdp2"),
    case(2, (3, 2, 0), "auto", "fsdp2", gradient_checkpointing=False),
    case(4, (3, 1, 0), "shared_prefix", "fsdp2", gradient_checkpointing="auto"),
]
SAME_NF4 = [case(2, (3, 2, 0), "auto", "fsdp2", quantization="nf4")]
SAME_FULL = [case(2, (3, 2, 0), "auto", "fsdp2", lora_r=0)]
# Fewer pairs than micro-batches: one process has a filler, whose empty batch must reach a trained head too.
# The budget holds one pair, so of three micro-batches that process has one.
HEADS: list[dict[str, Any]] = [{}, {"lora_r": 0}, {"lora_targets": ["q_proj", "lm_head"]}]
FEW = [case(1, (3, 1, 0), "padded", pairs=3, **head) for head in HEADS]
SAME_FEW = [
    (whole, case(2, (1, 2, budget), "shared_prefix", strategy, pairs=3, **whole["model"]))
    for whole in FEW
    for strategy in ("ddp", "fsdp2")
    for budget in (0, 45)
]
ALONE = [
    *((WHOLE, one) for one in SAME),
    *((NF4, one) for one in SAME_NF4),
    *((FULL, one) for one in SAME_FULL),
    *SAME_FEW,
]
"""Each with what one process gives."""
# A mixture's router loss depends on the micro-batches, so these are compared on equally many processes. A
# Gemma's head is its embedding.
KINDS: list[dict[str, Any]] = [
    {"family": "gemma"},
    {"family": "mixtral"},
    {"lora_variant": "dora"},
    {"trainable_tokens": ["<|im_start|>", "<|im_end|>"]},
]
EQUAL = [
    tuple(case(2, (3, 2, 0), "auto", strategy, **kind) for strategy in ("ddp", "fsdp2")) for kind in KINDS
]
Found = Callable[[Any], dict[str, Any]]


@pytest.fixture(scope="module")
def found(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Return a function from a case to what rank zero saw of it."""
    folder = tmp_path_factory.mktemp("steps")
    cases = [WHOLE, NF4, FULL, *FEW, *(one for _, one in ALONE), *chain(*EQUAL)]
    bases = {"llama": tiny_base}
    for family in {one["family"] for one in cases} - bases.keys():
        tokenizer = tiny_tokenizer("chatml")
        bases[family] = str(folder / family)
        tiny_model(family, tokenizer=tokenizer).save_pretrained(bases[family])
        tokenizer.save_pretrained(bases[family])
    (folder / "order.json").write_text(json.dumps({"bases": bases, "cases": cases}))
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    done = subprocess.run(
        [sys.executable, str(HERE / "ddp_run.py"), str(folder / "order.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]

    def load(one: Any) -> dict[str, Any]:
        return torch.load(folder / f"{one['name']}.pt") | {"folder": folder / f"{one['name']}.d"}

    return load


@pytest.mark.parametrize("pair", ALONE, ids=lambda pair: pair[1]["name"])
def test_several_processes_have_the_gradients_and_metrics_of_one(found: Found, pair: Any) -> None:
    alone, together = (found(one) for one in pair)
    assert (alone["world"], together["world"]) == (1, pair[1]["world"])
    assert_same(alone, together)
    changes = set() if pair[0]["model"].get("lora_r") == 0 else {"val/logps_change/chosen"}
    assert alone["metrics"].keys() >= {"val_ci_low/loss", *changes}


def assert_same(alone: dict[str, Any], together: dict[str, Any]) -> None:
    """Compare gradients and metrics."""
    assert alone["why_full_logits"] is together["why_full_logits"] is None
    for what in ("gradients", "metrics"):
        assert alone[what].keys() == together[what].keys()
    for name, gradient in alone["gradients"].items():
        scale = gradient.abs().max().item()
        assert torch.allclose(together["gradients"][name], gradient, rtol=1e-6, atol=1e-6 * scale), name
    for name, value in alone["metrics"].items():
        # Padding is what layout and split make of it.
        if not any(word in name for word in ("per_second", "padding")):
            assert together["metrics"][name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    assert alone["metrics"]["val/length/chosen"] > 0


@pytest.mark.parametrize("pair", EQUAL, ids=lambda pair: pair[0]["name"])
def test_shared_out_weights_have_the_gradients_and_metrics_of_whole_ones(found: Found, pair: Any) -> None:
    apart, together = (found(one) for one in pair)
    assert_same(apart, together)
    assert apart["sharded"] == 0
    assert together["sharded"] == together["parameters"]
    assert together["described"] == apart["described"]


@pytest.mark.parametrize(
    "pair",
    [pair for pair in ALONE if pair[1]["strategy"] == "fsdp2"],
    ids=lambda pair: pair[1]["name"],
)
def test_every_weight_is_shared_out_and_counted_as_before(found: Found, pair: Any) -> None:
    one, (alone, together) = pair[1], (found(each) for each in pair)
    assert together["sharded"] == together["parameters"] > 0
    assert together["described"]["parameters"] == alone["described"]["parameters"]
    assert alone["sharded"] == 0
    expected = "padded" if one["layout"] == "padded" else "shared_prefix"
    assert together["described"]["layout"].startswith(expected)


@pytest.mark.parametrize("one", SAME, ids=lambda one: one["name"])
def test_the_pairs_of_several_processes_are_those_of_one_without_fillers(found: Found, one: Any) -> None:
    alone, together = (np.load(found(each)["folder"] / "pairs.npz") for each in (WHOLE, one))
    assert len(alone["chosen"]) == 31  # not divisible by two or four processes, nor by batches of three
    for name in alone.files:
        if name in ("chosen", "rejected", "base_chosen", "base_rejected"):
            assert together[name] == pytest.approx(alone[name], rel=1e-5)
        else:
            assert np.array_equal(alone[name], together[name]), name


@pytest.mark.parametrize("one", SAME, ids=lambda one: one["name"])
def test_answers_are_given_once_unless_the_weights_are_shared_out(found: Found, one: Any) -> None:
    alone, together = (found(each)["folder"] / "samples.jsonl" for each in (WHOLE, one))
    if one["strategy"] == "fsdp2":
        assert not together.exists()
    else:
        assert together.read_text() == alone.read_text()
        assert len(alone.read_text().splitlines()) == 4
