"""Answers of a model to prompts: many at a time, or one as it is written.

A row's answer does not depend on the rows beside it: padding is on the left and masked, and a row that is
sampled draws from a random state of its own. (In half precision the sums of a batch are rounded otherwise
than those of a single row, so that a near tie may fall the other way.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from orpo_lightning.data.prompts import PromptEncoder
from orpo_lightning.errors import UsageError
from orpo_lightning.modeling import causal_model
from orpo_lightning.using.model_limits import context_length_of, named_stop_ids

_HELD_BACK = "\ufffd"
"""What an unfinished character is decoded to."""


class Sampling(NamedTuple):
    """How an answer is drawn, and how long it may be."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this share together."""
    seed: int = 0

    def check(self) -> Sampling:
        """Return itself.

        Raises:
            UsageError: a value means nothing.
        """
        if self.max_new_tokens < 1:
            raise UsageError(f"--max_new_tokens: expected 1 or more, found {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature: expected 0 (greedy) or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top_p: expected a share above 0 up to 1, found {self.top_p}")
        return self

    def describe(self) -> str:
        """Return it in words."""
        if self.temperature == 0:
            return f"the likeliest token each time, at most {self.max_new_tokens}"
        share = "" if self.top_p == 1 else f", top_p {self.top_p:g}"
        kind = f"temperature {self.temperature:g}{share}, seed {self.seed}"
        return f"{kind}, at most {self.max_new_tokens} tokens"


class Answer(NamedTuple):
    """What a model wrote."""

    text: str
    """Without its stop token and other control tokens."""
    tokens: int
    """How many, with the stop token."""
    ended: Literal["stop", "length", "interrupted"]


class Answerer:
    """Lets a model write answers; its mode and its generation settings are as before afterwards.

    Args:
        model: a causal language model, with or without an adapter.
        tokenizer: its own.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Find the tokens that end an answer."""
        self.prompts = PromptEncoder(tokenizer)
        """Makes token ids of prompts."""
        causal = causal_model(model)
        self.stop_ids = named_stop_ids(tokenizer, causal.generation_config, causal.config, self.prompts)
        """Every token that ends an answer: the model's, the tokenizer's, the chat template's."""
        self.context = context_length_of(causal.config)
        """Tokens of prompt and answer together that the model was made for; None where nothing says so."""
        self._model, self._tokenizer = model, tokenizer

    def room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Return how many tokens an answer may have; 0 or less where the prompt fills the context."""
        longest = sampling.max_new_tokens
        return longest if self.context is None else min(longest, self.context - len(prompt))

    def batches(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_size: int
    ) -> list[list[int]]:
        """Return the places of prompts to be answered together: of like length, the longest first.

        Those of a batch have the same room, so that each answer is as long as it would be by itself.
        """
        rooms = [self.room(prompt, sampling) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (rooms[i], -len(prompts[i])))
        found: list[list[int]] = []
        for index in order:
            if found and len(found[-1]) < batch_size and rooms[found[-1][0]] == rooms[index]:
                found[-1].append(index)
            else:
                found.append([index])
        return found

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keys: Sequence[Any] | None = None,
        batch_size: int = 16,
    ) -> list[Answer]:
        """Return the answer to each prompt, in order.

        Args:
            prompts: token ids of each, as `self.prompts.encode` makes them.
            sampling: how they are drawn.
            keys: what each prompt's random numbers come from besides the seed; its place where left out.
            batch_size: how many at a time; with `max_new_tokens` and the lengths it decides the memory.

        Raises:
            UsageError: a prompt leaves no room for an answer.
        """
        named = list(range(len(prompts))) if keys is None else list(keys)
        found: dict[int, Answer] = {}
        for batch in self.batches(prompts, sampling, batch_size):
            written = self._write([prompts[i] for i in batch], sampling, [named[i] for i in batch])
            found.update(zip(batch, map(self._answer, written), strict=True))
        return [found[index] for index in range(len(prompts))]

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, write: Callable[[str], None], key: Any = 0
    ) -> Answer:
        """Return the answer to one prompt, whose text is handed to `write` as it comes.

        Ctrl-C (KeyboardInterrupt) ends the answer where it is.

        Raises:
            UsageError: the prompt leaves no room for an answer.
        """
        pieces = _Pieces(self._decode, self.stop_ids, write)
        try:
            ids = self._write([prompt], sampling, [key], pieces)[0]
        except KeyboardInterrupt:
            pieces.end()
            return Answer(pieces.text, len(pieces.ids), "interrupted")
        pieces.end()
        return self._answer(ids)

    def _answer(self, ids: list[int]) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), None)
        if end is None:
            return Answer(self._decode(ids), len(ids), "length")
        return Answer(self._decode(ids[:end]), end + 1, "stop")

    def _decode(self, ids: Sequence[int]) -> str:
        # Without its old habit of moving spaces: "a ." is not "a.".
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @torch.no_grad()
    def _write(
        self,
        prompts: list[Sequence[int]],
        sampling: Sampling,
        keys: list[Any],
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        """Return what is written behind each prompt, with whatever follows a stop token."""
        width, room = max(map(len, prompts)), min(self.room(prompt, sampling) for prompt in prompts)
        if room < 1:
            raise UsageError(
                f"a prompt of {width:,} tokens leaves no room for an answer: the model's context is "
                f"{self.context:,} tokens"
            )
        pads = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
        pad = next((token for token in pads if token is not None), 0)
        draws = [_Draw(sampling, keys)] if sampling.temperature > 0 else []
        return continued(self._model, prompts, self.stop_ids, room, pad=pad, draws=draws, streamer=streamer)


def continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Iterable[int],
    room: int,
    *,
    pad: int = 0,
    draws: Sequence[LogitsProcessor] = (),
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Return what a model writes behind each prompt, with whatever follows a stop token.

    Args:
        model: a causal language model, with or without an adapter; its mode and settings stay what they are.
        prompts: ids, at least one each; all are gone on with at a time.
        stop_ids: tokens that end an answer.
        room: most tokens of an answer.
        pad: any token of the model: the mask tells what is padding.
        draws: what leaves of each row's tokens the one to take; without, it is the likeliest.
        streamer: is handed the tokens of a single prompt as they come.
    """
    causal, width = causal_model(model), max(map(len, prompts))
    lacks = [width - len(prompt) for prompt in prompts]
    rows = [[pad] * lack + list(prompt) for lack, prompt in zip(lacks, prompts, strict=True)]
    mask = [[0] * lack + [1] * (width - lack) for lack in lacks]
    settings = GenerationConfig(
        max_new_tokens=room,
        do_sample=False,  # a drawn token is the only one that a `_Draw` leaves
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    device = causal.get_input_embeddings().weight.device
    with _by(causal, settings):
        output = causal.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=settings,
            logits_processor=LogitsProcessorList(draws),
            streamer=streamer,
        )
    return [row[width:] for row in output.tolist()]


