"""`merge`: the adapter into the base, with proof that nothing but rounding changed."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orpo_lightning import __version__

if TYPE_CHECKING:
    from orpo_lightning.batching.base import TokenizedPair
    from orpo_lightning.hardware import Choice
    from orpo_lightning.using.merge_proof import Difference
    from orpo_lightning.using.trained import Trained

HELP = """usage: orpo-lightning merge MODEL --out FOLDER [--onto WEIGHTS] [--dtype TYPE] [--json] [OPTIONS]

Adds the adapter's update to the weights of its base and writes a whole model, with tokenizer, chat template,
stop tokens and model card, which plain transformers, vLLM and llama.cpp load. The base is in memory once.

The proof: the log-probabilities of held-out answers before, and afterwards as plain transformers computes
them from the folder in a process of its own. They are printed and written to merge.json. Where they differ by
more than rounding the folder is kept beside as FOLDER.failed and the exit code is 4.

options:
  MODEL                   a run's folder, an adapter's, or a hub id
  --out FOLDER            where the merged model goes; must not be there yet
  --onto full             add to the weights of the base as published (default; also after training on nf4)
  --onto dequantized      add to the nf4 weights that the adapter was trained on, written out in full
  --dtype TYPE            of the merged weights: float32, bfloat16, float16 (default: as the base is stored)
  --max_shard_size SIZE   largest file of weights, such as 5GB (default)
  --pairs FILE            pairs for the proof (default: the run's test pairs, else its validation pairs)
  --base NAME             instead of the base that the adapter names
  --quantization KIND     what the adapter was trained on, where nothing says so: none, nf4, int8
  --accelerator KIND      auto, gpu, cpu
  --trust_remote_code     run Python code that comes with the model
  --json                  print merge.json, and nothing else

examples:
  orpo-lightning merge runs/quickstart --out runs/quickstart/merged
  orpo-lightning merge runs/quickstart/adapter-best --out merged --onto dequantized --dtype float32
"""
_MEMORY = "--accelerator cpu merges in the memory of the machine, which must hold the whole base"
_PAIRS = 64


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _merge, memory=_MEMORY)


def _merge(args: list[str]) -> int:
    from orpo_lightning.errors import UsageError
    from orpo_lightning.using.trained import find

    options = _parse(args)
    folder = Path(options.out).expanduser()
    for there in (folder, _aside(folder)):
        if there.exists():
            raise UsageError(f"--out: {there} is there already: name another folder, or remove it")
    trained = find(
        options.model,
        base=options.base,
        quantization=options.quantization,
        trust_remote_code=options.trust_remote_code,
    )
    work = _prepare(trained, options)
    say = (lambda *row: None) if options.json else _row
    for row in work.rows:
        say(*row)
    facts = _carry_out(work, folder, options.max_shard_size)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        _say_result(facts, folder)
    return 0


def _parse(args: list[str]) -> Any:
    from orpo_lightning.commands.words import Words

    words = Words("merge")
    words.add_model()
    words.add_argument("--out", required=True)
    words.add_argument("--onto", choices=["full", "dequantized"], default=None)
    words.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default=None)
    words.add_argument("--max_shard_size", default="5GB")
    words.add_argument("--pairs", default=None)
    words.add_argument("--json", action="store_true")
    return words.parse_args(args)


class _Work(NamedTuple):
    """What is to be merged, and how."""

    trained: Trained
    onto: Choice
    dtype: Choice
    device: Any
    tokenizer: Any
    pairs: list[TokenizedPair]
    source: str

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What was decided, for the terminal."""
        return [
            ("adapter", str(self.trained.adapter)),
            ("base", self.trained.base),
            ("onto", f"{self.onto.value} ({self.onto.reason})"),
            ("dtype", f"{self.dtype.value} ({self.dtype.reason})"),
            ("proof", f"{len(self.pairs)} pairs: {self.source}"),
        ]


def _prepare(trained: Trained, options: Any) -> _Work:
    import torch

    from orpo_lightning import hardware, modeling
    from orpo_lightning.using.merging import choose_dtype, choose_onto
    from orpo_lightning.using.proof_pairs import proof_pairs
    from orpo_lightning.using.trained import tokenizer_of

    config = modeling.load_config(
        trained.base, revision=trained.revision, trust_remote_code=trained.trust_remote_code
    )
    onto = choose_onto(trained, options.onto, getattr(config, "quantization_config", None) is not None)
    dtype = choose_dtype(config, options.dtype)
    device = torch.device(hardware.detect_device(options.accelerator).kind)
    tokenizer = tokenizer_of(trained)
    found = proof_pairs(trained, tokenizer, file=options.pairs, count=_PAIRS)
    return _Work(trained, onto, dtype, device, tokenizer, *found)


def _carry_out(work: _Work, folder: Path, max_shard_size: str) -> dict[str, Any]:
    """Merge, write, prove; return what merge.json says."""
    from orpo_lightning.using.generation import Answerer
    from orpo_lightning.using.merge_proof import (
        BOUNDS,
        Difference,
        answer_logps,
        answer_logps_of_folder,
        check,
    )
    from orpo_lightning.using.merging import DTYPES, load_adapted, merge, save
    from orpo_lightning.using.sealed_folder import staged

    trained, onto, dtype = work.trained, work.onto.value, DTYPES[work.dtype.value]
    as_trained = _logps_as_trained(work) if trained.quantization != "none" or onto == "dequantized" else None
    model = load_adapted(trained, onto, dtype, work.device)
    before = as_trained if as_trained and onto == "dequantized" else answer_logps(model, work.pairs)
    stop_ids = Answerer(model, work.tokenizer).stop_ids
    model = merge(model, dtype)
    with staged(folder, "the merged model", "name a folder on another disk with --out") as staging:
        save(model, staging, max_shard_size=max_shard_size, stop_ids=stop_ids)
        work.tokenizer.save_pretrained(staging)
        del model
        _let_go()  # the base is in memory once: the process of the proof loads it again
        after = answer_logps_of_folder(staging, work.pairs, work.device, trained.trust_remote_code)
        difference = Difference.of(before, after)
        other_base = Difference.of(as_trained, after) if as_trained and onto == "full" else None
        facts = _facts(work, difference, other_base)
        (staging / "merge.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (staging / "README.md").write_text(_card(work, facts), encoding="utf-8")
        if difference.max > BOUNDS[work.dtype.value]:
            staging.replace(_aside(folder))
        check(difference, work.dtype.value, _aside(folder))
    return facts


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed")


def _logps_as_trained(work: _Work) -> list[float]:
    """Return the log-probabilities on the weights it was trained on, which are not kept in memory."""
    from orpo_lightning.using.merge_proof import answer_logps
    from orpo_lightning.using.trained import load

    kind = {"cuda": "gpu"}.get(work.device.type, work.device.type)
    found = answer_logps(load(work.trained, accelerator=kind).model, work.pairs)
    _let_go()
    return found


def _let_go() -> None:
    """Give the memory of what is no longer needed to other processes too."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not used; PyTorch keeps it for this process otherwise


def _facts(work: _Work, difference: Difference, other_base: Difference | None) -> dict[str, Any]:
    from orpo_lightning.masking import mask_text
    from orpo_lightning.using.merge_proof import BOUNDS
    from orpo_lightning.using.pushing import data_sources

    trained = work.trained
    return {
        "package": __version__,
        "base": mask_text(trained.base),
        "revision": trained.revision,
        "adapter": mask_text(str(trained.adapter)),
        "data": [mask_text(name) for name in data_sources(trained)],
        "trained_on": trained.quantization,
        "onto": work.onto.value,
        "dtype": work.dtype.value,
        "pairs": len(work.pairs),
        "pairs_from": mask_text(work.source),
        "difference": {**difference._asdict(), "bound": BOUNDS[work.dtype.value]},
        "difference_from_trained_weights": None if other_base is None else other_base._asdict(),
    }


def _card(work: _Work, facts: dict[str, Any]) -> str:
    from orpo_lightning.using.cards import Card, versions

    found = facts["difference"]
    rows = [
        *work.rows,
        (
            "log-probabilities before and after",
            f"max {found['max']:.2g}, mean {found['mean']:.2g} nats a token",
        ),
    ]
    return Card(
        base=work.trained.base,
        is_adapter=False,
        intro=["An adapter trained by orpo-lightning, merged into its base."],
        tables=[("merge", "value", rows), ("package", "version", versions())],
    ).render()


def _row(label: str, text: str) -> None:
    from orpo_lightning.masking import mask_text

    print(f"{label:<14}{mask_text(text)}", flush=True)


def _say_result(facts: dict[str, Any], folder: Path) -> None:
    found, other = facts["difference"], facts["difference_from_trained_weights"]
    _row(
        "difference",
        f"max {found['max']:.2g}, mean {found['mean']:.2g} nats a token before and after, in plain "
        f"transformers (allowed {found['bound']:g})",
    )
    if other is not None:
        _row(
            "trained on",
            f"{facts['trained_on']}: the merged model differs from the model there by max "
            f"{other['max']:.2g}, mean {other['mean']:.2g} nats a token",
        )
    _row("merged", str(folder))
