"""Answers to the same few prompts again and again: under the base, the time before, and now."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning

from orpo_lightning.callbacks.boundaries import at_boundary
from orpo_lightning.errors import UsageError, first_line
from orpo_lightning.observing.answers import greedy, markdown_table, prompt_ids, stop_ids
from orpo_lightning.observing.files import append_values, cut_lines
from orpo_lightning.observing.tensorboard import writer_of
from orpo_lightning.observing.undisturbed import as_base, undisturbed
from orpo_lightning.sharding import is_sharded

log = logging.getLogger(__name__)
SAMPLES = "samples.jsonl"
_LOOKED_AT = 64


class Samples(lightning.Callback):
    """Lets the model answer a few prompts at each validation: `samples.jsonl`, and a table in TensorBoard.

    Beside each other stand the answers of the base, of the time before, and of now; the likeliest token is
    taken each time, so that nothing changes but the model. All prompts are answered at once by the first
    process, while others wait: as long as max_new_tokens forward passes over a few tokens take. Weights,
    random numbers and curves of the training are what they would be without it.

    Args:
        prompts: texts, which go through the tokenizer's chat template if it has one; or so many prompts of
            the validation pairs, drawn with the data's seed. 0 or [] switch it off.
        every_n_steps: optimizer steps between two times; at each validation where left out.
        max_new_tokens: of an answer.
    """

    dirpath: str | None = None
    """The run's folder, as the command line sets it; the Trainer's default_root_dir where left open."""

    def __init__(
        self, prompts: int | list[str] = 4, every_n_steps: int | None = None, max_new_tokens: int = 64
    ) -> None:
        """Keep the settings.

        Raises:
            UsageError: a number is none of steps or tokens.
        """
        if max_new_tokens < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise UsageError(
                f"Samples: expected every_n_steps and max_new_tokens of 1 or more, found {every_n_steps} and "
                f"{max_new_tokens}; prompts 0 switches answers off"
            )
        self.prompts, self.every_n_steps, self.max_new_tokens = prompts, every_n_steps, max_new_tokens
        self._ids: list[list[int]] = []
        self._texts: list[str] = []
        self._base: list[str] | None = None
        self._before: list[str] | None = None
        self._step = -1

    def state_dict(self) -> dict[str, Any]:
        """Return the answers that the next ones are to stand beside."""
        return {"prompts": self._texts, "base": self._base, "before": self._before, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the answers; other prompts are noticed when the run starts."""
        self._texts, self._step = state_dict["prompts"], state_dict["step"]
        self._base, self._before = state_dict["base"], state_dict["before"]

    def header_rows(self) -> dict[str, str]:
        """Return how often the model answers, for the header of a run."""
        if not self.prompts:
            return {"samples": "none (callback Samples: prompts 0)"}
        if isinstance(self.prompts, int):
            which = f"{self.prompts} prompts of the validation pairs"
        else:
            which = f"{len(self.prompts)} prompts"
        when = "at each validation" if self.every_n_steps is None else f"every {self.every_n_steps} steps"
        return {"samples": f"answers to {which} {when}, up to {self.max_new_tokens} tokens"}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the prompts; cut off answers that the run gives anew; ask the base while it is at hand."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not self.prompts or not trainer.is_global_zero or not hasattr(data, "processor"):
            return
        if is_sharded(pl_module):
            log.info("no samples: answers are not given while the weights are shared out over processes")
            return
        known = self._texts
        self._find_prompts(data)
        if known != self._texts:
            self._base = self._before = None
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            cut_lines(self._file(trainer), self._step + 1)
        if self._base is None and self._ids:
            self._ask_base(trainer, pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Answer, where that is due at validations."""
        if self.every_n_steps is None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._sample(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Answer, where that is due at this step."""
        every = self.every_n_steps
        if every is not None and at_boundary(trainer) and trainer.global_step % every == 0:
            self._sample(trainer, pl_module)

    def _file(self, trainer: lightning.Trainer) -> Path:
        return Path(self.dirpath or trainer.default_root_dir) / SAMPLES

    def _find_prompts(self, data: Any) -> None:
        tokenizer, pairs = data.processor, data.validation_pairs
        if isinstance(self.prompts, list):
            self._ids, self._texts = prompt_ids(self.prompts, tokenizer), self.prompts
            return
        found: dict[tuple[int, ...], None] = {}
        for number in pairs.order[:_LOOKED_AT].tolist() if pairs is not None else ():
            prompt = tuple(pairs.whole[number].prompt)
            if prompt and len(found) < self.prompts:
                found[prompt] = None
        self._ids = [list(prompt) for prompt in found]
        self._texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in self._ids]

    def _ask_base(self, trainer: lightning.Trainer, module: Any) -> None:
        switch = as_base(module, trainer.global_step)
        if switch is not None:
            with switch:
                self._base = self._answer(trainer, module)

    def _answer(self, trainer: lightning.Trainer, module: Any) -> list[str] | None:
        """Return the answers; None where the model cannot give any: that ends them, and not the run."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tables = (data.train_dataset, data.validation_dataset)
        stops = stop_ids(module.model, data.processor, tables)
        try:
            with undisturbed(trainer, module):
                found = greedy(module.model, self._ids, stops=stops, max_new_tokens=self.max_new_tokens)
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            log.warning("no samples from here on, the model gives no answers: %s", first_line(error))
            self._ids = []
            return None
        return [data.processor.decode(ids, skip_special_tokens=True).strip() for ids in found]

    def _sample(self, trainer: lightning.Trainer, module: Any) -> None:
        step = trainer.global_step
        if not self._ids or step == self._step:
            return
        now = self._answer(trainer, module)
        if now is None:
            return
        # Before the first time there was the base.
        unknown: list[str | None] = [None] * len(now)
        base, before = self._base or unknown, self._before or self._base or unknown
        names = ("prompt", "base", "before", "now")
        columns = zip(self._texts, base, before, now, strict=True)
        rows = [
            {"step": step, "index": index, **dict(zip(names, texts, strict=True))}
            for index, texts in enumerate(columns)
        ]
        for row in rows if not trainer.fast_dev_run else ():  # type: ignore[attr-defined]
            append_values(self._file(trainer), row, "the file of answers")
        if (writer := writer_of(trainer)) is not None:
            writer.add_text("samples", markdown_table(rows), step)
        self._before, self._step = now, step
