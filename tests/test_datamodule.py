"""The data module: sources, splits, cache, loaders, and where a checkpoint goes on."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from tiny_models import tiny_tokenizer

from orpo_lightning.batching.sampler import PlannedSampler
from orpo_lightning.data import cache
from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.data.splits import sample, split_by_prompt
from orpo_lightning.errors import CheckpointError, DataError, SurroundingsError, UsageError


def rows(count: int, prompts: int | None = None, first: int = 0) -> list[dict[str, Any]]:
    """Return conversational rows; row i asks question i % prompts and its chosen answer is "A<i>"."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Q{i % (prompts or first + count)}"}],
            "chosen": [{"role": "assistant", "content": f"A{i}"}],
            "rejected": [{"role": "assistant", "content": f"B{i}" * (i % 3 + 1)}],
        }
        for i in range(first, first + count)
    ]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Any:
    """Return a function that builds a data module, from rows to train on and any arguments."""

    def build(pairs: list[dict[str, Any]] | None = None, **arguments: Any) -> PreferenceDataModule:
        if pairs is not None:
            arguments["train"] = write(tmp_path / "train.jsonl", pairs)
        return PreferenceDataModule(
            **({"tokenizer": tokenizer, "cache_dir": str(tmp_path / "cache"), "max_dropped": 1.0} | arguments)
        )

    return build


def ready(data: PreferenceDataModule, stage: str | None = None) -> PreferenceDataModule:
    data.prepare_data()
    data.setup(stage)
    return data


def numbers(data: PreferenceDataModule, pairs: Any) -> list[int]:
    """Return the row numbers of pairs, told by their chosen answers."""
    return [int(re.search(r"A(\d+)", data.processor.decode(pair.chosen)).group(1)) for pair in pairs]


def batch_numbers(data: PreferenceDataModule, loader: Any) -> list[list[int]]:
    found = []
    for batch in loader:
        sequences = [batch.target_ids[batch.target_sequences == i] for i in range(batch.num_pairs)]
        texts = [data.processor.decode(ids) for ids in sequences]
        found.append([int(match.group(1)) for text in texts if (match := re.search(r"A(\d+)", text))])
    return found


def attach(data: PreferenceDataModule, **trainer: Any) -> PreferenceDataModule:
    """Attach what the data module reads of a Trainer."""
    default = {
        "world_size": 1,
        "global_rank": 0,
        "accumulate_grad_batches": 1,
        "overfit_batches": 0,
        "num_training_batches": float("inf"),
        "state": SimpleNamespace(fn="fit"),
        "_accelerator_connector": SimpleNamespace(use_distributed_sampler=False),
    }
    data.trainer = SimpleNamespace(**(default | trainer))
    return data


# What is read


