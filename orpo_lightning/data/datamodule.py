"""Preference pairs for a Lightning Trainer: read, tokenised once, planned in whole optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule

from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.batching.sampler import Loader, PlannedSampler, SortedSampler
from orpo_lightning.data.cache import PairTable, cache_key, cached_table, default_cache_dir
from orpo_lightning.data.records import to_records
from orpo_lightning.data.report import SplitReport
from orpo_lightning.data.sources import read_rows, rows_fingerprint, source_fingerprint
from orpo_lightning.data.splits import sample, split_by_prompt
from orpo_lightning.data.tokenization import load_tokenizer, tokenize_records
from orpo_lightning.errors import CheckpointError, DataError, UsageError

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
        self.train, self.validation, self.test = train, _share_or_source(validation), test
        self.tokenizer, self.revision, self.trust_remote_code = tokenizer, revision, trust_remote_code
        self.chat_template = chat_template
        self.max_length, self.max_prompt_length, self.overlong = max_length, max_prompt_length, overlong
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
        self._refuse_impossible()

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
            self._table(self._origin(split))

    def setup(self, stage: str | None = None) -> None:
        """Open the tokenised pairs of a stage; make them first where nobody has."""
        splits = _SPLITS_OF.get(stage, ())
        if "train" in splits:
            self.train_dataset = self._train_pairs()
        if "validation" in splits:
            self.validation_dataset = self._validation_pairs()
        if "test" in splits:
            self.test_dataset = self._table("test")

    def train_dataloader(self) -> Loader:
        """Return this rank's micro-batches, from where a loaded checkpoint stopped."""
        if self.train_dataset is None:
            raise UsageError("data.train is not set; name a file or a hub id")
        self._require_own_sampler()
        if self._position is not None:
            self._refuse_other_run(self._position)
        # Overfitting on the first batches needs the same ones in every epoch.
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0
        plan = PlannedSampler(
            self.train_dataset.lengths,
            **self._step_shape(),
            rank=self._rank(),
            shuffle=self.shuffle and not overfits,
            seed=self.seed,
        )
        if self._position is not None:
            plan.resume_at(self._position["epoch"], self._position["seen"])
        self._loader = self._loader_of(self.train_dataset, plan)
        return self._loader

    def val_dataloader(self) -> Loader | list[Any]:
        """Return this rank's batches of validation, or nothing where there is no validation data."""
        if self.validation_dataset is None and self.trainer is not None and self.trainer.state.fn == "validate":
            raise UsageError("data.validation is not set; name a file or a hub id")
        return [] if self.validation_dataset is None else self._sorted_loader(self.validation_dataset)

    def test_dataloader(self) -> Loader:
        """Return this rank's batches of the test."""
        if self.test_dataset is None:
            raise UsageError("data.test is not set; name a file or a hub id")
        return self._sorted_loader(self.test_dataset)

    def report(self) -> dict[str, SplitReport]:
        """Return what each split that is set up holds and lacks."""
        open_splits = {
            "train": self.train_dataset,
            "validation": self.validation_dataset,
            "test": self.test_dataset,
        }
        return {
            split: self._report(split, table) for split, table in open_splits.items() if table is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands in the data, and in which data."""
        if self._loader is None or self.train_dataset is None:
            return {}
        plan, seen = self._loader.plan, self._loader.seen
        assert isinstance(plan, PlannedSampler)
        length = len(plan) if self.trainer is None else min(len(plan), self.trainer.num_training_batches)
        position = {"epoch": plan.epoch + 1, "seen": 0} if seen >= length else {"epoch": plan.epoch, "seen": seen}
        return {**position, "fingerprint": self.train_dataset.fingerprint(), **self._step_shape()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when training begins.

        Raises:
            CheckpointError: the checkpoint was made with other data, or its place cannot be found in this run.
        """
        if self.train_dataset is not None:
            self._refuse_other_run(state_dict)
        self._position = state_dict

    def teardown(self, stage: str | None = None) -> None:
        """Forget the checkpoint's position: another `fit` begins at the beginning."""
        self._position = None

    def _train_pairs(self) -> PairTable | None:
        table = self._table("train")
        return table if table is None or not self._shares() else table.select(self._sides(table)[0])

    def _validation_pairs(self) -> PairTable | None:
        table = self._table(self._origin("validation"))
        if table is None:
            return None
        held_out = table.select(self._sides(table)[1]) if self._shares() else table
        return held_out.select(sample(len(held_out), self.validation_size, self.seed))

    def _shares(self) -> bool:
        return isinstance(self.validation, float)

    def _origin(self, split: Split) -> Split:
        """Return the split whose rows a split is made of."""
        return "train" if split == "validation" and self._shares() else split

    def _sides(self, table: PairTable) -> tuple[torch.Tensor, torch.Tensor]:
        prompts = [table.prompt_key(index) for index in range(len(table))]
        if len(set(prompts)) < 2:
            raise DataError(f"{self.train}: has one prompt only; data.validation: {self.validation} needs two")
        assert isinstance(self.validation, float)
        return split_by_prompt(prompts, self.validation, self.seed)

    def _table(self, split: Split) -> PairTable | None:
        """Return all usable pairs of a source, from the cache where they are in it; None: there is no such split."""
        if split not in self._tables:
            self._tables[split] = self._open(split)
        return self._tables[split]

    def _open(self, split: Split) -> PairTable | None:
        source = getattr(self, split)
        if type(self).load_rows is not PreferenceDataModule.load_rows:
            rows = list(self.load_rows(split))
            if not rows:
                return None
            source, content = f"{type(self).__name__}.load_rows({split!r})", rows_fingerprint(rows)
        elif isinstance(source, str):
            rows, content = None, source_fingerprint(source)
        else:
            return None
        settings = {
            "max_length": self.max_length,
            "max_prompt_length": self.max_prompt_length,
            "overlong": self.overlong,
        }

        def make() -> TokenizedRecords:
            found = to_records(self.load_rows(split) if rows is None else rows, source)
            return tokenize_records(found, self.processor, **settings, name=split)

        table = cached_table(self.cache_dir, cache_key(content, self.processor, settings), make)
        if len(table) == 0:
            reasons = ", ".join(f"{dropped.pairs} {reason}" for reason, dropped in table.info.dropped.items())
            raise DataError(f"{source}: no pair is left to use: {reasons}")
        return table

    def _loader_of(self, pairs: PairTable, plan: PlannedSampler | SortedSampler) -> Loader:
        tokenizer = self.processor
        known = (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None)
        collate = partial(_collate, pad_id=next(known, 0))
        return Loader(pairs, plan, collate, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())

    def _sorted_loader(self, pairs: PairTable) -> Loader:
        self._require_own_sampler()
        plan = SortedSampler(
            pairs.lengths,
            batch_size=self.validation_batch_size,
            world_size=self._step_shape()["world_size"],
            rank=self._rank(),
        )
        return self._loader_of(pairs, plan)

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank
