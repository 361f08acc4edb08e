"""One side of the training benchmark, in its own process: `benchmark_train_sides.py JOB.json RESULT.json`.

Every side loads the same folder, adds the same LoRA, and trains on the same pairs step by step.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from benchmark_process import do_job
from benchmark_watch import BETA, COMPARED, Watch, mean_of, means_by_step

_LEARNING_RATE = 5e-5
_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_NEVER = 10**6


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Train and validate with the real Trainer, module and data module of this package."""
    import lightning

    kept: list[dict[str, Any]] = []
    lightning.seed_everything(job["seed"], verbose=False)  # the seed of LoRA's first values too
    watch, data, module = Watch(job), _data_module(job), _module(job, kept)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        accelerator="gpu" if job["device"] == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if job["dtype"] == "bfloat16" else "32-true",
        max_steps=watch.last_step,
        accumulate_grad_batches=job["accumulate"],
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        check_val_every_n_epoch=_NEVER,
        num_sanity_val_steps=0,
        callbacks=[_callback(watch, job["without"])],
        default_root_dir=job["scratch"],
        **dict.fromkeys(quiet, False),
    )
    # The Trainer brings model and optimizer to the host's memory when it has done a call, and back for the
    # next: no part of a run that validates as it trains, and TRL's trainer leaves both where they are.
    trainer.strategy.teardown = lambda: None  # type: ignore[method-assign]
    data.prepare_data()  # as TRL's constructor does
    watch.called()
    trainer.fit(module, datamodule=data)
    losses = means_by_step(kept, job["accumulate"])
    order = [planned.indices for planned in data.train_dataloader().plan]
    # The first validation of a run asks the base model as well and keeps its values: timed by itself.
    watch.validation(lambda: trainer.validate(module, datamodule=data, verbose=False), "first_validation_")
    kept.clear()
    watch.validation(lambda: trainer.validate(module, datamodule=data, verbose=False))
    found = watch.figures() | {"losses": losses, "validation_losses": mean_of(kept), "order": order}
    found |= {
        "validated_pairs": len(data.validation_dataset),
        "validation_intervals": {
            name: [float(trainer.callback_metrics[f"val_{end}/{name}"]) for end in ("ci_low", "ci_high")]
            for name in COMPARED
            if f"val_ci_low/{name}" in trainer.callback_metrics  # a single pair has none
        },
        "layout": dict(module.describe()).get("layout", "padded"),
        "recomputes": _recomputes(module.model),
    }
    tables = (data.train_dataset, data.validation_pairs.whole)
    return found | _told_apart(*([table[index] for index in range(len(table))] for table in tables))


def _data_module(job: dict[str, Any]) -> Any:
    from orpo_lightning import PreferenceDataModule

    has_layouts = "layout" in inspect.signature(PreferenceDataModule).parameters
    settings = {"layout": "padded" if job["without"] == "layout" else "auto"} if has_layouts else {}
    return PreferenceDataModule(
        train=job["train"],
        validation=job["validation"],
        tokenizer=job["model"],
        max_length=job["max_length"],
        batch_size=job["batch"],
        validation_batch_size=job["validation_batch"],
        validation_size=job["validation_sample"],
        # Without the planned order the pairs come as they stand in the file, not sorted within a step.
        shuffle=job["without"] != "sampler",
        seed=job["seed"],
        cache_dir=job["cache"],
        **settings,
    )


def _module(job: dict[str, Any], kept: list[dict[str, Any]]) -> Any:
    from orpo_lightning import ORPO, PreferenceModule

    class Recorded(PreferenceModule):
        """Keeps what the objective says of every micro-batch."""

        def step(self, batch: Any) -> Any:
            """Return the objective's output as it is."""
            output = super().step(batch)
            means = {name: (term.sum.detach(), term.count) for name, term in output.terms.items()}
            kept.append(means | {name: (mean.sum, mean.count) for name, mean in output.metrics.items()})
            return output

    return Recorded(
        job["model"],
        quantization=job["quantization"],
        lora_r=job["lora_r"],
        lora_alpha=job["lora_r"],
        lora_dropout=job["dropout"],
        lora_targets=_SEVEN,
        gradient_checkpointing=job["gradient_checkpointing"] == "all",
        objective=ORPO(beta=BETA),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=_LEARNING_RATE, weight_decay=0.0),
        schedule="constant",
        warmup=0,
    )