def test_files_become_tokenised_pairs_of_each_split(make: Any, tmp_path: Path) -> None:
    validation = write(tmp_path / "validation.jsonl", rows(5, first=9))
    test = write(tmp_path / "test.jsonl", rows(7, first=14))
    data = ready(make(rows(9), validation=validation, test=test))
    assert [len(data.train_dataset), len(data.validation_dataset), len(data.test_dataset)] == [9, 5, 7]
    pair = data.train_dataset[4]
    assert data.processor.decode(pair.prompt) == "<|im_start|>user\nQ4<|im_end|>\n<|im_start|>assistant\n"
    assert data.processor.decode(pair.chosen) == "A4<|im_end|>"
    assert data.processor.decode(pair.rejected) == "B4B4<|im_end|>"


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_stage_has_the_split_it_needs_alone(stage: str, make: Any, tmp_path: Path) -> None:
    split = {"validate": "validation", "test": "test"}[stage]
    others = {"validation": "nowhere.jsonl", "test": "nowhere.jsonl"}
    data = make(rows(9), **others | {split: write(tmp_path / "other.jsonl", rows(3, first=9))})
    attach(data, state=SimpleNamespace(fn=stage))
    ready(data, stage)
    assert set(data.report()) == {split}
    assert data.train_dataset is None


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_training_pairs_that_are_gone_are_told_once_and_keep_no_stage_from_its_own(
    stage: str, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = {"validate": "validation", "test": "test"}[stage]
    other = {split: write(tmp_path / "other.jsonl", rows(3))}
    data = attach(make(train="nowhere.jsonl", **other), state=SimpleNamespace(fn=stage))
    assert set(ready(data, stage).report()) == {split}
    (line,) = caplog.messages
    assert line.startswith(f"pairs of data.train are not left out of {split}: ")
    assert "nowhere.jsonl: no such file" in line


def test_the_token_limits_reach_the_tokenisation(make: Any) -> None:
    prompt, _, rejected = ready(make(rows(6))).train_dataset.lengths[0].tolist()
    data = ready(make(rows(6), max_length=prompt + rejected))
    # Rows 0 and 3 have the rejected answer once, the others two or three times.
    assert numbers(data, data.train_dataset) == [0, 3]
    assert data.report()["train"].dropped["pair too long"].rows == 4


def test_rows_may_come_from_an_overridden_method(tokenizer: str, tmp_path: Path) -> None:
    class Mine(PreferenceDataModule):
        def load_rows(self, split: str) -> list[dict[str, Any]]:
            return {"train": rows(4), "validation": rows(2, first=4), "test": []}[split]

    data = ready(Mine(tokenizer=tokenizer, cache_dir=str(tmp_path)))
    assert (len(data.train_dataset), len(data.validation_dataset), data.test_dataset) == (4, 2, None)
    assert data.report()["train"].source == "Mine.load_rows('train')"


def test_an_override_may_work_on_the_rows_of_the_file(tokenizer: str, tmp_path: Path) -> None:
    class Longer(PreferenceDataModule):
        def load_rows(self, split: str) -> list[Mapping[str, Any]]:
            return [row for row in super().load_rows(split) if row["prompt"][0]["content"] != "Q1"]

    train = write(tmp_path / "x.jsonl", rows(4))
    data = ready(Longer(train=train, tokenizer=tokenizer, cache_dir=str(tmp_path)))
    assert numbers(data, data.train_dataset) == [0, 2, 3]


def test_the_report_says_what_was_kept_and_what_was_dropped_and_why(make: Any) -> None:
    same = rows(1)[0] | {"rejected": rows(1)[0]["chosen"]}
    data = ready(make([*rows(3), same]))
    report = data.report()["train"]
    assert report.pairs == 3
    assert report.stop_tokens == {"<|im_end|>": 6}
    assert report.tokens == {
        name: sum(len(getattr(pair, name)) for pair in data.train_dataset)
        for name in ("prompt", "chosen", "rejected")
    }
    assert str(report).startswith(f"3 pairs of {data.train} (explicit messages); tokens: ")
    assert str(report).endswith(f"left out: 1 identical answers (first {data.train}:4)")


def test_data_of_which_nothing_is_left_is_an_error_with_the_reasons(make: Any) -> None:
    with pytest.raises(
        DataError, match="no usable pair is left; left out: 3 prompt leaves no room for an answer"
    ):
        ready(make(rows(3), max_length=4))


def test_what_is_not_named_is_asked_for_by_its_flag(make: Any) -> None:
    data = ready(make())
    assert data.val_dataloader() == []
    with pytest.raises(UsageError, match=r"data\.train is not set"):
        data.train_dataloader()
    with pytest.raises(UsageError, match=r"data\.test is not set"):
        data.test_dataloader()
    attach(data, state=SimpleNamespace(fn="validate"))
    with pytest.raises(UsageError, match=r"data\.validation is not set"):
        data.val_dataloader()
    with pytest.raises(UsageError, match=r"data\.tokenizer is not set"):
        ready(make(rows(2), tokenizer=None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data.batch_size: expected at least 1, found 0"),
        ({"validation_batch_size": 0}, "data.validation_batch_size: expected at least 1, found 0"),
        ({"validation_size": 0}, "data.validation_size: expected at least 1, found 0"),
        ({"num_workers": -1}, "data.num_workers: expected at least 0, found -1"),
        ({"max_length": 1}, "data.max_length: expected at least 2, found 1"),
        ({"max_prompt_length": 1024}, "data.max_prompt_length: expected less than data.max_length (1024)"),
        ({"overlong": "cut"}, "data.overlong: expected drop, truncate or error, found 'cut'"),
        ({"validation": 1.5}, "data.validation: expected a source or a share between 0 and 1, found 1.5"),
        ({"validation": "0"}, "data.validation: expected a source or a share between 0 and 1, found 0.0"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        PreferenceDataModule(**arguments)


# Held-out pairs


@pytest.mark.parametrize("share", [0.25, "0.25"])
def test_a_share_of_train_is_held_out_by_prompt(share: Any, make: Any) -> None:
    data = ready(make(rows(40, prompts=8), validation=share))
    sides = [numbers(data, pairs) for pairs in (data.train_dataset, data.validation_dataset)]
    assert sorted(sides[0] + sides[1]) == list(range(40))
    prompts = [{i % 8 for i in side} for side in sides]
    assert len(prompts[1]) == 2  # a quarter of eight
    assert not prompts[0] & prompts[1]


def test_the_held_out_prompts_depend_on_the_seed_only(make: Any) -> None:
    def held_out(**arguments: Any) -> list[int]:
        data = ready(make(rows(40, prompts=8), validation=0.25, **arguments))
        return numbers(data, data.validation_dataset)

    assert held_out(seed=1) == held_out(seed=1, batch_size=7, shuffle=False)
    assert len({tuple(held_out(seed=seed)) for seed in range(5)}) > 1


def test_a_stage_of_validation_holds_out_the_same_pairs_as_training(make: Any) -> None:
    whole = ready(make(rows(40, prompts=8), validation=0.25))
    alone = ready(make(rows(40, prompts=8), validation=0.25), "validate")
    assert numbers(alone, alone.validation_dataset) == numbers(whole, whole.validation_dataset)
    assert alone.train_dataset is None


def test_one_prompt_cannot_be_split(make: Any) -> None:
    with pytest.raises(
        DataError, match=r"train\.jsonl: all pairs have the same prompt, so none can be held out"
    ):
        ready(make(rows(4, prompts=1), validation=0.5))


@pytest.mark.parametrize(("share", "held"), [(0.001, 1), (0.5, 2), (0.999, 3)])
def test_each_side_of_a_split_gets_at_least_one_prompt(share: float, held: int) -> None:
    prompts = ["a", "b", "a", "c", "d"]
    train, validation = (indices.tolist() for indices in split_by_prompt(prompts, share, seed=0))
    assert sorted(train + validation) == [0, 1, 2, 3, 4]
    assert len({prompts[i] for i in validation}) == held


def test_validation_takes_a_seeded_sample_or_all(make: Any, tmp_path: Path) -> None:
    validation = write(tmp_path / "validation.jsonl", rows(30))

    def chosen(**arguments: Any) -> list[int]:
        data = ready(make(validation=validation, **arguments))
        return numbers(data, data.validation_dataset)

    assert len(set(chosen(validation_size=10))) == 10
    assert chosen(validation_size=10) == sorted(chosen(validation_size=10))
    assert chosen(validation_size=10, seed=1) != chosen(validation_size=10, seed=2)
    assert chosen(validation_size=None) == chosen(validation_size=99) == list(range(30))


def test_samples_of_growing_size_contain_each_other() -> None:
    assert set(sample(100, 10, seed=3).tolist()) < set(sample(100, 20, seed=3).tolist())


# The cache


def test_a_second_run_reads_the_cache_and_tokenises_nothing(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(make(rows(9), validation=0.3))
    expected = list(first.train_dataset), list(first.validation_dataset), first.report()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(cache, "tokenize_records", fail)
    second = ready(make(rows(9), validation=0.3))
    assert (list(second.train_dataset), list(second.validation_dataset), second.report()) == expected
    with pytest.raises(AssertionError, match="tokenised again"):
        ready(make(rows(10), validation=0.3))


def test_several_splits_are_found_again_whatever_was_tokenised_before(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stored with settings that the first call resets: they are no part of what the tokens depend on.
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.backend_tokenizer.enable_truncation(512)
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "validation": write(tmp_path / "other.jsonl", rows(4, first=9)),
    }
    ready(make(rows(9), **arguments))
    monkeypatch.setattr(cache, "tokenize_records", None)
    ready(make(rows(9), **arguments))
    ready(make(rows(9), **arguments), "validate")


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 30, "overlong": "truncate"},
        {"max_prompt_length": 100},
        {"overlong": "error"},
        {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
    ],
)
def test_other_settings_are_tokenised_anew(change: dict[str, Any], make: Any, tmp_path: Path) -> None:
    ready(make(rows(9)))
    before = set((tmp_path / "cache").iterdir())
    ready(make(rows(9), **change))
    assert len(set((tmp_path / "cache").iterdir()) - before) == 1


def test_a_damaged_cache_is_made_again(make: Any, tmp_path: Path) -> None:
    expected = list(ready(make(rows(9))).train_dataset)
    (entry,) = (tmp_path / "cache").iterdir()
    for name in ("tokens.bin", "lengths.bin", "keys.bin", "info.json"):
        content = (entry / name).read_bytes()
        (entry / name).write_bytes(content[: len(content) // 2])
        assert list(ready(make(rows(9))).train_dataset) == expected
    (entry / "tokens.bin").unlink()
    assert list(ready(make(rows(9))).train_dataset) == expected
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_two_runs_that_make_the_same_cache_at_once_both_get_it(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_tokenize = cache.tokenize_records

    def overtaken(*arguments: Any, **settings: Any) -> Any:
        monkeypatch.setattr(cache, "tokenize_records", really_tokenize)
        ready(make(rows(9)))  # the other run, from beginning to end
        return really_tokenize(*arguments, **settings)

    monkeypatch.setattr(cache, "tokenize_records", overtaken)
    assert len(ready(make(rows(9))).train_dataset) == 9
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_kill_while_storing_leaves_no_half_cache(make: Any, tmp_path: Path) -> None:
    def die(*_: Any) -> None:
        os._exit(9)

    data = make(rows(9))
    child = multiprocessing.get_context("fork").Process(target=data.prepare_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_put", die)
        child.start()
        child.join()
    assert child.exitcode == 9
    # Only hidden leftovers, which nothing takes for a cache.
    assert [path.name[0] for path in (tmp_path / "cache").iterdir()] == ["."]
    assert len(ready(make(rows(9))).train_dataset) == 9


def test_a_cache_folder_that_cannot_be_written_is_named(make: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(
        SurroundingsError, match=r"cache: cannot store the tokenised pairs: .* set data\.cache_dir"
    ):
        ready(make(rows(2)))


def test_the_cache_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert PreferenceDataModule().cache_dir == tmp_path / "orpo_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert PreferenceDataModule().cache_dir == Path.home() / ".cache" / "orpo_lightning"


# Loaders


def test_training_batches_carry_the_totals_of_their_step(make: Any) -> None:
    data = attach(ready(make(rows(10), batch_size=2)), accumulate_grad_batches=2)
    batches = list(data.train_dataloader())
    assert [batch.num_pairs for batch in batches] == [2, 2, 2, 2, 2]
    for step in (batches[:2], batches[2:4], batches[4:]):
        prompts = sum(int((~batch.target_is_completion).sum()) for batch in step)
        answers = sum(
            int((batch.target_is_completion & (batch.target_sequences < batch.num_pairs)).sum())
            for batch in step
        )
        for batch in step:
            assert batch.normalisers == (2 * len(step), prompts, answers)


def test_validation_batches_are_twice_as_large_and_carry_no_totals(make: Any, tmp_path: Path) -> None:
    validation = write(tmp_path / "validation.jsonl", rows(9))
    data = ready(make(validation=validation, test=validation, batch_size=2))
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert [batch.num_pairs for batch in batches] == [4, 4, 1]
        assert [batch.normalisers for batch in batches] == [None] * 3
    data = ready(make(validation=validation, validation_batch_size=9))
    assert [batch.num_pairs for batch in data.val_dataloader()] == [9]


def test_padding_uses_an_id_of_the_vocabulary_even_without_pad_and_eos(make: Any, tokenizer: str) -> None:
    data = ready(make(rows(6), batch_size=6, shuffle=False))
    data.processor.pad_token = data.processor.eos_token = None
    (batch,) = data.train_dataloader()
    padding = batch.model_inputs["input_ids"][batch.model_inputs["attention_mask"] == 0]
    assert set(padding.tolist()) == {0}


def test_in_sequential_order_batches_follow_the_file(make: Any) -> None:
    data = ready(make(rows(7), shuffle=False))
    assert batch_numbers(data, data.train_dataloader()) == [[0, 1], [2, 3], [4, 5], [6]]


def test_overfitting_takes_the_same_batches_in_every_epoch(make: Any) -> None:
    data = attach(ready(make(rows(7))), overfit_batches=2)
    assert batch_numbers(data, data.train_dataloader()) == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_two_ranks_share_every_pair_once_in_equally_many_batches(
    stage: str, make: Any, tmp_path: Path
) -> None:
    validation = write(tmp_path / "validation.jsonl", rows(11, first=11))
    found = []
    for rank in (0, 1):
        data = attach(ready(make(rows(11), validation=validation)), world_size=2, global_rank=rank)
        loader = data.train_dataloader() if stage == "fit" else data.val_dataloader()
        found.append(batch_numbers(data, loader))
    assert len(found[0]) == len(found[1])
    first = 0 if stage == "fit" else 11
    assert sorted(itertools.chain(*found[0], *found[1])) == list(range(first, first + 11))


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_lightning_must_not_replace_the_plan_of_several_ranks(loader: str, make: Any) -> None:
    replacing = SimpleNamespace(use_distributed_sampler=True)
    data = ready(make(rows(8), validation=0.5))
    getattr(attach(data, _accelerator_connector=replacing), loader)()
    attach(data, world_size=2, _accelerator_connector=replacing)
    with pytest.raises(UsageError, match=r"trainer\.use_distributed_sampler must be false"):
        getattr(data, loader)()


def test_a_number_of_micro_batches_a_step_that_changes_on_the_way_is_refused(
    make: Any, tmp_path: Path
) -> None:
    scheduler = lightning.pytorch.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    fit = trainer(tmp_path, accumulate_grad_batches=1, callbacks=[scheduler])
    with pytest.raises(UsageError, match=r"remove it, and set trainer\.accumulate_grad_batches"):
        fit.fit(Recorder(), make(rows(8)))


@pytest.mark.parametrize(
    ("limit", "accumulate", "computed", "near"),
    [(3, 4, 3, "4"), (5, 4, 5, "4 or 1.0"), (0.5, 2, 3, "2 or 4"), (0.99, 2, 5, "4 or 1.0")],
)
def test_a_limit_within_an_optimizer_step_is_refused_with_those_next_to_it(
    limit: float, accumulate: int, computed: int, near: str, make: Any, tmp_path: Path
) -> None:
    fit = trainer(tmp_path, accumulate_grad_batches=accumulate, limit_train_batches=limit)
    said = f"{limit}: {computed} micro-batches end within an optimizer step of {accumulate} "
    with pytest.raises(UsageError, match=f"{re.escape(said)}.*: set it to {re.escape(near)}$"):
        fit.fit(Recorder(), make(rows(11)))


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"limit_train_batches": 2}, 2),
        ({"limit_train_batches": 5}, 5),  # the whole pass, whose last step is short
        ({"limit_train_batches": 100}, 5),
        ({"limit_train_batches": 0.5}, 2),
        ({"limit_train_batches": 3, "accumulate_grad_batches": 2, "max_steps": 1}, 2),  # over before
        ({"fast_dev_run": 1}, 1),
        ({"overfit_batches": 1}, 1),
    ],
    ids=str,
)
def test_a_limit_between_two_steps_and_a_trial_of_a_few_micro_batches_are_not(
    settings: dict[str, Any], batches: int, make: Any, tmp_path: Path
) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=1, **settings).fit(module, make(rows(9)))
    assert len(module.found) == batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_do_not_change_the_order(num_workers: int, make: Any) -> None:
    expected = ready(make(rows(9)))
    data = ready(make(rows(9), num_workers=num_workers))
    assert batch_numbers(data, data.train_dataloader()) == batch_numbers(
        expected, expected.train_dataloader()
    )


# Resuming


class Recorder(lightning.LightningModule):
    """Remembers the targets of every batch it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.found: list[list[int]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.found.append(batch.target_ids.tolist())
        return self.weight * batch.normalisers.pairs

    def validation_step(self, batch: Any) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Asking for the number of steps builds the loader before the progress of a checkpoint is restored.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    default = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "accumulate_grad_batches": 2, **quiet}
    return lightning.Trainer(default_root_dir=folder, **(default | settings))


def checkpoints(folder: Path) -> lightning.pytorch.callbacks.ModelCheckpoint:
    return lightning.pytorch.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, monitor=None
    )


@pytest.mark.filterwarnings("error:You're resuming from a checkpoint")
@pytest.mark.parametrize("limit", [1.0, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_exactly_the_rest(
    num_workers: int, limit: float, make: Any, tmp_path: Path
) -> None:
    def run(saved: str | None = None) -> list[list[int]]:
        module, data = Recorder(), make(rows(11), validation=0.2, num_workers=num_workers)
        settings = {} if saved else {"callbacks": [checkpoints(tmp_path / "saved")]}
        fit = trainer(tmp_path, limit_train_batches=limit, val_check_interval=2, **settings)
        fit.fit(module, data, ckpt_path=saved)
        return module.found

    whole = run()
    per_epoch = 5 if limit == 1.0 else 4  # nine of eleven pairs, in pairs
    assert len(whole) == 3 * per_epoch
    assert whole[:per_epoch] != whole[per_epoch : 2 * per_epoch]
    steps_per_epoch = 3 if limit == 1.0 else 2
    steps = [step for step in range(1, 3 * steps_per_epoch) if num_workers == 0 or step in (2, 4)]
    for step in steps:
        epoch, steps_in = divmod(step, steps_per_epoch)
        seen = epoch * per_epoch + min(2 * steps_in, per_epoch)
        assert run(str(tmp_path / "saved" / f"step={step}.ckpt")) == whole[seen:], f"from step {step}"


def test_a_position_is_saved_as_epoch_and_micro_batches_and_restored_by_a_fresh_module(make: Any) -> None:
    data = ready(make(rows(11)))
    loader = data.train_dataloader()
    loader.plan.set_epoch(4)
    whole = list(batch_numbers(data, loader))
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    state = data.state_dict()
    assert (state["epoch"], state["seen"]) == (4, 2)
    resumed = ready(make(rows(11)))
    resumed.load_state_dict(state)
    assert batch_numbers(resumed, resumed.train_dataloader()) == whole[2:]


def test_the_end_of_an_epoch_is_the_beginning_of_the_next(make: Any) -> None:
    data = ready(make(rows(11)))
    list(data.train_dataloader())
    assert (data.state_dict()["epoch"], data.state_dict()["seen"]) == (1, 0)
    attach(data, num_training_batches=3)
    iterator = iter(data.train_dataloader())
    for _ in range(3):
        next(iterator)
    assert (data.state_dict()["epoch"], data.state_dict()["seen"]) == (1, 0)


def state_after(data: PreferenceDataModule, batches: int) -> dict[str, Any]:
    iterator = iter(data.train_dataloader())
    for _ in range(batches):
        next(iterator)
    return data.state_dict()


def test_a_checkpoint_holds_plain_values_only(make: Any, tmp_path: Path) -> None:
    data = ready(make(rows(5)))
    torch.save([state_after(data, 1), dict(data.hparams)], tmp_path / "state")
    state, _ = torch.load(tmp_path / "state", weights_only=True)
    assert state == data.state_dict()


@pytest.mark.parametrize(
    "change",
    [{"max_length": 20, "overlong": "truncate"}, {"validation": 0.5}, {"train_rows": 6}, {"other": True}],
)
def test_a_checkpoint_of_other_data_is_refused(change: dict[str, Any], make: Any) -> None:
    state = state_after(ready(make(rows(5))), 3)
    train = rows(change.pop("train_rows", 5))
    if change.pop("other", False):
        train[3]["rejected"][0]["content"] += "!"
    data = ready(make(train, **change))
    message = r"train\.jsonl: the training data differs from the checkpoint's"
    with pytest.raises(CheckpointError, match=message):
        data.load_state_dict(state)
    data = make(train, **change)
    data.load_state_dict(state)  # before `setup` there is nothing to compare with
    ready(data)
    with pytest.raises(CheckpointError, match=message):
        data.train_dataloader()


def test_the_same_data_in_another_file_and_layout_is_no_other_data(make: Any, tmp_path: Path) -> None:
    state = state_after(ready(make(rows(5))), 2)
    (tmp_path / "moved.json").write_text("\ufeff" + json.dumps(rows(5), indent=2))
    data = ready(make(train=str(tmp_path / "moved.json")))
    data.load_state_dict(state)
    assert len(list(data.train_dataloader())) == 1


@pytest.mark.parametrize(
    ("change", "attached", "message"),
    [
        ({"seed": 1}, {}, "seed 42 became 1 within an epoch"),
        ({"shuffle": False}, {}, "shuffle True became False within an epoch"),
    ],
)
def test_a_position_within_an_epoch_of_another_plan_is_refused(
    change: dict[str, Any], attached: dict[str, Any], message: str, make: Any
) -> None:
    within, between = (state_after(ready(make(rows(5))), seen) for seen in (1, 3))
    data = attach(ready(make(rows(5), **change)), **attached)
    with pytest.raises(CheckpointError, match=message):
        data.load_state_dict(within)
    data.load_state_dict(between)
    assert data.train_dataloader().plan.epoch == 1


@pytest.mark.parametrize(
    ("change", "attached", "message"),
    [
        ({"batch_size": 3}, {}, "batch_size 2 became 3, so 2 pairs in a step became 3"),
        ({}, {"accumulate_grad_batches": 2}, "accumulate 1 became 2, so 2 pairs in a step became 4"),
        ({}, {"world_size": 2}, "world_size 1 became 2, so 2 pairs in a step became 4"),
    ],
)
def test_other_steps_are_refused_within_one_and_between_two_accepted_where_that_is_asked_for(
    change: dict[str, Any], attached: dict[str, Any], message: str, make: Any
) -> None:
    within, between = (state_after(ready(make(rows(7))), seen) for seen in (1, 4))
    stops = attach(ready(make(rows(7), **change)), **attached)
    goes_on = attach(ready(make(rows(7), changed_steps="accept", **change)), **attached)
    with pytest.raises(CheckpointError, match=f"{message}, and the checkpoint does not stand between two"):
        goes_on.load_state_dict(within)
    with pytest.raises(CheckpointError, match=f"{message}; --data.changed_steps accept"):
        stops.load_state_dict(between)
    goes_on.load_state_dict(between)
    assert goes_on.train_dataloader().plan.epoch == 1


def test_a_second_fit_begins_at_the_beginning(make: Any) -> None:
    data = ready(make(rows(7)))
    data.load_state_dict(state_after(ready(make(rows(7))), 2))
    data.teardown("fit")
    assert len(list(data.train_dataloader())) == 4


def test_a_run_without_training_has_no_position(make: Any) -> None:
    assert ready(make(rows(3))).state_dict() == {}


# Lightning and its command line


def test_a_trainer_validates_and_tests_without_training_data(make: Any, tmp_path: Path) -> None:
    class Counter(Recorder):
        pairs = 0

        def validation_step(self, batch: Any) -> None:
            self.pairs += batch.num_pairs

        test_step = validation_step

    file = write(tmp_path / "other.jsonl", rows(9))
    module = Counter()
    trainer(tmp_path).validate(module, make(validation=file), verbose=False)
    assert module.pairs == 9
    trainer(tmp_path).test(module, make(test=file), verbose=False)
    assert module.pairs == 18


@pytest.mark.parametrize(
    ("given", "expected"), [("0.25", 0.25), ("pairs.jsonl", "pairs.jsonl"), ("null", None)]
)
def test_the_command_line_takes_a_share_or_a_source(given: str, expected: Any) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PreferenceDataModule, "data")
    config = parser.parse_args([f"--data.validation={given}"])
    assert parser.instantiate_classes(config).data.validation == expected


def test_a_large_data_set_is_planned_at_once() -> None:
    # 60,000 pairs, as many as UltraFeedback has; planning must not walk through the tokens of every pair.
    lengths = torch.tensor([100, 200, 200]).repeat(60_000, 1)
    began = time.monotonic()
    sampler = PlannedSampler(lengths, batch_size=2, accumulate=4)
    next(iter(sampler))
    assert time.monotonic() - began < 1
    assert len(sampler) == 30_000
