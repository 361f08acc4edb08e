"""One evaluation: models one after the other in memory, what they say of pairs and texts, the figures."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from orpo_lightning.errors import UsageError
from orpo_lightning.judging import calibration
from orpo_lightning.judging.answers import write_answers
from orpo_lightning.judging.buckets import buckets_of
from orpo_lightning.judging.canary import canary, text_losses
from orpo_lightning.judging.figures import Array, Scores, of_buckets, of_change, of_model
from orpo_lightning.judging.kept import Kept
from orpo_lightning.judging.pairs import HeldOut, Question
from orpo_lightning.judging.scoring import Sides, score_pairs, sides_of
from orpo_lightning.using.generation import Sampling
from orpo_lightning.using.trained import Trained, load

AGAINST = "against"
"""The name of the model to compare with; the others are base and adapter, or model."""


class Asked(NamedTuple):
    """What is asked of every model."""

    held: HeldOut
    """The log-probabilities of these pairs."""
    questions: Sequence[Question] = ()
    """Answers to these."""
    sampling: Sampling = Sampling()
    """How they are written."""
    texts: Sequence[Sequence[int]] = ()
    """The loss of these, ids of each."""


class Said(NamedTuple):
    """What models said, each by its name."""

    scores: dict[str, Scores]
    answers: dict[str, list[str]]
    losses: dict[str, Array]
    rows: dict[str, str]
    """What was decided on the way, each with its reason."""


def ask(trained: Trained, asked: Asked, kept: Kept, *, accelerator: str, name: str | None = None) -> Said:
    """Load a model, ask it everything, and let go of it.

    Args:
        trained: the model.
        asked: what.
        kept: the file of answers.
        accelerator: where it is to run.
        name: what it is called; of a model with an adapter, None asks the base as well.

    Raises:
        UsageError: its tokens are not those of the pairs.
        SurroundingsError: it cannot be loaded.
    """
    model, tokenizer, rows = load(trained, accelerator=accelerator)
    _refuse_other_tokens(tokenizer, asked.held, trained)
    sides: Sides = {name: nullcontext} if name else sides_of(model, trained.adapter is not None)
    scores, layout = score_pairs(model, asked.held.data, asked.held.pairs, sides)
    losses = text_losses(model, asked.texts, sides) if asked.texts else {}
    answers: dict[str, list[str]] = {}
    if asked.questions:
        answers = write_answers(model, tokenizer, trained, sides, asked.questions, asked.sampling, kept)
    del model, sides
    _let_go()
    return Said(scores, answers, losses, rows | {"layout": f"{layout.value} ({layout.reason})"})


def together(one: Said, other: Said) -> Said:
    """Return what both said; of what was decided on the way, the first one's."""
    return Said(one.scores | other.scores, one.answers | other.answers, one.losses | other.losses, one.rows)


def _refuse_other_tokens(tokenizer: Any, held: HeldOut, trained: Trained) -> None:
    """Stop where a model does not read the pairs' tokens as their tokenizer wrote them."""
    if tokenizer.get_vocab() != held.data.processor.get_vocab():
        raise UsageError(
            f"{trained.name}: its tokenizer is not {held.data.processor.name_or_path}, which wrote the "
            "pairs' tokens: log-probabilities of other tokens cannot be compared; evaluate it by itself"
        )


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def figures(said: Said, asked: Asked) -> dict[str, Any]:
    """Return all figures but the judge's, as they stand in evaluation.json."""
    pairs, scores = asked.held.pairs, said.scores
    prompts, pair = pairs.keys[:, 0], pair_of(list(scores))
    calibrated = {
        name: calibration.calibration(calibration.predictions(one.log_odds_ratios, pairs.keys), prompts)
        for name, one in scores.items()
    }
    against = (AGAINST, "adapter") if {AGAINST, "adapter"} <= scores.keys() else None
    return {
        "pairs": len(pairs),
        "prompts": len(set(prompts.tolist())),
        "models": {name: of_model(one, prompts) for name, one in scores.items()},
        "change": _change(scores, pair, prompts),
        "against": _change(scores, against, prompts),
        "calibration": {"definition": calibration.DEFINITION, "models": calibrated},
        "buckets": of_buckets(buckets_of(pairs), scores, prompts, pair),
        "canary": canary(said.losses, asked.texts, pair) if said.losses else None,
    }


def pair_of(names: Sequence[str]) -> tuple[str, str] | None:
    """Return which two models are compared: base and adapter, else what was named to compare with."""
    if "base" in names:
        return "base", "adapter"
    return (AGAINST, "model") if AGAINST in names else None


def judged_pair(names: Sequence[str]) -> tuple[str, str] | None:
    """Return whose answers a judge compares: those of the model that was named for it, else the base's."""
    ours = "adapter" if "adapter" in names else "model"
    return (AGAINST, ours) if AGAINST in names else pair_of(names)


def _change(scores: dict[str, Scores], pair: tuple[str, str] | None, prompts: Array) -> dict[str, Any] | None:
    if pair is None:
        return None
    return {"from": pair[0], "to": pair[1], **of_change(scores[pair[0]], scores[pair[1]], prompts)}


def samples(said: Said, questions: Sequence[Question], count: int) -> list[dict[str, Any]]:
    """Return the first so many prompts that the models answer differently, with their answers."""
    found: list[dict[str, Any]] = []
    for place, question in enumerate(questions):
        texts = {name: answers[place] for name, answers in said.answers.items()}
        if len(texts) == 1 or len(set(texts.values())) > 1:
            found.append({"prompt": question.turns, **texts})
    return found[:count]
