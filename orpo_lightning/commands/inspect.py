"""`inspect`: look at the data of a configuration before GPU time is spent on it."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_lightning import __version__
from orpo_lightning.masking import mask_text

if TYPE_CHECKING:
    from orpo_lightning.commands.data_cli import DataCLI

HELP = """usage: orpo-lightning inspect --config CONFIG.yaml [--out DIR] [--strict] [--json] [--KEY VALUE ...]

Reads the data of a configuration as `fit` would, loads no model, and says what is in it and what is wrong:
rows left out and why, duplicates, contradictions, leaks between train and validation, lengths and what each
limit would cost, signs of noisy labels, the tokens of three rows, and what an epoch costs.

options:
  --config FILE  YAML file of keys; may be given again, the later file wins
  --out DIR      folder of report.html, report.json and dropped.jsonl (default: inspect in the run's folder)
  --strict       exit with 3 when a check fails, so that it can stop a CI job
  --json         print verdict and counts as JSON, and nothing else
  --KEY VALUE    any key of `fit`, such as --data.train PATH; `fit --help` lists them

Rows that cannot be used stop nothing here, whatever data.on_error and data.max_dropped say: they are counted,
and the verdict holds their share against data.max_dropped.

examples:
  orpo-lightning inspect --config configs/mistral.yaml
  orpo-lightning inspect --config configs/smollm2.yaml --data.train pairs.jsonl --out pairs-report --strict
"""
_DROPPED = "dropped.jsonl"


def main(args: list[str], datamodule_class: Any = None) -> int:
    """Run the command and return its exit code.

    Args:
        args: the words behind `inspect`.
        datamodule_class: a subclass of PreferenceDataModule instead of itself.
    """
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, lambda words: _inspect(words, datamodule_class))


def _inspect(args: list[str], datamodule_class: Any) -> int:
    from orpo_lightning.commands.data_cli import DataCLI
    from orpo_lightning.data.health import summary

    own = {} if datamodule_class is None else {"datamodule_class": datamodule_class}
    cli = DataCLI("inspect", args, add_options=_add_options, **own)
    data = cli.datamodule
    max_dropped = data.cleaning.max_dropped
    # To report on faults is what is asked for, not to stop at them; the verdict holds them to max_dropped.
    data.cleaning = data.cleaning._replace(on_error="skip", max_dropped=1.0, repeated_prompt="strip")
    report = {**_made(args), **_examine(cli, max_dropped)}
    folder = Path(cli.config.out or cli.run_folder / "inspect").expanduser()
    files = _write(folder, report, cli)
    if cli.config.json:
        print(json.dumps({**counts(report), "files": [str(file) for file in files]}, indent=1))
    else:
        print(f"{summary(report)}\nwritten to {', '.join(map(str, files))}")
    return 0 if report["verdict"]["passed"] or not cli.config.strict else 3


def _add_options(parser: Any) -> None:
    parser.add_argument("--out", type=str | None, default=None, help="Folder of the report.")
    parser.add_argument("--strict", action="store_true", help="Exit with 3 when a check fails.")
    parser.add_argument("--json", action="store_true", help="Print verdict and counts as JSON.")


def _examine(cli: DataCLI, max_dropped: float) -> dict[str, Any]:
    from orpo_lightning.data.health import EpochPlan, Rules, examine, gather
    from orpo_lightning.errors import UsageError

    data = cli.datamodule
    splits = gather(data.preparation)
    if not splits:
        raise UsageError("data.train is not set; name a file or a hub id")
    settings = _settings(cli)
    plan = EpochPlan(
        data.batch_size,
        settings["accumulate"],
        settings["devices"],
        data.shuffle,
        data.seed,
        data.preparation.mixture() if "train" in splits else None,
        data.tokens_per_batch,
    )
    strict = bool(cli.config.strict)
    rules = Rules.of(data)
    report = examine(splits, data.processor, rules, max_dropped=max_dropped, plan=plan, strict=strict)
    return {"settings": settings | {"max_dropped": max_dropped}, **report}


def _made(args: list[str]) -> dict[str, Any]:
    return {
        "package": __version__,
        "created": datetime.now().isoformat(timespec="seconds"),
        "command": mask_text(f"inspect {shlex.join(args)}"),
    }


def _settings(cli: DataCLI) -> dict[str, Any]:
    """Return the settings that the report's numbers hold for."""
    from orpo_lightning.commands.data_cli import device_count

    data, trainer = cli.datamodule, cli.config.trainer
    own = "the tokenizer's own" if data.processor.chat_template else "none"
    named = data.validation
    return {
        "tokenizer": data.tokenizer,
        "template": data.chat_template or own,
        **data.rules,
        "duplicates": data.cleaning.duplicates,
        "contradictions": data.cleaning.contradictions,
        "validation": f"{named:g} of train" if isinstance(named, float) else named,
        "validation_size": data.validation_size,
        "batch_size": data.batch_size,
        "tokens_per_batch": data.hparams["tokens_per_batch"],
        "accumulate": trainer.get("accumulate_grad_batches", 1),
        "devices": device_count(trainer),
        "shuffle": data.shuffle,
        "seed": data.seed,
    }


def _write(folder: Path, report: dict[str, Any], cli: DataCLI) -> list[Path]:
    """Write page, numbers and what was left out; return the files."""
    from orpo_lightning.pages.files import write_text
    from orpo_lightning.pages.inspect_page import inspect_page

    page, numbers, dropped = (folder / name for name in ("report.html", "report.json", _DROPPED))
    write_text(numbers, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    write_text(page, inspect_page(report))
    dropped.unlink(missing_ok=True)
    has_dropped = cli.datamodule.preparation.write_left_out(dropped) > 0
    return [page, numbers, *([dropped] if has_dropped else [])]


def counts(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report's verdict and counts, without its histograms and texts."""
    splits = {
        name: {
            **part["rows"],
            "pairs": part["pairs"],
            "reasons": {one["reason"]: one["rows"] for one in part["left_out"]},
            "suspicious": {one["kind"]: one["rows"] for one in part["suspicious"]},
            "hints": part["hints"],
        }
        for name, part in report["splits"].items()
    }
    return {"verdict": report["verdict"], "splits": splits, "across": report["across"]}
