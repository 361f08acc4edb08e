"""The training benchmark: equal work on both sides, a floor that is one, figures under their agreed names."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import LlamaConfig
from trl.experimental.orpo import ORPOConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

import benchmark  # noqa: E402
from benchmark_floor import attention, frozen_linear, head, lora, products_of  # noqa: E402
from benchmark_inputs import MIXES, Lengths, draw_lengths, read_lengths  # noqa: E402
from benchmark_process import run_fresh  # noqa: E402
from benchmark_train import ALLOCATORS, check_pairs, in_order, workplace  # noqa: E402
from benchmark_train_figures import ABLATIONS, equal_work, sampled_validation  # noqa: E402
from benchmark_train_sides import SIDES  # noqa: E402

TINY = ["--lengths", "short", "--model", "2x64", "--vocabulary", "500", "--cores", "1", "--runs", "1"]
TINY += ["--warmup", "1", "--validation-pairs", "4"]
RATIOS = (
    "train_pairs_per_second",
    "validation_pairs_per_second",
    "peak_memory_above_model",
    "first_step_seconds",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Two steps of two micro-batches of every side, in this process: imports cost more than the steps."""
    folder = tmp_path_factory.mktemp("bench")
    options = benchmark.parse(["train", *TINY, "--steps", "1", "--accumulate", "2", "--out", str(folder)])
    with workplace(options) as place:
        job = place.job | {"started": 0.0}
        results = {"ours": SIDES["ours"](job)}
        ordered = job | {"train": in_order(place, results["ours"])}
        for without in ABLATIONS:
            results[without] = SIDES["ours"](
                (ordered if without == "sampler" else job) | {"without": without}
            )
        results["trl"] = SIDES["trl"](ordered)
    yield results
    datasets.enable_caching()


def test_trl_takes_the_same_pairs_in_every_step(found: dict[str, dict[str, Any]]) -> None:
    check_pairs(found["ours"], found["trl"], step=4)
    mine = [found["ours"]["train_pairs"][index] for batch in found["ours"]["order"] for index in batch]
    assert mine != found["trl"]["train_pairs"], "within a step ours are sorted by length"


def test_other_pairs_are_told(found: dict[str, dict[str, Any]]) -> None:
    theirs = found["trl"]
    swapped = [*theirs["train_pairs"][-1:], *theirs["train_pairs"][1:-1], *theirs["train_pairs"][:1]]
    with pytest.raises(SystemExit, match="not train on the same pairs: step 1 differs"):
        check_pairs(found["ours"], theirs | {"train_pairs": swapped}, step=4)
    with pytest.raises(SystemExit, match="not validate on the same pairs"):
        check_pairs(found["ours"], theirs | {"validation_pairs": []}, step=4)


def test_log_probabilities_are_trls_in_every_step_and_in_validation(found: dict[str, dict[str, Any]]) -> None:
    work = equal_work(found["ours"], found["trl"], ("odds_ratio_loss", "logps/chosen", "logps/rejected"))
    assert max(work.values()) <= 1e-5


