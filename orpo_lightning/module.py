"""The LightningModule: a quantised LoRA policy, an objective, their metrics, adapter-sized checkpoints."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from orpo_lightning import hardware, modeling, policy, recomputation, resuming
from orpo_lightning.adapter_state import trained_parameters
from orpo_lightning.base_logps import BaseLogps, with_change
from orpo_lightning.batching import Layout, PairBatch
from orpo_lightning.batching.shared_prefix import KEYWORD
from orpo_lightning.errors import UsageError
from orpo_lightning.initialization import check_initialization, check_lora
from orpo_lightning.layouts import choose_layout
from orpo_lightning.logps import PairLogps
from orpo_lightning.metrics import IntervalMeans, Speed, WeightedMeans, with_padding
from orpo_lightning.modeling import LoraInit, LoraVariant, Quantization
from orpo_lightning.objectives import ORPO, Objective, ObjectiveOutput, Term
from orpo_lightning.planning.checkpointing import Choice
from orpo_lightning.schedules import (
    Schedule,
    fuse,
    gradient_norm,
    keep_settings,
    make_schedule,
    parameter_groups,
    settings_of,
)
from orpo_lightning.scoring import Scorer, router_loss_weight, score, take_apart

log = logging.getLogger(__name__)
_PROGRESS_BAR = ("loss", "rewards/accuracies", "rewards/margins", "pairs_per_second")


class PreferenceModule(lightning.LightningModule):
    """Trains a causal language model on preference pairs; batches are `PairBatch`es.

    Override points: `configure_model` (which sets `self.model`), `forward` (batch → log-probabilities),
    `step` (batch → objective's output: add terms or metrics here), `configure_optimizers`.

    Args:
        base_model: hub id or folder of the base model.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model. Only for models you have read.
        quantization: how the frozen base is kept: nf4 (4 bits, double quantisation), int8, or none.
        dtype: of the base's weights and of its matrix products; auto follows trainer.precision (float32
            weights where they are trained themselves).
        attention: kernel for padded batches and for generation; auto is flash_attention_2 where GPU and
            package allow, else sdpa. Batches with shared prefixes have kernels of their own (data.layout).
        lora_r: rank of LoRA; 0 trains all weights instead.
        lora_alpha: LoRA's scale numerator: the update is multiplied by alpha / r (rslora: alpha / sqrt(r)).
        lora_dropout: dropout in front of LoRA. (The base model's own dropout is always off.)
        lora_targets: names of the layers that get LoRA, or "all-linear".
        lora_variant: lora, rslora (rank-stabilised scale) or dora (weight-decomposed).
        lora_init: default (B = 0), gaussian, pissa (needs an unquantised base), loftq (needs nf4).
        trainable_tokens: tokens whose embedding rows are trained too, e.g. a stop token the base never
            learned.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more
            time; offload keeps what is recomputed from in the host's memory besides; auto does no more of
            it than the device's free memory asks for.
        objective: the loss, e.g. ORPO.
        optimizer: optimizer class with its arguments; gets named parameter groups (matrices, embeddings,
            vectors).
        schedule: of the learning rate after warm-up.
        warmup: linear warm-up: steps (a whole number) or a share of all steps (below 1).
    """

    def __init__(
        self,
        base_model: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        quantization: Quantization = "none",
        dtype: modeling.DtypeName = "auto",
        attention: modeling.Attention = "auto",
        lora_r: int = 16,
        lora_alpha: int = 16,
        lora_dropout: float = 0.05,
        lora_targets: list[str] | str = modeling.SEVEN_PROJECTIONS,
        lora_variant: LoraVariant = "lora",
        lora_init: LoraInit = "default",
        trainable_tokens: list[str] | None = None,
        gradient_checkpointing: bool | Literal["auto", "offload"] = True,
        objective: Objective = ORPO(),  # noqa: B008 - frozen
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=5e-5, weight_decay=0.0),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
    ) -> None:
        """Keep the settings; the model is loaded in `configure_model`, on the rank's own device."""
        super().__init__()
        check_lora(lora_r, lora_dropout, quantization)
        check_initialization(lora_init, quantization if lora_r else "none")
        # An objective stands in the hyper-parameters of a checkpoint, which is read with weights_only.
        torch.serialization.add_safe_globals([type(objective)])
        self.save_hyperparameters(ignore=["optimizer"])
        self.objective = objective
        self.optimizer = optimizer
        self.model: Any = None
        self.strict_loading = False  # a checkpoint holds the trained part only; on_load_checkpoint compares
        self.attention_choice = hardware.Choice(attention, "set by the user")
        self.train_means, self.val_means, self.test_means = WeightedMeans(), IntervalMeans(), IntervalMeans()
        self.base_logps: BaseLogps | None = None
        self.validation_name = "val"
        self.speed = Speed()
        self.grad_norm: Tensor | None = None
        self.optimizer_made: torch.optim.Optimizer | None = None
        self._saved_optimizer: str | None = None
        self._optimizer_settings: list[dict[str, Any]] | None = None
        self._scorer: Scorer | None = None
        self._initial_adapter: Any = None
        self._layouts: dict[Layout, hardware.Choice] = {}
        self._recomputation: Choice | None = None

    # Model

    def configure_model(self) -> None:
        """Load the base, quantise it, add LoRA; on the rank's device, once though called more often."""
        if self.model is not None:
            return
        self.model, self.attention_choice, self._initial_adapter = policy.build(
            self.hparams,
            device=self.device,
            precision=self._precision(),
            mesh=self.device_mesh,
            seed=run_seed() or 0,
        )

    def _precision(self) -> str:
        return self.trainer.precision if self._trainer is not None else "32-true"

    # Training

    def forward(self, batch: PairBatch) -> PairLogps:
        """Return the policy's log-probabilities of the batch's pairs."""
        chosen = {choice.value for choice in self._layouts.values()}
        if KEYWORD in batch.model_inputs and "shared_prefix" not in chosen:
            self.choose_layout("shared_prefix")  # of a loader that did not ask; an error where it cannot be
        return score(self._take_apart(), batch)

    def _take_apart(self) -> Scorer:
        if self._scorer is None:
            self._scorer = take_apart(self.model)
            if self._scorer.why_full_logits:
                log.warning("full logits are computed: %s", self._scorer.why_full_logits)
        return self._scorer

    def choose_layout(self, wanted: Layout = "auto") -> hardware.Choice:
        """Return how batches for this module are laid out: "shared_prefix" or "padded", and why.

        A data module asks before it makes the first batch; the model is tried out once, at the first answer.
        """
        if wanted not in self._layouts:
            self.configure_model()
            # As in the steps to come: in their precision, whoever asks.
            attached = self._trainer is not None
            with self.trainer.precision_plugin.forward_context() if attached else nullcontext():
                self._layouts[wanted] = choose_layout(wanted, self._take_apart())
        return self._layouts[wanted]

    def _choose_recomputation(self) -> Choice:
        """Decide once which layers are recomputed; by then the batches' layout is chosen."""
        if self._recomputation is None:
            layouts = {choice.value for choice in self._layouts.values()}
            layout = "shared_prefix" if layouts == {"shared_prefix"} else "padded"
            self._recomputation = recomputation.choose(self._trainer, self, layout)
            if self.hparams["gradient_checkpointing"] == "auto":
                recomputation.apply(self.model, self._recomputation)
        return self._recomputation

    def step(self, batch: PairBatch) -> ObjectiveOutput:
        """Return the objective's terms and metrics of a micro-batch; extend the two dicts to add your own."""
        logps = self(batch)
        output = self.objective(logps)
        if logps.router_loss is None:
            return output
        pairs = logps.weights.sum()
        step_pairs = pairs if batch.normalisers is None else batch.normalisers.pairs
        weight = router_loss_weight(self._scorer.model)  # type: ignore[union-attr]
        term = Term(weight, logps.router_loss * pairs, pairs, step_pairs)
        return output._replace(terms={**output.terms, "router_loss": term})

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the micro-batch's loss, scaled so that Lightning's averages give that of the step."""
        if not batch.num_pairs:  # the step needed fewer micro-batches than it may have
            return torch.zeros((), device=self.device, requires_grad=True)
        output = self.step(batch)
        self.train_means.update(with_padding(output, batch), is_filler=batch.is_filler)
        self.speed.add(0 if batch.is_filler else batch.num_pairs, batch.target_ids.shape[0])
        if batch.normalisers is None:
            return output.loss
        # Lightning divides by the accumulation (in a short last window too), DDP by the ranks.
        return output.loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add up the validation metrics, and how far the adapter moved them."""
        output = with_change(self, batch, batch_idx, self.step(batch))
        self.val_means.update(output, is_filler=batch.is_filler)

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add up the test metrics."""
        self.test_means.update(self.step(batch), is_filler=batch.is_filler)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer over named parameter groups, and a schedule stepped with it."""
        named = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        optimizer = self.optimizer(parameter_groups(self.model, named))
        if (check := getattr(optimizer, "check_trainer", None)) is not None:
            check(self.trainer)
        fuse(optimizer, scales_loss=getattr(self.trainer.precision_plugin, "scaler", None) is not None)
        resuming.refuse_other_optimizer(self._saved_optimizer, optimizer)
        self.optimizer_made = optimizer  # the next line makes the loader, which may ask what memory is left
        total = int(self.trainer.estimated_stepping_batches)
        schedule = make_schedule(optimizer, self.hparams["schedule"], self.hparams["warmup"], total)
        self._optimizer_settings = settings_of(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Hooks

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Bring what keeps the data module's promises about validation, and what guards the weights."""
        from orpo_lightning.callbacks.divergence_watch import DivergenceWatch
        from orpo_lightning.callbacks.finite_steps import FiniteSteps
        from orpo_lightning.callbacks.validation_runs import ValidationRuns
        from orpo_lightning.callbacks.weights_proof import WeightsProof

        ours = [ValidationRuns(), FiniteSteps(), WeightsProof(), DivergenceWatch()]
        # One of the Trainer's own, with other settings, stands instead of ours.
        given = self.trainer.callbacks  # type: ignore[attr-defined]
        return [one for one in ours if not any(isinstance(other, type(one)) for other in given)]

    def on_train_start(self) -> None:
        """Check that the run will train what it should, and start the clock."""
        from orpo_lightning.callbacks.boundaries import begin_next_epoch, keep_to_steps

        keep_to_steps(self.trainer)
        begin_next_epoch(self.trainer)
        self._choose_recomputation()
        self._go_on()
        frozen_mode = [name for name, module in self.model.named_modules() if not module.training]
        assert not frozen_mode, f"modules in eval mode switch gradient checkpointing off: {frozen_mode[:3]}"
        halves = [name for name, p in self.named_parameters() if p.requires_grad and p.dtype.itemsize < 4]
        if halves and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UsageError(
                f"model.dtype {self.hparams['dtype']}: a scaler (trainer.precision 16-mixed) cannot train "
                "weights in half precision; set model.dtype float32, or auto"
            )
        if halves:
            log.warning(
                "%d trained weights are in half precision, small updates are lost: %s", len(halves), halves[0]
            )
        self.speed.restart()

    def _go_on(self) -> None:
        """Let this run's settings win over the checkpoint's, and log what its last step was still to log."""
        if self._optimizer_settings is not None:  # else configure_optimizers is a subclass's own
            schedule = self.trainer.lr_scheduler_configs[0].scheduler
            changes = keep_settings(self.trainer.optimizers[0], schedule, self._optimizer_settings)
            if changes:
                log.info("changed since the checkpoint: %s", ", ".join(changes))
        if self.grad_norm is not None:
            # Tensors of 32 bits, as self.log makes them.
            values = {f"train/{name}": torch.as_tensor(value) for name, value in self._train_values().items()}
            step = float(self.trainer.global_step)
            self.trainer._logger_connector.log_metrics({**values, "step": step})  # type: ignore[dict-item]
            self._forget_logged()

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Seed dropout from the batch's number alone: a resumed run draws what the whole one would have."""
        seed = run_seed()
        if seed is not None:
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx * self.trainer.world_size
            torch.manual_seed((seed << 32) + number + self.trainer.global_rank)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradient's norm (before clipping) where the step will be logged."""
        if (self.trainer.global_step + 1) % self._log_every == 0:
            self.grad_norm = gradient_norm(optimizer)

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        """Log what was summed up since the last logged step; nothing is read off the device in between."""
        step = self.trainer.global_step
        if self.grad_norm is None or step % self._log_every:
            return
        rates = {name: rate * self.trainer.world_size for name, rate in self.speed.rates().items()}
        values = self._train_values()
        for name in set(self.train_means.names) - values.keys():
            # A mean of nothing is left out; Lightning would log the one before it again.
            self.trainer._results.pop(f"on_train_batch_end.train/{name}", None)  # type: ignore[union-attr]
        self._log("train", {**values, **rates})
        self._forget_logged()

    def _train_values(self) -> dict[str, Any]:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return {**self.train_means.compute(), "grad_norm": self.grad_norm, "lr": rate}

    def _forget_logged(self) -> None:
        self.train_means.reset()
        self.grad_norm = None
        self.speed.restart()

    def on_validation_epoch_start(self) -> None:
        """Stop the training clock."""
        self.speed.pause()
        self.val_means.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        if not self.trainer.sanity_checking:
            self._log(self.validation_name, self.val_means.compute())

    def on_validation_end(self) -> None:
        """Start the training clock again, after all that callbacks do at a validation's end."""
        self.speed.resume()

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log("test", self.test_means.compute())
        self.test_means.reset()

    @property
    def _log_every(self) -> int:
        return self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector

    def _log(self, stage: str, values: dict[str, Any]) -> None:
        if self.trainer.state.fn == "fit":
            # The x axis of this record: optimizer steps done. Lightning's own count is one less.
            self.log("step", float(self.trainer.global_step))
        # The sums were added up over ranks already: nothing to synchronise.
        for name, value in values.items():
            # Intervals are groups of their own in TensorBoard: val_ci_low/loss.
            full = f"{stage}_{name}" if name.startswith("ci_") else f"{stage}/{name}"
            self.log(full, value, prog_bar=name in _PROGRESS_BAR, rank_zero_only=False)

    # Checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the trained parameters only: a 4-bit base cannot be loaded back, and need not be saved."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        destination = kwargs.get("destination", args[0] if args else None)
        return trained_parameters(self, prefix, {} if destination is None else destination)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the values of the next logged step will need."""
        checkpoint[resuming.KEY] = resuming.extra_state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            CheckpointError: listing what differs.
        """
        if self.model is None:  # load_from_checkpoint comes here before configure_model
            self.configure_model()
        resuming.refuse_other_run(self, checkpoint)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            resuming.restore_extra_state(self, checkpoint)
            # Lightning makes the optimizer after this, and FSDP2 before it.
            self._saved_optimizer = checkpoint.get(resuming.KEY, {}).get("optimizer")
            resuming.refuse_other_optimizer(self._saved_optimizer, self.optimizer_made)

    # Report

    def describe(self) -> list[tuple[str, str]]:
        """Return (label, text) rows about the model for a run's header."""
        settings = self.hparams
        total, trainable = modeling.parameter_counts(self.model)
        kind = f"{settings['lora_variant']} r={settings['lora_r']}" if settings["lora_r"] else "all weights"
        dtype = str(policy.weights_dtype(settings, self._precision())).removeprefix("torch.")
        architecture = type(modeling.causal_model(self.model)).__name__.removeprefix("FSDP")
        layouts = [("layout", f"{choice.value} ({choice.reason})") for choice in self._layouts.values()]
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        recomputed = recomputation.rows(self._choose_recomputation()) if fitting else []
        return [
            ("model", f"{settings['base_model']} ({architecture})"),
            (
                "parameters",
                f"{total:,} total, {trainable:,} trained ({100 * trainable / total:.2f} %): {kind}",
            ),
            ("quantization", f"{settings['quantization']}, computing in {dtype}"),
            ("attention", f"{self.attention_choice.value} ({self.attention_choice.reason})"),
            *layouts,
            *recomputed,
        ]


def run_seed() -> int | None:
    """Return the seed given to `lightning.seed_everything`, None where it was never called."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed) & 0x7FFFFFFF
