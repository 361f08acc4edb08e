"""Answers of the models that are compared: greedy, many at a time, kept so that a kill loses one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpo_lightning.judging.kept import Kept, key_of
from orpo_lightning.judging.pairs import Question
from orpo_lightning.judging.progress import Progress
from orpo_lightning.judging.scoring import Sides
from orpo_lightning.using.generation import Answerer, Sampling
from orpo_lightning.using.trained import Trained, weights_mark

_BATCH = 16


def write_answers(
    model: Any,
    tokenizer: Any,
    trained: Trained,
    sides: Sides,
    questions: Sequence[Question],
    sampling: Sampling,
    kept: Kept,
) -> dict[str, list[str]]:
    """Return each side's answer to each question; those that were kept are not written again.

    Args:
        model: in eval mode.
        tokenizer: its own.
        trained: where its weights are.
        sides: as for `score_pairs`.
        questions: what is answered.
        sampling: how.
        kept: the file of answers.

    Raises:
        UsageError: a prompt leaves no room for an answer.
    """
    answerer, found = Answerer(model, tokenizer), {}
    mark = [*weights_mark(trained), str(model.dtype), sorted(answerer.stop_ids)]
    for name, side in sides.items():
        keys = [key_of(name == "base", mark, question.ids, sampling) for question in questions]
        missing = [place for place, key in enumerate(keys) if kept.get(key) is None]
        prompts = [questions[place].ids for place in missing]
        progress = Progress(f"answers of {name} written", len(missing))
        for batch in answerer.batches(prompts, sampling, _BATCH):
            with side():
                answers = answerer.answers([prompts[i] for i in batch], sampling, batch_size=_BATCH)
            for index, answer in zip(batch, answers, strict=True):
                place = missing[index]
                kept.add(keys[place], of=name, prompt=questions[place].turns, answer=answer.text)
            progress.add(len(batch))
        found[name] = [kept.get(key)["answer"] for key in keys]  # type: ignore[index]
    return found