@contextmanager
def _by(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Let a model generate by these settings alone, in eval mode, and be as it was afterwards.

    What its own settings hold besides (a temperature, a penalty) would be filled in where ours say nothing.
    A router's loss is nobody's business here, and in padded rows transformers fails at it.
    """
    before, modes = model.generation_config, [(module, module.training) for module in model.modules()]
    routed = getattr(model.config, "output_router_logits", None)
    model.generation_config = settings
    model.eval()
    if routed:
        model.config.output_router_logits = False
    try:
        yield
    finally:
        model.generation_config = before
        if routed:
            model.config.output_router_logits = routed
        for module, mode in modes:
            module.training = mode


class _Draw(LogitsProcessor):
    """Leaves of each row's tokens one that was drawn, with random numbers of that row alone.

    They come from the standard library: the same on every device, and whoever else is in the batch.
    """

    def __init__(self, sampling: Sampling, keys: list[Any]) -> None:
        self._sampling = sampling
        self._states = [random.Random(f"{sampling.seed} {key}") for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (n, V) that are 0 for the drawn token and -inf for all others."""
        shares, order = (scores.float() / self._sampling.temperature).softmax(-1).sort(-1, descending=True)
        below = shares.cumsum(-1) - shares
        kept = below < self._sampling.top_p  # the likeliest always
        drawn = torch.tensor([state.random() for state in self._states], dtype=shares.dtype)
        drawn = drawn.to(scores.device) * (shares * kept).sum(-1)
        place = ((below <= drawn[:, None]) & kept).sum(-1) - 1
        token = order.gather(-1, place.clamp_min(0)[:, None])
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)


class _Pieces(BaseStreamer):
    """Hands on the text of one answer as its tokens come."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop_ids: set[int], write: Callable[[str], None]
    ) -> None:
        self.ids: list[int] = []
        self.text = ""
        """What was handed on."""
        self._decode, self._stop_ids, self._write = decode, stop_ids, write
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take the prompt, once, or the tokens of a step."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.reshape(-1).tolist()
        if self.ids[-1] not in self._stop_ids:
            self._hand_on(whole=False)

    def end(self) -> None:
        """Hand on what was held back."""
        self._hand_on(whole=True)

    def _hand_on(self, whole: bool) -> None:
        ids = self.ids
        end = next((place for place, token in enumerate(ids) if token in self._stop_ids), len(ids))
        text = self._decode(ids[:end])
        if not whole:
            text = text.rstrip(_HELD_BACK)
        if len(text) > len(self.text):
            piece, self.text = text[len(self.text) :], text
            self._write(piece)