def test_activations_are_recomputed_on_the_sides_asked_for(
    found: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert not found["ours"]["recomputes"]
    assert not found["trl"]["recomputes"]
    assert ORPOConfig(str(tmp_path), use_cpu=True).gradient_checkpointing, "said to be TRL's default"
    words = ["train", *TINY, "--steps", "1", "--gradient-checkpointing"]
    for sides, expected in (("trl", [False, True]), ("all", [True, True])):
        with workplace(benchmark.parse([*words, sides, "--out", str(tmp_path)])) as place:
            job = place.job | {"started": 0.0}
            assert [SIDES[side](job)["recomputes"] for side in ("ours", "trl")] == expected


@pytest.mark.parametrize("without", ABLATIONS)
def test_without_one_idea_the_losses_are_the_same(found: dict[str, dict[str, Any]], without: str) -> None:
    assert max(equal_work(found[without], found["ours"]).values()) <= 1e-5


def test_a_sample_is_timed_against_all_pairs_and_its_losses_are_not_compared(
    found: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    words = ["train", *TINY, "--steps", "1", "--accumulate", "2", "--validation-sample", "2"]
    words += ["--out", str(tmp_path)]
    with workplace(benchmark.parse(words)) as place:
        ours = SIDES["ours"](place.job | {"started": 0.0})
    trl = found["trl"] | {"validation_seconds": 4 * ours["validation_seconds"]}
    assert ours["validation_pairs"] == trl["validation_pairs"], "the sample is drawn from the same pairs"
    sampled = sampled_validation([{"ours": ours, "trl": trl}])
    assert (sampled["sample"], sampled["pairs"]) == (2, 4)
    assert sampled["share_of_trls_seconds"]["median"] == 0.25
    for name, value in sampled["values"].items():
        low, high = value["interval"]
        assert low <= ours["validation_losses"][name] <= high
    assert "validation" not in equal_work(ours | {"losses": trl["losses"]}, trl)


def test_another_loss_is_told(found: dict[str, dict[str, Any]]) -> None:
    losses = [dict(step) for step in found["ours"]["losses"]]
    losses[-1]["loss"] *= 1.01
    work = equal_work(found["ours"] | {"losses": losses}, found["ours"])
    assert work["first_step"] == work["validation"] == 0
    assert work["all_steps"] == pytest.approx(0.01)


def test_the_command_compares_and_writes_ratios_and_chart(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *TINY, "--steps", "2", "--profile"]
    words += ["--allocators", "neutral", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "our step (" in done.stdout
    written = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    for name in RATIOS:
        ratio = written["ratios"][name]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert max(written["equal_work"].values()) <= 1e-5
    assert written["step_over_matrix_products"]["neutral"]["median"] > 1
    assert written["machine"]["versions"]["torch"]
    assert len(written["runs"]["neutral"][0]["ours"]["kernels"]) == 10
    assert str(tmp_path) not in json.dumps(written), "no path of this machine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.json", "train.png"]


def test_without_a_verb_it_is_the_training_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--lengths", "nowhere"])
    assert (
        "--lengths: expected ultrafeedback, long_prompt, short or a file, found nowhere"
        in capsys.readouterr().err
    )


def test_a_last_batch_of_validation_that_trl_would_weigh_too_much_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse(["train", "--validation-pairs", "6"])
    assert "--validation-pairs: expected a multiple of 4" in capsys.readouterr().err


def test_a_sample_of_more_pairs_than_there_are_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse(["train", "--validation-sample", "25"])
    assert "--validation-sample: expected 2 to 24 (--validation-pairs), found 25" in capsys.readouterr().err


@pytest.mark.parametrize("mix", MIXES)
def test_lengths_are_around_their_means_and_the_same_for_a_seed(mix: str) -> None:
    lengths = draw_lengths(MIXES[mix], 4000, seed=1)
    assert lengths == draw_lengths(MIXES[mix], 4000, seed=1) != draw_lengths(MIXES[mix], 4000, seed=2)
    for drawn, mean in zip(zip(*lengths, strict=True), MIXES[mix], strict=True):
        assert statistics.mean(drawn) == pytest.approx(mean, rel=0.03)
        assert statistics.stdev(drawn) == pytest.approx(0.53 * mean, rel=0.1)  # sqrt(exp(0.5^2) - 1)


def test_lengths_are_read_from_counts_and_from_texts(tmp_path: Path) -> None:
    counts = tmp_path / "counts.jsonl"
    counts.write_text('{"prompt": 30, "chosen": 20, "rejected": 10}\n')
    assert read_lengths(counts, "", 2) == [Lengths(30, 20, 10)] * 2
    texts = tmp_path / "texts.jsonl"
    row = {
        "prompt": "one two three " * 20,
        "chosen": [{"role": "assistant", "content": "yes " * 9}],
        "rejected": "no",
    }
    texts.write_text(json.dumps(row) + "\n")
    (lengths,) = read_lengths(texts, str(ROOT / "configs" / "quickstart" / "model"), 1)
    assert lengths.prompt > lengths.chosen > lengths.rejected == 4  # at least so many
    counts.write_text('{"prompt": 30, "chosen": 20}\n')
    with pytest.raises(
        SystemExit, match=r"counts.jsonl:1: expected prompt, chosen, rejected; rejected is missing"
    ):
        read_lengths(counts, "", 1)


def test_the_floor_has_the_products_of_a_step_of_lora() -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    pairs, rank = [(10, 5, 3), (4, 4, 2)], 8
    flops: dict[str, float] = {}
    for group in products_of(pairs, config, rank):
        flops[group.part] = flops.get(group.part, 0) + sum(product.flops for product in group.products)
    tokens = 28
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)]
    weights = sum(a * b for a, b in shapes)
    read_only = 64 * 64 + 2 * 64 * 32  # the first layer's q, k, v send nothing back to the embedding
    assert flops["layers"] == 2 * tokens * (2 * 2 * weights - read_only)
    thin = rank * sum(a + b for a, b in shapes)
    # Two forward, two of weight gradients, two back; of the last two the first layer's q, k, v have one.
    assert flops["lora"] == 2 * tokens * (2 * 3 * thin - rank * 3 * 64)
    # Each query sees itself and what stands before it: chosen sequences whole, of rejected ones the answers.
    seen = sum(range(1, 16)) + sum(range(11, 14)) + sum(range(1, 9)) + sum(range(5, 7))
    assert flops["attention"] == pytest.approx(2 * 6 * 2 * 64 * seen)
    assert flops["head"] == 2 * 2 * (tokens - 2) * 64 * 100


def test_products_come_in_the_shapes_they_have_in_a_step() -> None:
    assert [tuple(p)[:3] for p in frozen_linear(7, 3, 5, sends_back=True)] == [(7, 3, 5), (7, 5, 3)]
    assert len(lora(7, 3, 5, 2, sends_back=False)) == 5
    assert attention(1, 9, 2, 4)[0].needed == 1
    assert [p.m for p in head(40, 8, 10**7, "cuda")] == [16, 16, 16, 16, 8, 8]
    assert [tuple(p)[:3] for p in head(40, 8, 2100, "cpu")] == [
        (40, 8, 2048), (40, 2048, 8), (40, 8, 52), (40, 52, 8)
    ]  # fmt: skip


def test_the_neutral_allocator_asks_the_kernel_for_less_than_the_default(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import json, resource, sys\n"
        "for number in range(20):\n"
        "    if number == 15:  # the heap has found its size\n"
        "        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    block = b'1' * 40_000_000\n"
        "    del block\n"
        "faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "json.dump({'faults': faults}, open(sys.argv[2], 'w'))\n"
    )
    faults = {
        name: run_fresh(child, {}, tmp_path, 1, settings=settings)["faults"]
        for name, settings in ALLOCATORS.items()
    }
    pages = 40_000_000 // 4096
    assert faults["neutral"] < pages
    assert faults["default"] >= 5 * pages
