"""A reward model as a judge: a sequence classifier with one output, asked through its own chat template."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from orpo_lightning import hardware
from orpo_lightning.base_errors import explain_base, is_about_files
from orpo_lightning.data.tokenizer import load_tokenizer
from orpo_lightning.errors import SurroundingsError, UsageError, first_line
from orpo_lightning.hub_access import with_retries
from orpo_lightning.judging.verdicts import Comparison, Reply, Verdict
from orpo_lightning.using.model_files import mark_of

_KEY = "--judge"


class RewardModel:
    """Prefers the answer with the higher reward; each answer is scored by itself, so the order says nothing.

    Args:
        name: hub id or folder.
        accelerator: where it is to run.
        trust_remote_code: run Python code that comes with it.

    Raises:
        UsageError: it is no reward model, or has no chat template.
        SurroundingsError: it cannot be loaded.
    """

    def __init__(self, name: str, *, accelerator: str = "auto", trust_remote_code: bool = False) -> None:
        """Load it."""
        self.name = name
        device = hardware.detect_device(accelerator)
        where: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        self._model = _load(name, device, where)
        self.key = ["reward", name, mark_of(name, "config.json")]
        self._tokenizer = load_tokenizer(name, **where)
        if not self._tokenizer.chat_template:
            raise UsageError(f"{_KEY}: {name} has no chat template: how it reads a conversation is not known")
        self._rewards: dict[tuple[str, str], float] = {}

    def compare(self, asked: Sequence[Comparison], keep: Callable[[int, Reply], None]) -> None:
        """Compare each."""
        for place, (turns, *answers) in enumerate(asked):
            first, second = (self.reward(turns, answer) for answer in answers)
            verdict: Verdict = "tie" if first == second else "first" if first > second else "second"
            keep(place, Reply(verdict, f"{first:.6g} against {second:.6g}"))

    @torch.no_grad()
    def reward(self, turns: Any, answer: str) -> float:
        """Return the reward of an answer to a prompt, raw text being the user's turn.

        Raises:
            UsageError: the chat template cannot render them.
            SurroundingsError: the model gives no number.
        """
        prompt = [{"role": "user", "content": turns}] if isinstance(turns, str) else list(turns)
        known = (repr(prompt), answer)
        if known not in self._rewards:
            conversation = [*prompt, {"role": "assistant", "content": answer}]
            try:
                inputs = self._tokenizer.apply_chat_template(
                    conversation, tokenize=True, return_dict=True, return_tensors="pt"
                )
            except Exception as error:  # a template is a program: it raises what it likes
                raise UsageError(
                    f"{_KEY}: {self.name}: its chat template cannot render this: {first_line(error)}"
                ) from error
            # One at a time: padding could only change the number.
            logits = self._model(**inputs.to(self._model.device)).logits
            found = float(logits.reshape(()))
            if not math.isfinite(found):  # of a comparison with it every outcome is wrong: NaN is a tie
                raise SurroundingsError(
                    f"{_KEY}: {self.name} gives the reward {found}: its weights are damaged, or too large "
                    "for their precision"
                )
            self._rewards[known] = found
        return self._rewards[known]


def _load(name: str, device: hardware.Device, where: dict[str, Any]) -> Any:
    dtype = hardware.compute_dtype(hardware.choose_precision(device).value)
    settings = {
        **where,
        "dtype": dtype,
        "device_map": {"": torch.device(device.kind)},
        "use_safetensors": True,  # pickled weights may run code
        "output_loading_info": True,
    }
    load = cast(Any, AutoModelForSequenceClassification).from_pretrained
    try:
        config = with_retries(lambda: AutoConfig.from_pretrained(name, **where), name)
        if config.num_labels != 1:
            raise UsageError(
                f"{_KEY}: expected a reward model with one output, {name} has {config.num_labels}"
            )
        model, info = with_retries(lambda: load(name, **settings), name)
    except UsageError:
        raise
    except Exception as error:
        if not is_about_files(error):
            raise
        raise explain_base(error, name, None, _KEY) from error
    if missing := sorted(info["missing_keys"]):
        # transformers would judge with a random head and only a warning.
        raise SurroundingsError(
            f"{_KEY}: {name} lacks {len(missing)} weights of a reward model, first {missing[0]}: it was not "
            "trained as one"
        )
    return model.eval()
