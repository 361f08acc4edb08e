"""Pairs on which two models are compared: the held-out ones of a run, those of a file, or built-in ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data.arguments import share_or_source
from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.data.encoding import Encoder
from orpo_lightning.data.rendering import Texts
from orpo_lightning.data.token_rules import StopRule
from orpo_lightning.errors import UserError, first_line
from orpo_lightning.run_settings import settings_of
from orpo_lightning.using.trained import Trained

log = logging.getLogger(__name__)
_TEXTS = Path(__file__).with_name("proof_texts.json")


class ProofPairs(NamedTuple):
    """Tokenised pairs, and where they come from in words."""

    pairs: list[TokenizedPair]
    source: str


def proof_pairs(trained: Trained, tokenizer: Any, *, file: str | None, count: int) -> ProofPairs:
    """Return up to `count` pairs, spread over the file or the run's held-out pairs.

    Args:
        trained: what they are for.
        tokenizer: its own.
        file: a source of pairs, in any shape of row; None takes the run's test pairs, else its validation
            pairs.
        count: most pairs.

    Raises:
        DataError: the file cannot be read.
    """
    if file is not None:
        settings = {"test": file, **_limit(trained)}
        return ProofPairs(_spread(_dataset(settings, "test", tokenizer), count), file)
    settings = settings_of(trained.config, "data")
    why = "no run is at hand; --pairs names others"
    if settings:
        split = "test" if settings.get("test") else "validation"
        try:
            found = _spread(_dataset(settings, split, tokenizer), count)
            return ProofPairs(found, f"{split} pairs of the run")
        except (UserError, TypeError, OSError) as error:  # data that is gone, a data module of another class
            why = f"the run's pairs cannot be read: {first_line(error)}"
    return ProofPairs(_built_in(tokenizer), f"built-in texts ({why})")


def _limit(trained: Trained) -> dict[str, Any]:
    settings = settings_of(trained.config, "data")
    return {key: settings[key] for key in settings.keys() & {"max_length"}}


def _dataset(settings: dict[str, Any], split: str, tokenizer: Any) -> Sequence[TokenizedPair]:
    whole = {**settings, "validation_size": None, "validation_budget": None}
    if split == "test" or not isinstance(share_or_source(settings.get("validation")), float):
        whole["train"] = None  # whether a pair was trained on does not matter to a comparison of two models
    data = PreferenceDataModule(**whole)
    data.processor = tokenizer  # not by the name that the run has for it: that may be elsewhere by now
    data.setup("test" if split == "test" else "validate")
    found: Any = data.test_dataset if split == "test" else data.validation_dataset
    return found


def _spread(pairs: Sequence[TokenizedPair], count: int) -> list[TokenizedPair]:
    size = len(pairs)
    return [pairs[place * size // min(count, size)] for place in range(min(count, size))]


def _built_in(tokenizer: Any) -> list[TokenizedPair]:
    texts = json.loads(_TEXTS.read_text(encoding="utf-8"))
    encoded = Encoder(tokenizer).encode(
        Texts(prompt, chosen, rejected, is_rendered=False) for prompt, chosen, rejected in texts
    )
    stop = StopRule(tokenizer)
    return [pair._replace(chosen=stop.end(pair.chosen), rejected=stop.end(pair.rejected)) for pair in encoded]
