"""Which pairs a model is judged on: a run's held-out ones, or others prepared as training would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.data.messages import Message
from orpo_lightning.data.preparation import Split
from orpo_lightning.data.splits import sample
from orpo_lightning.data.table import PairTable
from orpo_lightning.errors import UsageError
from orpo_lightning.run_settings import settings_of
from orpo_lightning.using.trained import Trained, tokenizer_of


class HeldOut(NamedTuple):
    """Pairs to judge on, and the data module that prepared them."""

    data: PreferenceDataModule
    pairs: PairTable
    split: Split
    origin: str
    """Which pairs these are, in words."""


class Question(NamedTuple):
    """A prompt that is to be answered."""

    key: int
    """Hash of its token ids."""
    ids: list[int]
    turns: str | list[Message]
    """As its row has it, for a judge to read."""


def held_out(trained: Trained, sources: Sequence[str] | None, max_length: int | None) -> HeldOut:
    """Return the pairs to judge a model on, tokenised.

    Args:
        trained: the model; of a run its `data.test` is taken, else its `data.validation`, all of it.
        sources: other pairs instead, read by the run's rules, or by the tokenizer's own chat template.
        max_length: instead of the run's, or of 1024.

    Raises:
        UsageError: no pairs are named.
        DataError: they cannot be used.
    """
    settings = _settings(trained, sources)
    if max_length is not None:
        settings["max_length"] = max_length
    if sources:
        settings |= {"test": list(sources), "train": None, "validation": None}
    data = PreferenceDataModule(**settings)
    # Not by the name that the run has for it, which is its base's: that may be elsewhere by now.
    data.processor = tokenizer_of(trained)
    if data.test is not None:
        data.setup("test")
        assert data.test_dataset is not None
        origin = "--pairs" if sources else f"data.test of {trained.run}"
        return HeldOut(data, data.test_dataset, "test", origin)
    data.setup("validate")
    assert data.validation_pairs is not None
    share = f"{data.validation:.3g} of the prompts" if isinstance(data.validation, float) else "all of it"
    return HeldOut(
        data, data.validation_pairs.whole, "validation", f"data.validation of {trained.run}, {share}"
    )


def _settings(trained: Trained, sources: Sequence[str] | None) -> dict[str, Any]:
    """Return the arguments of the data module."""
    if trained.run is None:
        if not sources:
            raise UsageError(
                f"{trained.name} belongs to no run that names held-out pairs: name some, --pairs"
            )
        return {}
    settings = settings_of(trained.config, "data")
    kind = str((trained.config.get("data") or {}).get("class_path") or PreferenceDataModule.__name__)
    if kind.rpartition(".")[2] != PreferenceDataModule.__name__:
        raise UsageError(
            f"{trained.name}: its pairs come from {kind}, which is not run here: name files, --pairs"
        )
    if not sources and not settings.get("test") and not settings.get("validation"):
        raise UsageError(
            f"{trained.name}: its config.yaml names neither data.test nor validation: name pairs, --pairs"
        )
    return {**settings, "validation_size": None, "validation_budget": None}


def questions(held: HeldOut, count: int) -> list[Question]:
    """Return so many of the pairs' different prompts, drawn with the data's seed, as their rows have them."""
    first: dict[int, int] = {}
    for index, key in enumerate(held.pairs.keys[:, 0].tolist()):
        first.setdefault(key, index)
    keys = list(first)
    chosen = [keys[number] for number in sample(len(keys), count, held.data.seed).tolist()]
    places = held.pairs.places()
    wanted = {places[first[key]] for key in chosen}
    turns = dict(_turns(held, wanted))
    return [Question(key, held.pairs[first[key]].prompt, turns[places[first[key]]]) for key in chosen]


def _turns(held: HeldOut, places: set[str]) -> Iterator[tuple[str, str | list[Message]]]:
    """Yield the prompts of the rows at some places, from the rows: a table has their tokens only."""
    for record in held.data.preparation.records(held.split):
        where = " ".join(record.where.splitlines())
        if where in places:
            yield where, record.prompt
