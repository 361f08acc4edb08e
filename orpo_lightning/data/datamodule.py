"""Preference pairs for a Lightning Trainer: read, tokenised once, planned in whole optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule

from orpo_lightning.batching.base import Layout
from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.batching.sampler import Collate, Loader, PlannedSampler, SortedSampler
from orpo_lightning.batching.shared_prefix import lay_flat
from orpo_lightning.data.cache import PairTable, default_cache_dir, open_table
from orpo_lightning.data.checks import (
    refuse_impossible_limits,
    refuse_other_run,
    refuse_small,
    share_or_source,
)
from orpo_lightning.data.report import SplitReport, make_report
from orpo_lightning.data.sources import Rows, read_rows, rows_fingerprint, source_fingerprint
from orpo_lightning.data.splits import sample, split_by_prompt
from orpo_lightning.data.tokenization import load_tokenizer
from orpo_lightning.errors import DataError, UsageError

Split = Literal["train", "validation", "test"]
_SPLITS_OF: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    None: ("train", "validation", "test"),
}


class PreferenceDataModule(LightningDataModule):
    """Preference pairs from a file or the hub.

    A row holds `chosen` and `rejected`, and usually `prompt`, as text or as lists of messages.

    Args:
        train: Pairs to train on: a .jsonl, .json, .parquet or .csv file, or a hub id (owner/name or
            owner/name:split).
        validation: Pairs to validate on, named like `train`; or a number between 0 and 1: that share of
            `train`'s prompts is held out, so that no prompt is on both sides.
        test: Pairs for the test subcommand, named like `train`.
        tokenizer: Hub id or folder of the tokenizer; the base model's where left out.
        revision: Branch, tag or commit of the tokenizer on the hub.
        trust_remote_code: Run code that comes with the tokenizer.
        chat_template: A chat template, or the path of a .jinja file, in place of the tokenizer's own.
        max_length: Most tokens of a prompt and one answer together.
        max_prompt_length: Most tokens of a prompt; without it only max_length counts.
        overlong: What happens to longer pairs: "drop" leaves them out and counts them, "truncate" cuts the
            prompt on the left to max_prompt_length and the answers on the right, "error" stops.
        layout: How pairs are laid out for the model: "padded", a row for each sequence; "shared_prefix", each
            prompt computed once and nothing padded; "auto", the latter where the model gives equal numbers.
        batch_size: Pairs in one micro-batch on one device.
        validation_batch_size: Pairs in one batch of validation and test; twice batch_size where left out.
        validation_size: How many pairs to validate on, drawn with the seed; null takes all of them.
        shuffle: Give every epoch an order of its own; false keeps the order of the file.
        seed: Decides order, held-out prompts and validation sample, together with nothing else.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        cache_dir: Where tokenised pairs are kept; orpo_lightning in the user's cache folder where left out.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | float | None = None,
        test: str | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        overlong: Literal["drop", "truncate", "error"] = "drop",
        layout: Layout = "auto",
        batch_size: int = 2,
        validation_batch_size: int | None = None,
        validation_size: int | None = 256,
        shuffle: bool = True,
        seed: int = 42,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        """Remember the arguments; nothing is read before `prepare_data`."""
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.train, self.validation, self.test = train, share_or_source(validation), test
        self.tokenizer, self.revision, self.trust_remote_code = tokenizer, revision, trust_remote_code
        self.chat_template = chat_template
        self.max_length, self.max_prompt_length, self.overlong = max_length, max_prompt_length, overlong
        self.layout: Layout = layout
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size or 2 * batch_size
        self.validation_size = validation_size
        self.shuffle, self.seed, self.num_workers = shuffle, seed, num_workers
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.train_dataset: PairTable | None = None
        self.validation_dataset: PairTable | None = None
        self.test_dataset: PairTable | None = None
        self._tables: dict[Split, PairTable | None] = {}
        self._position: dict[str, Any] | None = None
        self._loader: Loader | None = None
        refuse_impossible_limits(max_length, max_prompt_length, overlong)
        refuse_small(1, batch_size=batch_size, validation_batch_size=validation_batch_size)
        refuse_small(1, validation_size=validation_size)
        refuse_small(0, num_workers=num_workers)

    @cached_property
    def processor(self) -> Any:
        """The tokenizer, loaded at first use; assign one to use it instead."""
        if self.tokenizer is None:
            raise UsageError("data.tokenizer is not set; name a hub id or a folder")
        return load_tokenizer(
            self.tokenizer,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            chat_template=self.chat_template,
        )

    def load_rows(self, split: Split) -> Iterable[Mapping[str, Any]]:
        """Return the rows of a split; override it to bring rows from anywhere.

        Args:
            split: "train", "validation" or "test".

        Returns:
            Rows of any shape that `orpo_lightning.data.records` knows; nothing where there is no such split.
        """
        source = getattr(self, split)
        return read_rows(source) if isinstance(source, str) else ()

    def prepare_data(self) -> None:
        """Tokenise into the cache, in one process of each machine."""
        stage = None if self.trainer is None else self.trainer.state.fn
        for split in _SPLITS_OF.get(stage, ()):
            self._table("train" if split == "validation" and isinstance(self.validation, float) else split)

    def setup(self, stage: str | None = None) -> None:
        """Open the tokenised pairs of a stage; make them first where nobody has."""
        splits = _SPLITS_OF.get(stage, ())
        if "train" in splits:
            self.train_dataset = self._sides[0]
        held_out = self._held_out() if "validation" in splits else None
        if held_out is not None:
            self.validation_dataset = held_out.select(sample(len(held_out), self.validation_size, self.seed))
        if "test" in splits:
            self.test_dataset = self._table("test")

    def train_dataloader(self) -> Loader:
        """Return this rank's micro-batches, from where a loaded checkpoint stopped."""
        if self.train_dataset is None:
            raise UsageError("data.train is not set; name a file or a hub id")
        self._require_own_sampler()
        plan = PlannedSampler(self.train_dataset.lengths, **self._plan(), rank=self._rank())
        if self._position is not None:
            refuse_other_run(self._position, self._whereabouts())
            plan.resume_at(self._position["epoch"], self._position["seen"])
        self._loader = self._loader_of(self.train_dataset, plan)
        return self._loader

    def val_dataloader(self) -> Loader | list[Any]:
        """Return this rank's batches of validation, or nothing where there is no validation data."""
        if self.validation_dataset is not None:
            return self._sorted_loader(self.validation_dataset)
        if self.trainer is not None and self.trainer.state.fn == "validate":
            raise UsageError("data.validation is not set; name a file or a hub id")
        return []

    def test_dataloader(self) -> Loader:
        """Return this rank's batches of the test."""
        if self.test_dataset is None:
            raise UsageError("data.test is not set; name a file or a hub id")
        return self._sorted_loader(self.test_dataset)

    def report(self) -> dict[str, SplitReport]:
        """Return what each split that is set up holds, and what was left out."""
        tables = {
            "train": self.train_dataset,
            "validation": self.validation_dataset,
            "test": self.test_dataset,
        }
        opened = ((name, table) for name, table in tables.items() if table is not None)
        return {name: make_report(table, self.processor) for name, table in opened}

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands in the data, and in which data."""
        if self._loader is None:
            return {}
        plan, seen = self._loader.plan, self._loader.seen
        assert isinstance(plan, PlannedSampler)
        limit = len(plan) if self.trainer is None else min(len(plan), self.trainer.num_training_batches)
        is_over = seen >= limit
        return {
            "epoch": plan.epoch + 1 if is_over else plan.epoch,
            "seen": 0 if is_over else seen,
            **self._whereabouts(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training go on from there.

        Raises:
            CheckpointError: the checkpoint is of other data, or its place cannot be found in this run.
        """
        if self.train_dataset is not None:
            refuse_other_run(state_dict, self._whereabouts())
        self._position = state_dict

    def teardown(self, stage: str | None = None) -> None:
        """Forget the checkpoint's position: another `fit` begins at the beginning."""
        self._position = None

    @cached_property
    def _sides(self) -> tuple[PairTable | None, PairTable | None]:
        """Return what of `train` is trained on and what is held out."""
        table = self._table("train")
        if table is None or not isinstance(self.validation, float):
            return table, None
        prompts = [table.prompt_key(index) for index in range(len(table))]
        if len(set(prompts)) < 2:
            raise DataError(f"{table.info.source}: all pairs have the same prompt, so none can be held out")
        kept, held_out = split_by_prompt(prompts, self.validation, self.seed)
        return table.select(kept), table.select(held_out)

    def _held_out(self) -> PairTable | None:
        return self._sides[1] if isinstance(self.validation, float) else self._table("validation")

    def _table(self, split: Split) -> PairTable | None:
        """Return all usable pairs of a split's source; None where there is no such split."""
        if split not in self._tables:
            rows = self._rows(split)
            limits = {key: getattr(self, key) for key in ("max_length", "max_prompt_length", "overlong")}
            self._tables[split] = rows and open_table(rows, self.processor, limits, self.cache_dir)
        return self._tables[split]

    def _rows(self, split: Split) -> Rows | None:
        if type(self).load_rows is not PreferenceDataModule.load_rows:
            rows = list(self.load_rows(split))
            name = f"{type(self).__name__}.load_rows({split!r})"
            return Rows(name, rows_fingerprint(rows), lambda: rows) if rows else None
        source = getattr(self, split)
        if not isinstance(source, str):
            return None
        return Rows(source, source_fingerprint(source), lambda: self.load_rows(split))

    def _loader_of(self, pairs: PairTable, plan: PlannedSampler | SortedSampler) -> Loader:
        on_gpu = torch.cuda.is_available()
        return Loader(pairs, plan, self._collate(), num_workers=self.num_workers, pin_memory=on_gpu)

    def _collate(self) -> Collate:
        """Return what lays pairs out, as the module that will score them wants it."""
        module = getattr(self.trainer, "lightning_module", None)
        choose = getattr(module, "choose_layout", None)
        if choose is None and self.layout == "shared_prefix":
            raise UsageError("data.layout shared_prefix needs a module with choose_layout; use padded")
        if choose is not None and choose(self.layout).value == "shared_prefix":
            return lay_flat
        known = (self.processor.pad_token_id, self.processor.eos_token_id, 0)
        return partial(pad_pairs, pad_id=next(token for token in known if token is not None))

    def _sorted_loader(self, pairs: PairTable) -> Loader:
        self._require_own_sampler()
        size, world_size = self.validation_batch_size, self._plan()["world_size"]
        plan = SortedSampler(pairs.lengths, batch_size=size, world_size=world_size, rank=self._rank())
        return self._loader_of(pairs, plan)

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _plan(self) -> dict[str, Any]:
        """Return what decides which micro-batch comes when, but for rank and epoch."""
        trainer = self.trainer
        # Overfitting on the first batches needs the same ones in every epoch.
        overfits = bool(getattr(trainer, "overfit_batches", 0))
        return {
            "batch_size": self.batch_size,
            "accumulate": 1 if trainer is None else trainer.accumulate_grad_batches,
            "world_size": 1 if trainer is None else trainer.world_size,
            "shuffle": self.shuffle and not overfits,
            "seed": self.seed,
        }

    def _whereabouts(self) -> dict[str, Any]:
        """Return what must be the same where a run goes on: the data and the plan."""
        assert self.train_dataset is not None
        data = {"source": self.train_dataset.info.source, "fingerprint": self.train_dataset.fingerprint()}
        return data | self._plan()

    def _require_own_sampler(self) -> None:
        """Stop before Lightning replaces the plan, after which ranks would no longer agree on their steps."""
        if self.trainer is None or self.trainer.world_size == 1:
            return
        if self.trainer._accelerator_connector.use_distributed_sampler:
            raise UsageError(
                "trainer.use_distributed_sampler must be false: this data module shares out the pairs itself"
            )
