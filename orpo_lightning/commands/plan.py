"""`plan`: the memory and the time of a configuration, before a GPU is rented for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_lightning.planning.gpus import Gpu
    from orpo_lightning.planning.report import Subject

HELP = """usage: orpo-lightning plan --config CONFIG.yaml [--gpu NAME | --memory GB] [--json] [--KEY VALUE]

Says how much memory a training step of a configuration takes and for what, which GPUs it fits on, the largest
batch, how many layers must be recomputed, and how long training lasts. Of the model, config.json is read and
nothing else; neither data nor a GPU is needed.

options:
  --config FILE  YAML file of keys; may be given again, the later file wins
  --gpu NAME     one GPU in detail, such as T4, 4090, A100-80GB, H100; without it, a table of all
  --memory GB    one device of that size in detail
  --json         print the numbers as JSON, and nothing else
  --KEY VALUE    any key of `fit`, such as --data.batch_size 4; `fit --help` lists them

examples:
  orpo-lightning plan --config configs/mistral.yaml
  orpo-lightning plan --config configs/mistral.yaml --gpu T4
  orpo-lightning plan --config configs/mistral.yaml --memory 12 --data.max_length 2048
"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _plan)


def _plan(args: list[str]) -> int:
    from orpo_lightning.commands.config_cli import ConfigCLI
    from orpo_lightning.planning import report
    from orpo_lightning.planning.gpus import GPUS

    config = ConfigCLI("plan", args, add_options=_add_options).config
    asked = _asked(config)
    subject = subject_of(config)
    answers = [report.answer(subject, gpu) for gpu in ([asked] if asked else GPUS)]
    if config.json:
        print(json.dumps(report.as_json(subject, answers), indent=1))
        return 0
    body = report.detail(subject, answers[0]) if asked else report.table(subject, answers)
    training = subject.training(answers[0].gpu.device())
    print("\n".join([report.heading(subject), "", body, "", *report.footnotes(subject, training)]))
    return 0


def _add_options(parser: Any) -> None:
    parser.add_argument("--gpu", type=str | None, default=None, help="One GPU in detail.")
    parser.add_argument(
        "--memory", type=float | None, default=None, help="One device of that many GB in detail."
    )
    parser.add_argument("--json", action="store_true", help="Print the numbers as JSON.")


def _asked(config: Any) -> Gpu | None:
    """Return the device asked for; of one known by its size alone, nothing is said about speed."""
    from orpo_lightning.errors import UsageError
    from orpo_lightning.planning.gpus import Gpu, find_gpu

    if config.gpu is not None and config.memory is not None:
        raise UsageError("--gpu and --memory: expected one of them")
    if config.memory is not None:
        if config.memory <= 0:
            raise UsageError(f"--memory: expected GB above 0, found {config.memory:g}")
        return Gpu(f"{config.memory:g} GB", int(config.memory * 1024), (8, 0), 0)
    return find_gpu(config.gpu) if config.gpu else None


def subject_of(config: Any, base: Any = None) -> Subject:
    """Return what is planned of a parsed configuration.

    Args:
        config: it.
        base: the model's configuration; None reads its config.json.
    """
    from orpo_lightning import modeling
    from orpo_lightning.hardware import Choice
    from orpo_lightning.initialization import check_lora
    from orpo_lightning.planning.report import Subject
    from orpo_lightning.planning.settings import optimizer_of
    from orpo_lightning.planning.shapes import read_model

    ours, data, trainer = config.model, config.data, config.trainer
    check_lora(ours.lora_r, ours.lora_dropout, ours.quantization)
    base = base or modeling.load_config(
        ours.base_model, revision=ours.revision, trust_remote_code=ours.trust_remote_code
    )
    targets = ours.lora_targets if ours.lora_r else "all-linear"  # whatever they are, without LoRA
    model = read_model(base, targets, trust_remote_code=ours.trust_remote_code)
    eager = modeling.supported_attention(base, Choice("sdpa", ""))
    steps = trainer.get("max_steps", -1)
    settings = {
        "quantization": ours.quantization,
        "dtype": ours.dtype,
        "lora_r": ours.lora_r,
        "lora_dropout": ours.lora_dropout,
        "lora_variant": ours.lora_variant,
        "trained_rows": len(ours.trainable_tokens or []),
        "optimizer": optimizer_of(ours.optimizer),
        # auto: all layers, for the largest batch
        "gradient_checkpointing": ours.gradient_checkpointing,
        "accumulate": trainer.get("accumulate_grad_batches", 1),
    }
    precision = trainer.get("precision")
    return Subject(
        name=ours.base_model,
        model=model,
        settings=settings,
        precision=None if precision is None else str(precision),
        attention=ours.attention,
        eager=eager.reason if eager.value == "eager" else "",
        batch_size=data.batch_size,
        max_length=data.max_length,
        tokens_per_batch=None if data.get("tokens_per_batch") == "auto" else data.get("tokens_per_batch"),
        max_prompt_length=data.get("max_prompt_length"),
        layout=_layout(data, model),
        steps=steps if steps > 0 else None,
        automatic=ours.gradient_checkpointing == "auto",
        notes=(*_layout_notes(data, model), *_budget_notes(data), *_notes(base, model, settings)),
    )


def _layout(data: Any, model: Any) -> str:
    """Return the layout of batches, but for what a test batch will show in `fit`."""
    asked = data.get("layout") or "padded"
    if asked == "auto":
        return "padded" if model.unfit else "shared_prefix"
    return asked


def _layout_notes(data: Any, model: Any) -> list[str]:
    if data.get("layout") != "auto":
        return []
    if model.unfit:
        return [f"data.layout auto: planned as padded ({model.unfit})."]
    return ["data.layout auto: planned as shared_prefix; `fit` takes padded where its test batch differs."]


def _budget_notes(data: Any) -> list[str]:
    if data.get("tokens_per_batch") != "auto":
        return []
    return ["data.tokens_per_batch auto: planned as data.batch_size pairs; `fit` fills the memory there is."]


def _notes(base: Any, model: Any, settings: dict[str, Any]) -> list[str]:
    from orpo_lightning.planning.weights import is_known

    notes = []
    if not is_known(settings["optimizer"].name):
        notes.append(f"The state of {settings['optimizer'].name} is not known: taken for Adam's.")
    if getattr(base, "quantization_config", None) is not None:
        notes.append("The model is stored quantised; planned as if it were not.")
    if not all(any(m.place == "attention_out" for m in layer.linears) for layer in model.layers):
        notes.append("Some layers have no attention; what they keep is not counted in full.")
    if any(layer.experts > 1 for layer in model.layers):
        notes.append("Fused experts are planned unquantised, what they keep of their tokens is an estimate.")
    if settings["lora_dropout"] and settings["lora_r"] and any(layer.adapters for layer in model.layers):
        notes.append("LoRA on fused experts takes no dropout: `fit` will ask for model.lora_dropout 0.")
    return notes