def _callback(watch: Watch, without: str | None) -> Any:
    import lightning

    from orpo_lightning.modeling import causal_model
    from orpo_lightning.scoring import Scorer

    class Watching(lightning.Callback):
        """Tells the watch what Lightning tells its callbacks."""

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            """Called when the model is loaded."""
            if without == "head":
                assert hasattr(module, "_scorer"), "the module keeps its scorer under another name now"
                module._scorer = Scorer(
                    causal_model(module.model), why_full_logits="asked for by a benchmark"
                )
            watch.loaded(module.model)

        def on_train_start(self, trainer: Any, module: Any) -> None:
            """Called before the first step."""
            self.steps = 0

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            """Called after every micro-batch."""
            if trainer.global_step > self.steps:
                self.steps = trainer.global_step
                watch.step_done()

    return Watching()


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate with TRL's real ORPOTrainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from orpo_lightning.modeling import quantization_config

    kept: list[dict[str, Any]] = []
    watch = Watch(job)

    class InOrder(ORPOTrainer):
        """Takes the pairs as they stand in the file, and keeps its metrics before they are averaged."""

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def store_metrics(self, metrics: dict[str, float], train_eval: str = "train") -> None:
            """Keep them besides."""
            kept.append(metrics)
            super().store_metrics(metrics, train_eval)

    class Watching(TrainerCallback):
        """Tells the watch what transformers tells its callbacks."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Called after every optimizer step."""
            watch.step_done()

    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=dtype,
        quantization_config=quantization_config(job["quantization"], dtype),
        attn_implementation="sdpa",
        device_map={"": job["device"]},
    )
    trainer = InOrder(
        model=model,
        args=ORPOConfig(**_arguments(job, watch.last_step)),
        train_dataset=Dataset.from_list(_rows(job["train"])),
        eval_dataset=Dataset.from_list(_rows(job["validation"])),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(
            r=job["lora_r"],
            lora_alpha=job["lora_r"],
            lora_dropout=job["dropout"],
            target_modules=_SEVEN,
            task_type="CAUSAL_LM",
        ),
        callbacks=[Watching()],
    )
    watch.loaded(trainer.model)
    watch.called()
    trainer.train()
    losses = means_by_step([_sums(metrics, "") for metrics in kept], job["accumulate"])
    kept.clear()
    watch.validation(trainer.evaluate)
    found = watch.figures() | {"losses": losses, "recomputes": _recomputes(trainer.model)}
    found["validated_pairs"] = len(trainer.eval_dataset)
    found["validation_losses"] = mean_of([_sums(metrics, "eval_") for metrics in kept])
    return found | _told_apart(_pairs(trainer.train_dataset), _pairs(trainer.eval_dataset))


def _recomputes(model: Any) -> bool:
    from orpo_lightning.sharding import recomputable

    return any(layer.gradient_checkpointing for layer in recomputable(model))


def _arguments(job: dict[str, Any], last_step: int) -> dict[str, Any]:
    on_gpu = job["device"] == "cuda"
    return {
        "output_dir": job["scratch"],
        "max_length": job["max_length"],
        "beta": BETA,
        "per_device_train_batch_size": job["batch"],
        "per_device_eval_batch_size": job["validation_batch"],
        "gradient_accumulation_steps": job["accumulate"],
        "gradient_checkpointing": job["gradient_checkpointing"] != "none",
        "max_steps": last_step,
        "learning_rate": _LEARNING_RATE,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "bf16": job["dtype"] == "bfloat16",
        "disable_dropout": job["dropout"] == 0,  # it would switch LoRA's off too
        "seed": job["seed"],
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _sums(metrics: dict[str, float], prefix: str) -> dict[str, tuple[float, int]]:
    """Return TRL's metrics under our names; its log_odds_ratio is our odds_ratio_loss, without the minus."""
    names = {name: (name, 1) for name in ("nll_loss", "logps/chosen", "logps/rejected")}
    names["odds_ratio_loss"] = ("log_odds_ratio", -1)
    return {name: (sign * metrics[prefix + theirs], 1) for name, (theirs, sign) in names.items()}


def _rows(file: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def _pairs(table: Any) -> list[tuple[list[int], ...]]:
    """Return prompt, chosen and rejected of TRL's rows; it masks the prompt in its labels."""
    found = []
    for row in table:
        prompt = sum(label == -100 for label in row["chosen_labels"])
        chosen, rejected = row["chosen_input_ids"], row["rejected_input_ids"]
        found.append((chosen[:prompt], chosen[prompt:], rejected[prompt:]))
    return found


def _told_apart(train: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
    """Return lengths and hashes of the pairs a side had."""
    return {
        "lengths": [[len(part) for part in pair] for pair in train],
        "train_pairs": [_hash(*pair) for pair in train],
        "validation_pairs": [_hash(*pair) for pair in validation],
    }


def _hash(*parts: list[int]) -> str:
    return blake2b(json.dumps([list(part) for part in parts]).encode(), digest_size=8).hexdigest()


SIDES = {"ours": ours, "trl": trl}


if __name__ == "__main__":
    do_job(SIDES)
