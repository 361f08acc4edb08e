"""Preference pairs for a Lightning Trainer: read, tokenised once, planned in whole optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule

from orpo_lightning.batching.base import Layout
from orpo_lightning.batching.sampler import Collate, Loader, PlannedSampler
from orpo_lightning.batching.sorted_sampler import SortedSampler, plan_validation
from orpo_lightning.data.arguments import refuse_bad_arguments, share_or_source
from orpo_lightning.data.cache import Reading, default_cache_dir
from orpo_lightning.data.checks import other_run
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.loading import (
    choose_collate,
    rank_of,
    refuse_changing_accumulation,
    refuse_cut_step,
    refuse_late_validation,
    refuse_unknown_tokens,
    require_own_sampler,
    tokens_of,
    world_size_of,
)
from orpo_lightning.data.parts import Part, parse_sources, parts_of, rows_of_code
from orpo_lightning.data.preparation import Cleaning, Preparation, Split
from orpo_lightning.data.report import SplitReport
from orpo_lightning.data.sources import read_rows
from orpo_lightning.data.table import PairTable
from orpo_lightning.data.tokenizer import load_tokenizer
from orpo_lightning.data.validation import FinalValidation, ValidationPairs, parse_budget
from orpo_lightning.errors import DataError, UsageError
from orpo_lightning.run_settings import SPLIT, refuse, same_place
from orpo_lightning.token_budget import TokenBudget, choose_token_budget

_SPLITS_OF: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    None: ("train", "validation", "test"),
}
# One source is a text or a mapping, several are a list of them. The list stands first: else it becomes text.
Sources = list[str | dict[str, Any]] | dict[str, Any] | str


class PreferenceDataModule(LightningDataModule):
    """Preference pairs from files or the hub.

    A source is a file (.jsonl, .json, .parquet, .csv, .arrow, also compressed), a glob, a folder, or a hub id
    (owner/name[/config][:split][@revision]); or a mapping with path, config, split, revision, shape, columns
    and weight; or a list of these. docs/data.md shows the shapes that rows may have.

    Args:
        train: Pairs to train on: one source, or several, which are mixed.
        validation: Pairs to validate on, named like `train`; or a number between 0 and 1: that share of
            `train`'s prompts is held out, so that no prompt is on both sides. Pairs that are also in `train`
            are left out, here and of `test`.
        test: Pairs for the test subcommand, named like `train`.
        mix: How several training sources are mixed: "proportional" uses every pair once per epoch, "equal"
            gives each source the same share. Weights of the sources' own are used where they are set.
        shape: How rows are read; recognised from the columns where left out.
        columns: What the columns are called in the data, such as {chosen: better, rejected: worse}.
        tokenizer: Hub id or folder of the tokenizer; the base model's where left out.
        revision: Branch, tag or commit of the tokenizer on the hub.
        trust_remote_code: Run code that comes with the tokenizer.
        chat_template: Replaces the tokenizer's own: chatml, mistral, llama-2, llama-3, zephyr, gemma, plain,
            a template, or the path of a .jinja file.
        max_length: Most tokens of a prompt and one answer together.
        max_prompt_length: Most tokens of a prompt; without it only max_length counts.
        overlong: What happens to longer pairs: "drop" leaves them out and counts them, "truncate" cuts the
            prompt on the left to max_prompt_length and the answers on the right, "error" stops.
        min_margin: Leave out pairs whose scores differ by less; null takes no notice of scores.
        on_error: What happens at a row that cannot be read: "stop", or "skip" and count it.
        max_dropped: Stop if more of a source's rows than this share is broken or of no use (empty,
            identical); pairs beyond a limit above do not count.
        duplicates: "drop" keeps the first of exactly equal pairs, "keep" keeps all.
        contradictions: "keep" reports pairs that prefer the same two answers the other way round, "drop"
            leaves them out.
        repeated_prompt: "strip" takes a prompt off answers that begin with it; "keep" reports them.
        allow_empty_prompt: Keep pairs without a prompt.
        changed_data: What happens on resuming with other training data: "stop", or "accept" it.
        changed_steps: What happens on resuming with another batch_size, accumulate_grad_batches or number of
            devices: "stop", or "accept" where the checkpoint stands between two of the steps there are then.
        layout: How pairs are laid out for the model: "padded", a row for each sequence; "shared_prefix", each
            prompt computed once and nothing padded; "auto", the latter where the model gives equal numbers.
        batch_size: Pairs in one micro-batch on one device; an optimizer step has batch_size x
            trainer.accumulate_grad_batches x devices of them.
        tokens_per_batch: Most tokens of a micro-batch, padding included. A step keeps its pairs and is split
            into as few micro-batches as hold them, at most accumulate_grad_batches: batch_size 1 and
            accumulate_grad_batches 16 are steps of 16 pairs in one to 16 micro-batches. "auto" takes as many
            as the memory of the GPU holds; docs/choosing.md
        validation_batch_size: Pairs in one batch of validation and test. Where left out, batches are filled
            with four times tokens_per_batch, or with what twice batch_size of the longest pairs have.
        validation_size: How many pairs to validate on, drawn with the seed, each source and length with its
            share; null takes all of them.
        validation_budget: Share of the training time to spend on validation, such as 5%, instead of
            validation_size: how many pairs that is, is measured at the first validation and then kept.
        final_validation: "full" validates on all pairs once more when training ends, logged as val_full/.
        shuffle: Give every epoch an order of its own; false keeps the order of the file.
        seed: Decides order, mixture, held-out prompts and validation sample, together with nothing else.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        cache_dir: Where tokenised pairs are kept; orpo_lightning in the user's cache folder where left out.
    """

    def __init__(
        self,
        train: Sources | None = None,
        validation: Sources | float | None = None,
        test: Sources | None = None,
        mix: Literal["proportional", "equal"] = "proportional",
        shape: str | None = None,
        columns: dict[str, str] | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        overlong: Literal["drop", "truncate", "error"] = "drop",
        min_margin: float | None = None,
        on_error: Literal["stop", "skip"] = "stop",
        max_dropped: float = 0.05,
        duplicates: Literal["drop", "keep"] = "drop",
        contradictions: Literal["keep", "drop"] = "keep",
        repeated_prompt: Literal["keep", "strip"] = "keep",
        allow_empty_prompt: bool = False,
        changed_data: Literal["stop", "accept"] = "stop",
        changed_steps: Literal["stop", "accept"] = "stop",
        layout: Layout = "auto",
        batch_size: int = 2,
        tokens_per_batch: int | Literal["auto"] | None = None,
        validation_batch_size: int | None = None,
        validation_size: int | None = 256,
        validation_budget: str | float | None = None,
        final_validation: FinalValidation = "sample",
        shuffle: bool = True,
        seed: int = 42,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        """Remember the arguments; nothing is read before `prepare_data`."""
        super().__init__()
        self.save_hyperparameters(logger=False)
        refuse_bad_arguments(self.hparams)
        self.train, self.validation, self.test = train, share_or_source(validation), test
        self.mix, self.shape, self.columns = mix, shape, columns
        self.tokenizer, self.revision, self.trust_remote_code = tokenizer, revision, trust_remote_code
        self.chat_template = chat_template
        self.rules: dict[str, Any] = {
            "max_length": max_length,
            "max_prompt_length": max_prompt_length,
            "overlong": overlong,
            "min_margin": min_margin,
            "allow_empty_prompt": allow_empty_prompt,
            "repeated_prompt": repeated_prompt,
        }
        self.cleaning = Cleaning(on_error, max_dropped, duplicates, contradictions, repeated_prompt)
        self.accepted = {"changed_data": changed_data, "changed_steps": changed_steps}
        self.layout: Layout = layout
        self.batch_size = batch_size
        # auto: None until it is known.
        self.tokens_per_batch = None if tokens_per_batch == "auto" else tokens_per_batch
        self.token_budget: TokenBudget | None = None
        self.validation_batch_size = validation_batch_size
        self.validation_budget = parse_budget(validation_budget)
        self.validation_size = validation_size if self.validation_budget is None else None
        self.final_validation: FinalValidation = final_validation
        self.shuffle, self.seed, self.num_workers = shuffle, seed, num_workers
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.train_dataset: PairTable | None = None
        self.validation_pairs: ValidationPairs | None = None
        self.test_dataset: PairTable | None = None
        self._position: dict[str, Any] | None = None
        self._saved_budget: int | None = None
        self._loader: Loader | None = None
        self.validation_loader: Loader | None = None
        self.measured_size: int | None = None

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

    @cached_property
    def preparation(self) -> Preparation:
        """What opens, cleans and splits the sources."""
        return Preparation(
            self._parts,
            lambda: self.processor,
            self.cache_dir,
            self.cleaning,
            held_out=self.validation if isinstance(self.validation, float) else None,
            validation_size=self.validation_size,
            seed=self.seed,
        )

    def load_rows(self, split: Split) -> Iterable[Mapping[str, Any]]:
        """Return the rows of a split; override it to bring rows from anywhere, such as a `datasets.Dataset`.

        It is called twice: to tell whether the rows are in the cache already, and to read them where they are
        not. An iterator is read row by row, so rows need not fit into memory.

        Args:
            split: "train", "validation" or "test".

        Returns:
            Rows of any shape that docs/data.md names; nothing where there is no such split.

        Raises:
            DataError: a row cannot be read.
        """
        for source in parse_sources(self._named(split), f"data.{split}"):
            for row in read_rows(source):
                if isinstance(row, LeftOut):
                    raise DataError(row.detail)
                yield row

    def prepare_data(self) -> None:
        """Tokenise into the cache, in one process of each machine."""
        stage = None if self.trainer is None else self.trainer.state.fn
        for split in _SPLITS_OF.get(stage, ()):
            self.preparation.read(split)

    def setup(self, stage: str | None = None) -> None:
        """Open the tokenised pairs of a stage; make them first where nobody has."""
        splits = _SPLITS_OF.get(stage, ())
        if stage == "fit" and (self.validation_budget is not None or self.final_validation == "full"):
            from orpo_lightning.callbacks.validation_runs import require_validation_runs

            require_validation_runs(self.trainer)
        if "train" in splits:
            self.train_dataset = self.preparation.train
            pairs = len(self.train_dataset or ())
            has_budget = self.hparams["tokens_per_batch"] is not None
            refuse_changing_accumulation(self.trainer)
            for refuse_plan in (refuse_cut_step, refuse_late_validation):
                refuse_plan(self.trainer, pairs, self.split_of_steps(), has_budget=has_budget)
        if "validation" in splits:
            self.validation_pairs = self.preparation.validation()
            self.resize_validation(self.measured_size or self.validation_size)
        if "test" in splits:
            self.test_dataset = self.preparation.test()

    def train_dataloader(self) -> Loader:
        """Return this rank's micro-batches, from where a loaded checkpoint stopped."""
        if self.train_dataset is None:
            raise UsageError("data.train is not set; name a file or a hub id")
        require_own_sampler(self.trainer)
        self._fix_token_budget()
        plan = PlannedSampler(
            self.train_dataset.lengths,
            **self._plan(),
            rank=rank_of(self.trainer),
            tokens_per_batch=self.tokens_per_batch,
            layout_tokens=tokens_of(self._collate()),
        )
        if self._position is not None:
            refuse(self.other_run(self._position))
            place = same_place(self._position, self.split_of_steps())
            assert place is not None
            plan.resume_at(self._position["epoch"], place)
        self._loader = self._loader_of(self.train_dataset, plan)
        return self._loader

    def val_dataloader(self) -> Loader | list[Any]:
        """Return this rank's batches of validation, or nothing where there is no validation data."""
        if self.validation_pairs is not None:
            plan = self._sorted_plan(self.validation_pairs.whole)
            self.validation_pairs.follow_with(plan)
            self.validation_loader = self._loader_of(self.validation_pairs.whole, plan)
            return self.validation_loader
        if self.trainer is not None and self.trainer.state.fn == "validate":
            raise UsageError("data.validation is not set; name a file or a hub id")
        return []

    def test_dataloader(self) -> Loader:
        """Return this rank's batches of the test."""
        if self.test_dataset is None:
            raise UsageError("data.test is not set; name a file or a hub id")
        return self._loader_of(self.test_dataset, self._sorted_plan(self.test_dataset))

    @property
    def validation_dataset(self) -> PairTable | None:
        """The pairs that are validated on; None where there are none."""
        return None if self.validation_pairs is None else self.validation_pairs.sample

    def resize_validation(self, size: int | None, *, keep: bool = False) -> None:
        """Validate on so many pairs from the next validation on; None takes all.

        Args:
            size: a larger number contains the pairs of a smaller one.
            keep: whether a run that goes on from a checkpoint keeps to it.
        """
        if keep:
            self.measured_size = size
        if self.validation_pairs is not None:
            self.validation_pairs.resize(size)

    def report(self) -> dict[str, SplitReport]:
        """Return what each split that is set up holds, and what was left out."""
        tables: dict[Split, PairTable | None] = {
            "train": self.train_dataset,
            "validation": self.validation_dataset,
            "test": self.test_dataset,
        }
        opened = ((split, table) for split, table in tables.items() if table is not None)
        return {split: self.preparation.report(split, table) for split, table in opened}

    def places_of(self, batches: Iterable[int]) -> list[str]:
        """Return where the rows of these micro-batches of this rank and epoch stand, as `file:line`."""
        if self._loader is None or self.train_dataset is None:
            return []
        assert isinstance(self._loader.plan, PlannedSampler)
        pairs = self._loader.plan.pairs_of(batches)
        return self.train_dataset.select(torch.tensor(pairs, dtype=torch.long)).places()

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands in the data, and in which data."""
        if self._loader is None:
            return {}
        plan, seen = self._loader.plan, self._loader.seen
        assert isinstance(plan, PlannedSampler)
        limit = len(plan) if self.trainer is None else min(len(plan), self.trainer.num_training_batches)
        is_over = seen >= limit
        measured = {} if self.measured_size is None else {"validation_size": self.measured_size}
        if self.token_budget is not None:
            measured["tokens_per_batch"] = self.token_budget.tokens
        return measured | {
            "epoch": plan.epoch + 1 if is_over else plan.epoch,
            "seen": 0 if is_over else seen,
            **self._whereabouts(),
        }

    def other_run(self, saved: dict[str, Any]) -> list[str]:
        """Return in words why training cannot go on from a saved state; nothing where it can."""
        return [] if self.train_dataset is None else other_run(saved, self._whereabouts(), **self.accepted)

    def split_of_steps(self) -> dict[str, int]:
        """Return batch_size, accumulate and world_size: how the pairs of a step are split."""
        plan = self._plan()
        return {key: plan[key] for key in SPLIT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training go on from there.

        Raises:
            CheckpointError: the checkpoint is of other data, or its place cannot be found in this run.
        """
        refuse(self.other_run(state_dict))
        self._position = state_dict
        self._saved_budget = state_dict.get("tokens_per_batch")
        if self.validation_budget is not None and "validation_size" in state_dict:
            self.resize_validation(state_dict["validation_size"], keep=True)

    def teardown(self, stage: str | None = None) -> None:
        """Forget the checkpoint's position: another `fit` begins at the beginning."""
        self._position = None

    def _named(self, split: Split) -> Any:
        """Return the sources that a split's argument names; None where validation is a share of train."""
        named = getattr(self, split)
        return None if isinstance(named, float) else named

    def _parts(self, split: Split) -> list[Part]:
        """Return the sources of a split."""
        reading = Reading(self.shape, self.columns, self.rules)
        if type(self).load_rows is not PreferenceDataModule.load_rows:
            rows = rows_of_code(f"{type(self).__name__}.load_rows({split!r})", partial(self.load_rows, split))
            return [Part(rows, reading)] if rows else []
        sources = parse_sources(self._named(split), f"data.{split}")
        return parts_of(sources, reading, f"data.{split}", self.mix if split == "train" else None)

    def _loader_of(self, pairs: PairTable, plan: PlannedSampler | SortedSampler) -> Loader:
        on_gpu = torch.cuda.is_available()
        collate = self._collate()
        refuse_unknown_tokens(self.trainer, self.processor, pairs)
        return Loader(pairs, plan, collate, num_workers=self.num_workers, pin_memory=on_gpu)

    def _collate(self) -> Collate:
        return choose_collate(self.layout, self.trainer, self.processor)

    def _fix_token_budget(self) -> None:
        """Decide once how many tokens auto is; a run that goes on keeps to the checkpoint's."""
        if self.hparams["tokens_per_batch"] != "auto" or self.token_budget is not None:
            return
        assert self.train_dataset is not None
        self.token_budget = choose_token_budget(
            self.trainer,
            self.train_dataset.lengths,
            layout_tokens=tokens_of(self._collate()),
            batch_size=self.batch_size,
            saved=self._saved_budget,
        )
        self.tokens_per_batch = self.token_budget.tokens

    def _sorted_plan(self, pairs: PairTable) -> SortedSampler:
        require_own_sampler(self.trainer)
        if self.train_dataset is not None:
            self._fix_token_budget()
        return plan_validation(
            pairs.lengths,
            batch_size=self.validation_batch_size,
            training=(self.batch_size, self.tokens_per_batch),
            layout_tokens=tokens_of(self._collate()),
            ranks=(rank_of(self.trainer), world_size_of(self.trainer)),
        )

    def _plan(self) -> dict[str, Any]:
        """Return what decides which micro-batch comes when, but for rank and epoch."""
        trainer = self.trainer
        # Overfitting on the first batches needs the same ones in every epoch.
        overfits = bool(getattr(trainer, "overfit_batches", 0))
        return {
            "batch_size": self.batch_size,
            "accumulate": 1 if trainer is None else trainer.accumulate_grad_batches,
            "world_size": world_size_of(self.trainer),
            "shuffle": self.shuffle and not overfits,
            "seed": self.seed,
            "mixture": self.preparation.mixture(),
        }

    def _whereabouts(self) -> dict[str, Any]:
        """Return what must be the same where a run goes on: the data and the plan."""
        assert self.train_dataset is not None
        data = {"source": self.train_dataset.name, "fingerprint": self.train_dataset.fingerprint()}
        return data | self._plan()
