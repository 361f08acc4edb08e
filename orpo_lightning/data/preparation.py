"""From sources to the tables of a run: opened, checked, cleaned, split and sampled; no Trainer is needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orpo_lightning.data.cache import left_out_rows, open_stored
from orpo_lightning.data.checks import refuse_bad_data
from orpo_lightning.data.curation import Removed, counted, curate, without_pairs_of
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.parts import Part
from orpo_lightning.data.records import PreferenceRecord, Records
from orpo_lightning.data.report import SplitReport, make_report
from orpo_lightning.data.splits import split_by_prompt
from orpo_lightning.data.table import Dropped, PairTable
from orpo_lightning.data.validation import ValidationPairs
from orpo_lightning.errors import DataError, UserError

log = logging.getLogger(__name__)
Split = Literal["train", "validation", "test"]


class Cleaning(NamedTuple):
    """What is left out, and when that is too much; as the arguments of `PreferenceDataModule`."""

    on_error: str
    max_dropped: float
    duplicates: str
    contradictions: str
    repeated_prompt: str


class Preparation:
    """Opens each split once, when it is first asked for.

    Args:
        parts: returns the sources of a split.
        tokenizer: returns the tokenizer.
        cache_dir: where tokenised pairs are kept.
        cleaning: what is left out.
        held_out: share of the training prompts to validate on; None where validation has sources of its own.
        validation_size: how many pairs to validate on; None takes all.
        seed: decides what is held out and sampled.
    """

    def __init__(
        self,
        parts: Callable[[Split], Sequence[Part]],
        tokenizer: Callable[[], Any],
        cache_dir: Path,
        cleaning: Cleaning,
        *,
        held_out: float | None,
        validation_size: int | None,
        seed: int,
    ) -> None:
        """Remember the arguments; nothing is read yet."""
        self._parts, self._tokenizer, self._cache_dir = parts, tokenizer, cache_dir
        self._cleaning, self._held_out = cleaning, held_out
        self._validation_size, self._seed = validation_size, seed
        self._tables: dict[Split, PairTable | None] = {}
        self._weights: dict[Split, list[float | None]] = {}
        self._removed: dict[Split, Removed] = {}
        self._uncompared: set[Split] = set()

    def read(self, split: Split) -> None:
        """Tokenise the sources of a split into the cache, and those of train, which it is compared with."""
        if split == "train" or (split == "validation" and self._held_out):
            self.usable("train")
        elif self.usable(split) is not None:
            self._trained_on(split)

    @property
    def train(self) -> PairTable | None:
        """The pairs to train on; None where there are none."""
        return self._sides[0]

    def mixture(self) -> list[tuple[int, float]] | None:
        """Return (pairs, weight) of each training source where they are mixed by weight, else None."""
        if self.train is None or None in self._weights["train"]:
            return None
        weights = [weight for weight in self._weights["train"] if weight is not None]
        used = [(count, weight) for count, weight in zip(self.train.counts(), weights, strict=True) if count]
        return used if len(used) > 1 else None

    def validation(self) -> ValidationPairs | None:
        """Return the pairs to validate on and the sample of them; None where there are none.

        Pairs that are trained on are left out, also where nothing is trained: `validate` has the pairs and
        the sample of `fit`.
        """
        table = self.held_out if self._held_out else self._untrained("validation")
        return None if table is None else ValidationPairs(table, self._validation_size, self._seed)

    def test(self) -> PairTable | None:
        """Return the pairs to test on, without those that are trained on; None where there are none."""
        return self._untrained("test")

    @property
    def held_out(self) -> PairTable | None:
        """The share of the training pairs to validate on; None where validation has sources of its own."""
        return self._sides[1]

    def weights(self, split: Split) -> list[float | None]:
        """Return the mixture's weight of each source of a split that is open."""
        return self._weights[split]

    def removed(self, split: Split) -> dict[str, Dropped]:
        """Return what was taken out of an open split because of other pairs, by reason."""
        return counted(self._removed[split])

    def usable(self, split: Split) -> PairTable | None:
        """Return all usable pairs of a split's sources; None where there is no such split."""
        if split not in self._tables:
            parts = self._parts(split)
            self._weights[split] = [part.weight for part in parts]
            self._removed[split] = {}
            self._tables[split] = self._open(split, parts) if parts else None
        return self._tables[split]

    def report(self, split: Split, table: PairTable) -> SplitReport:
        """Return what a split that is open holds, and what was left out of its sources."""
        source: Split = "train" if split == "validation" and self._held_out else split
        return make_report(table, self._tokenizer(), self.removed(source), self._weights[source])

    def records(self, split: Split) -> Iterator[PreferenceRecord]:
        """Yield the records of a split's sources as they were read, those too that were left out later."""
        named: Split = "train" if split == "validation" and self._held_out else split
        for rows, reading, _ in self._parts(named):
            read = Records(rows.read(), rows.source, shape=reading.shape, columns=reading.columns)
            yield from (record for record in read if isinstance(record, PreferenceRecord))

    def left_out(self) -> Iterator[dict[str, Any]]:
        """Yield split, where, reason, detail, row and rows of all that was left out of open splits."""
        for split, table in self._tables.items():
            for source in table.sources if table is not None else ():
                yield from ({"split": split, **values} for values in left_out_rows(source.folder))
            for reason, removed in self._removed[split].items():
                for where, count in removed.places_and_rows():
                    detail = f"{where}: {reason}"
                    yield {"split": split, **LeftOut(where, reason, detail, None, count)._asdict()}

    def write_left_out(self, file: Path) -> int:
        """Write all that was left out to a file of JSON lines; return how many rows that are.

        Args:
            file: replaced; not written where nothing was left out.
        """
        rows = 0
        with ExitStack() as stack:
            writer = None
            for values in self.left_out():
                writer = writer or stack.enter_context(file.open("w", encoding="utf-8"))
                writer.write(json.dumps(values) + "\n")
                rows += values["rows"]
        return rows

    @cached_property
    def _sides(self) -> tuple[PairTable | None, PairTable | None]:
        """What of `train` is trained on and what is held out."""
        table = self.usable("train")
        if table is None or not self._held_out:
            return table, None
        prompts = table.keys[:, 0]
        if len(prompts) < 2 or (prompts == prompts[0]).all():
            raise DataError(f"{table.name}: all pairs have the same prompt, so none can be held out")
        kept, held_out = split_by_prompt(prompts, self._held_out, self._seed)
        return table.select(kept), table.select(held_out)

    def _untrained(self, split: Split) -> PairTable | None:
        """Return the usable pairs of a split that are not trained on; None where there is no such split."""
        table = self.usable(split)
        train = None if table is None else self._trained_on(split)
        if table is None or train is None:
            return table
        table, removed = without_pairs_of(table, train)
        self._removed[split] = self._removed[split] | removed
        if not len(table):
            share = ", or a share of train to hold out, such as data.validation 0.1"
            raise DataError(
                f"{table.name}: every {split} pair is also trained on; name other pairs"
                f"{share if split == 'validation' else ''}"
            )
        return table

    def _trained_on(self, split: Split) -> PairTable | None:
        """Return the pairs to train on, which another split is compared with; None where they are gone.

        Nobody asked for them, so a run whose training pairs are elsewhere by now can still be judged.
        """
        if split in self._uncompared:  # they are not looked for again: the hub may take its time to fail
            return None
        try:
            return self.train
        except UserError as error:
            log.warning("pairs of data.train are not left out of %s: %s", split, error)
            self._uncompared.add(split)
            return None

    def _open(self, split: Split, parts: Sequence[Part]) -> PairTable:
        stored = []
        for rows, reading, _ in parts:
            is_strict = self._cleaning.on_error == "stop"
            one = open_stored(rows, self._tokenizer(), reading, self._cache_dir, stop_at_broken=is_strict)
            refuse_bad_data(one, self._cleaning.max_dropped, self._cleaning.repeated_prompt)
            stored.append(one)
        table = PairTable.of(stored)
        table, self._removed[split] = curate(table, self._cleaning.duplicates, self._cleaning.contradictions)
        if not len(table):
            raise DataError(f"{table.name}: every pair contradicts another one, none is left")
        return table
