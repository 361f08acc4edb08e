"""Which pairs are validated on: a stratified, nested sample; its size by number, budget or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_lightning import PreferenceDataModule
from orpo_lightning.data.splits import sample, stratified_order
from orpo_lightning.data.validation import parse_budget
from orpo_lightning.errors import UsageError

DICE = torch.Generator().manual_seed(0)
# Two sources, the second with longer pairs, in a random order.
SOURCES = (torch.rand(437, generator=DICE) < 0.2).long()
LENGTHS = (torch.randn(437, generator=DICE) * 0.8 + 4 + SOURCES).exp().long() + 1


def strata() -> torch.Tensor:
    """Return (437,) of each pair its source and tenth by length; equal lengths may fall on either side."""
    found = torch.zeros(437).long()
    for source in (0, 1):
        places = (source == SOURCES).nonzero()[:, 0]
        ranks = LENGTHS[places].argsort(stable=True).argsort()
        found[places] = source * 10 + ranks * 10 // len(places)
    return found


def test_every_beginning_of_the_order_has_each_source_and_length_with_its_share() -> None:
    order = stratified_order(LENGTHS, SOURCES, seed=3)
    assert sorted(order.tolist()) == list(range(437))
    of, sizes = strata()[order], torch.bincount(strata(), minlength=20)
    for size in (1, 10, 64, 200, 436):
        expected = sizes * size / 437
        # To within one pair; one more where a tenth ends within equal lengths.
        assert ((torch.bincount(of[:size], minlength=20) - expected).abs() <= 2).all()
        source = (SOURCES[order[:size]] == 1).sum() - size * (SOURCES == 1).sum() / 437
        assert abs(source) <= 3


def test_a_stratified_sample_varies_less_in_length_than_a_plain_one() -> None:
    logs = LENGTHS.float().log()
    stratified = [logs[stratified_order(LENGTHS, SOURCES, seed)[:64]].mean() for seed in range(60)]
    plain = [logs[sample(437, 64, seed)].mean() for seed in range(60)]
    assert torch.stack(stratified).std() < 0.4 * torch.stack(plain).std()


def test_no_pair_is_preferred() -> None:
    taken = torch.zeros(437)
    for seed in range(1500):
        taken[stratified_order(LENGTHS, SOURCES, seed)[:64]] += 1
    share = 64 / 437
    scores = (taken - 1500 * share) / (1500 * share * (1 - share)) ** 0.5
    assert scores.abs().max() < 4.5  # of 437 normal values
    assert scores.mean().abs() < 1e-6


def test_the_order_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = stratified_order(LENGTHS, SOURCES, seed=3)
    torch.manual_seed(2)
    assert torch.equal(stratified_order(LENGTHS, SOURCES, seed=3), first)
    assert not torch.equal(stratified_order(LENGTHS, SOURCES, seed=4), first)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_pairs_than_strata_are_all_there(count: int) -> None:
    assert sorted(stratified_order([5] * count, [0] * count, seed=0).tolist()) == list(range(count))


@pytest.mark.parametrize(
    ("given", "share"),
    [("5%", 0.05), ("0.5 %", 0.005), (0.05, 0.05), ("0.05", 0.05), ("100%", 1.0), (None, None)],
)
def test_a_budget_is_a_share_in_either_spelling(given: Any, share: float | None) -> None:
    assert parse_budget(given) == share


@pytest.mark.parametrize("given", ["0%", "-5%", 5, "five", "5 min", 0, "nan"])
def test_what_is_no_share_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match=r"data\.validation_budget: expected a share of the training time"):
        parse_budget(given)


# The data module


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Any:
    def build(**arguments: Any) -> PreferenceDataModule:
        for name, first in (("train", 0), ("validation", 100)):
            rows = [
                {"prompt": f"Q{i}", "chosen": f"A{i}" * (i % 9 + 1), "rejected": f"B{i}" * (i % 5 + 1)}
                for i in range(first, first + 90)
            ]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
            arguments = {name: str(tmp_path / f"{name}.jsonl")} | arguments
        data = PreferenceDataModule(tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"), **arguments)
        data.prepare_data()
        data.setup()
        return data

    return build


def planned(data: PreferenceDataModule) -> list[int]:
    loader = data.val_dataloader() if data.validation_loader is None else data.validation_loader
    return sorted(index for batch in loader.plan.batches for index in batch.indices)


def test_the_loader_takes_the_sample_and_a_larger_one_contains_it(make: Any) -> None:
    small, large = make(validation_size=20), make(validation_size=50)
    assert len(small.validation_dataset) == len(planned(small)) == 20
    assert set(planned(small)) < set(planned(large))
    assert sum(batch.num_pairs for batch in small.val_dataloader()) == 20
    small.resize_validation(None)
    assert planned(small) == list(range(90))
    small.resize_validation(50)
    assert planned(small) == planned(large)
    assert len(small.validation_dataset) == 50


def test_a_measured_size_is_kept_by_a_run_that_goes_on(make: Any) -> None:
    data = make(validation_budget="5%")
    assert len(planned(data)) == 90  # all of them until it is measured
    data.train_dataloader()
    assert "validation_size" not in data.state_dict()
    data.resize_validation(33, keep=True)
    state = data.state_dict()
    for loads_first in (True, False):
        resumed = make(validation_budget="5%")
        if loads_first:
            resumed.load_state_dict(state)
            assert planned(resumed) == planned(data)
        else:
            assert len(planned(resumed)) == 90
            resumed.load_state_dict(state)
            assert planned(resumed) == planned(data)
        assert resumed.measured_size == 33
    other = make(validation_size=70)  # the budget is no longer wanted
    other.load_state_dict(state)
    assert len(planned(other)) == 70


def test_validation_batches_hold_what_twice_a_micro_batch_of_the_longest_pairs_has(make: Any) -> None:
    data = make(batch_size=3, validation_size=None)
    lengths = data.validation_dataset.lengths
    longest = int((lengths[:, 0] + lengths[:, 1:].amax(1)).max())
    shapes = [batch.model_inputs["input_ids"].shape for batch in data.val_dataloader()]
    assert all(rows * width <= 2 * 3 * 2 * longest for rows, width in shapes)
    assert shapes[0][0] == 2 * 6
    assert shapes[-2][0] > 2 * 6  # more of the shorter ones


def test_validation_batches_follow_the_training_budget_or_the_number_that_is_set(make: Any) -> None:
    data = make(batch_size=1, tokens_per_batch=400, validation_size=None)
    assert all(batch.model_inputs["input_ids"].numel() <= 1600 for batch in data.val_dataloader())
    assert max(batch.num_pairs for batch in data.val_dataloader()) > 8
    data = make(batch_size=1, tokens_per_batch=400, validation_batch_size=7, validation_size=None)
    assert {batch.num_pairs for batch in data.val_dataloader()} == {7, 90 % 7}


def test_training_batches_keep_to_the_budget(make: Any) -> None:
    from types import SimpleNamespace

    data = make(batch_size=1, tokens_per_batch=400)
    data.trainer = SimpleNamespace(accumulate_grad_batches=6, world_size=1, global_rank=0, overfit_batches=0)
    batches = list(data.train_dataloader())
    assert len(batches) == 6 * 15
    real = [batch for batch in batches if batch.num_pairs]
    assert len(real) < 60
    assert all(batch.model_inputs["input_ids"].numel() <= 400 for batch in real)
    data.tokens_per_batch = 10
    with pytest.raises(UsageError, match=r"data\.tokens_per_batch: expected at least"):
        data.train_dataloader()
