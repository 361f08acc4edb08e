"""Plans as pure arithmetic: hand-made models, expected values worked out beside them."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_lightning.errors import UsageError
from orpo_lightning.planning import activations, weights
from orpo_lightning.planning.base import (
    Batch,
    Layer,
    Linear,
    Model,
    Optimizer,
    Training,
    fullest,
    padded,
    shared_prefix,
)
from orpo_lightning.planning.checkpointing import choose_checkpointing
from orpo_lightning.planning.gpus import GIB, GPUS, find_gpu
from orpo_lightning.planning.out_of_memory import Facts, TokensPerBatch, changes, lines
from orpo_lightning.planning.peak import plan
from orpo_lightning.planning.report import recomputation
from orpo_lightning.planning.settings import optimizer_of, training_of
from orpo_lightning.planning.speed import tokens_per_second, work

H, Q, K, I, V, R = 4096, 4096, 1024, 14336, 32000, 16  # noqa: E741 - the names of the formulae
LAYER = Layer(
    linears=(
        Linear(H, Q, "attention_in", adapted=True),
        Linear(H, K, "attention_in", adapted=True),
        Linear(H, K, "attention_in", adapted=True),
        Linear(Q, H, "attention_out", adapted=True),
        Linear(H, I, "mlp_in", adapted=True),
        Linear(H, I, "mlp_in", adapted=True),
        Linear(I, H, "mlp_out", adapted=True),
    ),
    other_weights=2 * H,
    norms=(H, H),
    heads=32,
    key_heads=8,
    head_dim=128,
    mlp_width=I,
    gated=True,
)
MISTRAL = Model("MistralForCausalLM", V, H, (LAYER,) * 32, V * H, V * H, H)


def qlora(**settings: Any) -> Training:
    defaults: dict[str, Any] = {
        "precision": "bf16-mixed",
        "quantization": "nf4",
        "lora_dropout": 0.0,
        "layers": 32,
    }
    return training_of(**(defaults | settings))


def test_mistral_has_the_weights_it_is_known_for() -> None:
    assert MISTRAL.weights == 7_241_732_096
    assert weights.trained_weights(MISTRAL, qlora()) == 41_943_040


def test_nf4_takes_half_a_byte_a_byte_a_block_and_four_a_block_of_blocks() -> None:
    matrix = LAYER.linears[0]
    count = 4096 * 4096
    expected = count / 2 + count / 64 + 4 * count / (64 * 256) + 4 * (16 + 256 + 1)
    assert weights.matrix_bytes(matrix, qlora()) == expected
    assert weights.matrix_bytes(matrix, qlora(quantization="none")) == 2 * count
    assert weights.matrix_bytes(matrix, qlora(quantization="int8")) == count + 4 * 4096


@pytest.mark.parametrize(
    ("name", "bytes_each"),
    [("AdamW", 8), ("SGD", 0), ("Lion", 4), ("PagedAdamW8bit", 2 + 8 / 256), ("Unheard", 8)],
)
def test_an_optimizers_state_is_so_many_bytes_a_weight(name: str, bytes_each: float) -> None:
    training = qlora(optimizer=Optimizer(name, momentum=False))
    assert weights.optimizer_bytes(MISTRAL, training) == 41_943_040 * bytes_each
    assert weights.is_known(name) == (name != "Unheard")


@pytest.mark.parametrize("name", ["GaLoreAdamW", "LayerwiseGaLoreAdamW"])
def test_galore_keeps_low_rank_moments_and_the_vectors_of_the_shorter_side(name: str) -> None:
    layer = LAYER._replace(linears=LAYER.linears[-1:], other_weights=0)
    model = Model("One", V, H, (layer,), V * H, 0, 0)
    training = training_of(precision="32-true", lora_r=0, layers=1, optimizer=Optimizer(name, rank=128))
    assert weights.optimizer_bytes(model, training) == 8 * V * H + 4 * 128 * (2 * I + H)
    assert weights.is_known(name)


def test_updates_by_layers_bring_seven_billion_weights_below_forty_gigabytes() -> None:
    batch = shared_prefix(2, 1, 1023, 1023)

    def needed(name: str) -> float:
        settings: dict[str, Any] = {"quantization": "none", "lora_r": 0}
        return plan(MISTRAL, qlora(optimizer=Optimizer(name, rank=128), **settings), batch).total / GIB

    assert needed("GaLoreAdamW") > 60
    assert needed("LayerwiseGaLoreAdamW") < 40
    assert needed("GaLoreAdamW") - needed("LayerwiseGaLoreAdamW") == pytest.approx(27, abs=2)  # 4 B x 7.24e9


def test_a_layer_keeps_what_the_docstring_says() -> None:
    batch = padded(2, 1, 1023, 1023, masked=False)
    tokens = 4096
    kept = activations.kept(LAYER, qlora(), batch)
    assert kept.norms == tokens * 2 * (4 * H + 4)
    assert kept.inputs == tokens * (2 * H + 2 * H + 2 * I + 7 * 2 * R)
    assert kept.attention == tokens * 2 * (2 * Q + 2 * K) + 4 * 32 * tokens
    assert kept.mlp == tokens * 3 * 2 * I


def test_dropout_keeps_a_copy_and_a_mask_for_each_projection() -> None:
    batch = padded(2, 1, 1023, 1023, masked=False)
    kept = activations.kept(LAYER, qlora(lora_dropout=0.1), batch)
    assert kept.inputs == 4096 * ((2 + 1) * (3 * H + Q + 2 * H + I) + 7 * 2 * R)


def test_a_mask_repeats_keys_and_values_and_is_kept_itself() -> None:
    batch = padded(2, 1, 1023, 1023)
    assert activations.attention_kept(LAYER, qlora(), batch) == (
        4096 * 2 * 4 * Q + 4 * 1024**2 * 2 + 4 * 32 * 4096
    )


def test_a_window_that_is_exceeded_needs_a_mask_without_padding_too() -> None:
    batch = padded(2, 1, 1023, 1023, masked=False)
    assert not activations.is_masked(LAYER._replace(window=2048), batch)
    assert activations.is_masked(LAYER._replace(window=1024), batch)


def test_shared_prompts_run_once_and_padding_not_at_all() -> None:
    flat, rows = shared_prefix(3, 600, 100, 50), padded(3, 600, 100, 50)
    assert flat.tokens == 3 * 750
    assert rows.tokens == 2 * 3 * 700
    assert flat.targets == rows.targets == 3 * (599 + 100 + 50)
    assert plan(MISTRAL, qlora(), flat).total < plan(MISTRAL, qlora(), rows).total


def test_a_budget_of_tokens_is_filled_but_not_beyond_the_pairs_of_a_step() -> None:
    filled = fullest("shared_prefix", 1, 1024, budget=5000, most=16)
    assert (filled.pairs, filled.tokens) == (2, 5000)  # two pairs of 2047 tokens, and shorter ones
    assert fullest("shared_prefix", 1, 1024, budget=50_000, most=4) == shared_prefix(4, 1, 1023, 1023)
    assert fullest("padded", 3, 1024) == padded(3, 1, 1023, 1023)


def test_mistral_in_four_bits_at_two_pairs_of_1024_needs_less_than_eight_gigabytes() -> None:
    optimizer = Optimizer("PagedAdamW8bit")
    training = qlora(lora_dropout=0.05, optimizer=optimizer, accumulate=4)
    found = plan(MISTRAL, training, padded(2, 1, 1023, 1023))
    assert 6e9 < found.total <= 8e9
    assert found.total == found.parts.tensors + found.fragmentation + found.context


def test_no_layer_is_recomputed_that_need_not_be() -> None:
    training, batch = qlora(), padded(2, 1, 1023, 1023)
    peaks = [plan(MISTRAL, training._replace(recomputed=n), batch).total for n in range(33)]
    for wanted in (0, 1, 9, 31, 32):
        choice = choose_checkpointing(MISTRAL, training, batch, peaks[wanted])
        assert choice.fits
        assert peaks[choice.recomputed] <= peaks[wanted]
        assert choice.recomputed == 0 or peaks[choice.recomputed - 1] > peaks[wanted]
        assert [choice.is_recomputed(n) for n in range(32)].count(True) == choice.recomputed
    assert peaks == sorted(peaks, reverse=True)
    too_little = choose_checkpointing(MISTRAL, training, batch, peaks[32] - 1)
    assert (too_little.recomputed, too_little.fits) == (32, True)
    assert too_little.offloaded
    assert "even with all layers recomputed" in too_little.reason


def test_offloading_is_the_last_resort_and_frees_what_each_layer_starts_from() -> None:
    training, batch = qlora(), padded(2, 1, 1023, 1023)
    every, offloaded = (
        plan(MISTRAL, training._replace(recomputed=32, offloaded=away), batch) for away in (False, True)
    )
    # 4,096 tokens of H numbers in bf16 for each layer but the one at work, which has its own back.
    assert every.parts.activations - offloaded.parts.activations == 31 * 4096 * H * 2
    fits = choose_checkpointing(MISTRAL, training, batch, offloaded.total)
    assert (fits.recomputed, fits.offloaded, fits.fits) == (32, True, True)
    assert recomputation(fits) == "all, offload"
    not_even_so = choose_checkpointing(MISTRAL, training, batch, offloaded.total - 1)
    assert (not_even_so.offloaded, not_even_so.fits) == (True, False)
    on_cpu = choose_checkpointing(MISTRAL, training._replace(device="cpu"), batch, 10**9)
    assert (on_cpu.offloaded, on_cpu.fits) == (False, False)


def test_where_all_is_recomputed_already_offloading_is_offered() -> None:
    batch = padded(4, 1, 1023, 1023)
    whole = facts(batch, 40, gradient_checkpointing=True)
    peak = plan(MISTRAL, whole.training._replace(offloaded=True), batch).total
    assert changes(whole, peak)[0].flags == "--model.gradient_checkpointing offload"
    there = whole._replace(training=whole.training._replace(offloaded=True))
    assert all("checkpointing" not in change.flags for change in changes(there, peak))


def test_operations_are_four_for_each_weight_and_token_and_six_with_recomputation() -> None:
    batch = padded(1, 1, 99, 99, masked=False)
    for recomputed, passes in ((0, 4), (32, 6)):
        found = work(MISTRAL, qlora()._replace(recomputed=recomputed), batch)
        adapters = (passes + 2) * 41_943_040 * batch.tokens
        assert found.layers == passes * MISTRAL.matrices * batch.tokens + adapters
    assert found.head == 4 * V * H * batch.targets


def test_speed_is_the_share_of_the_peak_over_the_operations() -> None:
    batch = padded(1, 1, 99, 99, masked=False)
    rate = tokens_per_second(MISTRAL, qlora(), batch, 989, 0.4)
    assert rate == pytest.approx(989e12 * 0.4 * batch.tokens / work(MISTRAL, qlora(), batch).total)


@pytest.mark.parametrize(
    ("asked", "name"),
    [("t4", "T4"), ("4090", "RTX 4090"), ("NVIDIA GeForce RTX 3090", "RTX 3090"), ("a100-80", "A100-80GB")],
)
def test_a_gpu_is_found_however_it_is_spelt(asked: str, name: str) -> None:
    assert find_gpu(asked).name == name


@pytest.mark.parametrize("asked", ["a100", "quadro"])
def test_an_unknown_gpu_or_one_of_several_lists_what_there_is(asked: str) -> None:
    with pytest.raises(UsageError, match="A100-40GB, A100-80GB"):
        find_gpu(asked)


def test_every_gpu_has_the_memory_it_is_sold_with_within_a_tenth() -> None:
    sold = {"T4": 16, "V100-32GB": 32, "A10": 24, "L40S": 48, "A100-40GB": 40, "H100": 80, "B200": 192}
    for gpu in GPUS:
        if gpu.name in sold:
            assert gpu.bytes / GIB == pytest.approx(sold[gpu.name], rel=0.1)


def test_an_optimizer_is_read_off_its_configuration() -> None:
    path = "orpo_lightning.galore.GaLoreAdamW"
    assert optimizer_of({"class_path": path, "init_args": {"rank": 64}}) == Optimizer(
        "GaLoreAdamW", 64, False
    )
    assert optimizer_of({"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}).momentum


def facts(batch: Batch, budget: float, **settings: Any) -> Facts:
    training = qlora(**({"accumulate": 2, "gradient_checkpointing": False} | settings))
    return Facts(MISTRAL, training, batch, 2, "a card", int(budget * GIB))


def test_out_of_memory_names_the_batch_the_plan_and_three_changes_that_fit() -> None:
    told = lines(facts(padded(4, 1, 1023, 1023), 24))
    assert told[0] == "out of memory in a training step: 4 pairs, 8,192 tokens, on a card (24.0 GiB)"
    assert told[1].startswith("planned: 56.56 GiB at the peak, in the head (activations")
    assert told[2] == "any of these would fit:"
    assert [line.split()[0] for line in told[3:]] == [
        "--model.gradient_checkpointing",
        "--data.batch_size",
        "--data.max_length",
    ]
    assert "--data.batch_size 1 --trainer.accumulate_grad_batches 8" in told[4]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("budget", [8, 16, 24, 40])
def test_every_change_offered_fits_and_none_contains_another(budget: float, quantization: str) -> None:
    found = changes(facts(padded(4, 1, 1023, 1023), budget, quantization=quantization), budget * GIB)
    assert found
    assert all(plan(MISTRAL, change.training, change.batch).total <= budget * GIB for change in found)
    keys = [{word for word in change.flags.split() if word.startswith("--")} for change in found]
    assert not any(one < other for one in keys for other in keys)


def under_a_budget(batch: Batch, gib: float, batch_size: int = 1, accumulate: int = 16) -> Facts:
    given = TokensPerBatch(8192, batch_size, longest=1024)
    return facts(batch, gib)._replace(accumulate=accumulate, tokens_per_batch=given)


def test_under_a_budget_of_tokens_a_smaller_one_is_offered_and_a_step_keeps_its_pairs() -> None:
    told = under_a_budget(padded(7, 1, 511, 511), 24)
    found = {change.flags.split()[0]: change for change in changes(told, 24 * GIB)}
    assert list(found)[:2] == ["--model.gradient_checkpointing", "--data.tokens_per_batch"]
    assert not any("batch_size" in line or "accumulate" in line for line in lines(told))
    tokens = int(found["--data.tokens_per_batch"].flags.split()[1])
    peaks = [
        plan(MISTRAL, told.training, fullest("padded", 1, 1024, budget=budget, most=16)).total
        for budget in (tokens, tokens + 65)
    ]
    assert 2 * 1024 <= tokens < 8192
    assert peaks[0] <= 24 * GIB < peaks[1]


def test_a_budget_below_batch_size_of_the_longest_pairs_comes_with_a_split_that_allows_it() -> None:
    found = changes(under_a_budget(padded(4, 1, 1023, 1023), 24, batch_size=4, accumulate=4), 24 * GIB)
    words = next(change.flags.split() for change in found if "tokens_per_batch" in change.flags)
    assert words[2:] == ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "16"]


def test_shorter_pairs_come_with_a_smaller_budget_where_one_of_the_longest_does_not_fit() -> None:
    found = changes(under_a_budget(padded(4, 1, 1023, 1023), 12), 12 * GIB)
    (words,) = [change.flags.split() for change in found if "max_length" in change.flags]
    assert words[:3] == ["--data.max_length", "512", "--data.tokens_per_batch"]
    assert 2 * 512 <= int(words[3]) < 2 * 1024


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("gib", [8, 12, 16, 24, 40])
def test_every_change_offered_under_a_budget_fits_and_none_contains_another(
    gib: float, batch_size: int
) -> None:
    found = changes(under_a_budget(padded(4, 1, 1023, 1023), gib, batch_size=batch_size), gib * GIB)
    assert found
    assert all(plan(MISTRAL, change.training, change.batch).total <= gib * GIB for change in found)
    keys = [{word for word in change.flags.split() if word.startswith("--")} for change in found]
    assert not any(one < other for one in keys for other in keys)


def test_full_fine_tuning_is_told_of_lora() -> None:
    told = "\n".join(lines(facts(padded(1, 1, 511, 511), 24, quantization="none", lora_r=0)))
    assert "--model.lora_r 16" in told


def test_nothing_is_offered_where_nothing_fits() -> None:
    assert lines(facts(padded(1, 1, 1023, 1023), 2))[-1].startswith("no change")


def test_a_step_that_should_have_fitted_points_at_other_processes() -> None:
    told = lines(facts(padded(4, 1, 1023, 1023), 100))
    assert "does another process hold memory?" in told[1]
