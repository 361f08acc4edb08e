"""`find-lr`: a learning rate to begin with, from a few steps with a rising one."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_lightning.callbacks.rate_ramp import RateRamp

HELP = """usage: orpo-lightning find-lr --config CONFIG.yaml [--steps N] [--KEY VALUE ...]

Trains a few steps with a learning rate that rises from step to step, and says at which the loss falls fastest
and where it diverges. Nothing is kept: no checkpoint, no adapter, no run's folder; the base is not changed.
It is a place to begin: a run with a schedule, or `sweep`, decides.

options:
  --config FILE  YAML file of keys; may be given again, the later file wins
  --steps N      optimizer steps (default: 100)
  --low RATE     the first learning rate (default: 1e-6)
  --high RATE    the last one; it ends before where the loss diverges (default: 1)
  --out DIR      folder for find-lr.html and find-lr.json
  --json         print learning rates, losses and the suggestion as JSON, and nothing else
  --KEY VALUE    any key of `fit`, such as --data.train PATH; `fit --help` lists them

examples:
  orpo-lightning find-lr --config configs/quickstart.yaml
  orpo-lightning find-lr --config configs/mistral.yaml --steps 60 --low 1e-7 --high 1e-2
"""
_KEY = "model.optimizer.init_args.lr"
_ROWS = 12
log = logging.getLogger(__name__)


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.cli_errors import OF_TRAINING
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _find, memory=OF_TRAINING)


def _find(args: list[str]) -> int:
    from orpo_lightning.commands.ramp_cli import RampCLI

    with tempfile.TemporaryDirectory() as folder:
        cli = RampCLI(args, Path(folder))
        ramp = cli.climb()
        if not cli.trainer.is_global_zero:
            return 0
    report = _report(ramp)
    files = _write(cli.config.out, report) if cli.config.out else []
    if cli.config.json:
        print(json.dumps(report, indent=1))
    else:
        log.info("%s", "\n".join([*_table(report), "", *_sentences(report)]))
        if files:
            log.info("written to %s", ", ".join(map(str, files)))
    return 0


def _report(ramp: RateRamp) -> dict[str, Any]:
    from orpo_lightning.errors import UsageError
    from orpo_lightning.rate_curve import FEWEST, smooth, suggest

    rates, losses = ramp.rates, ramp.losses
    finite = next((place for place, loss in enumerate(losses) if loss - loss != 0), len(losses))
    if finite < FEWEST:
        raise UsageError(
            f"expected {FEWEST} steps with a finite loss, found {finite}: {_why_fewer(ramp, finite)}"
        )
    fits = smooth(rates[:finite], losses[:finite])
    return {
        "rates": rates,
        "losses": [loss if loss - loss == 0 else str(loss) for loss in losses],
        "smoothed": [fit.loss for fit in fits],
        "suggestion": suggest(rates, losses)._asdict(),
    }


def _why_fewer(ramp: RateRamp, finite: int) -> str:
    done, planned = len(ramp.losses), len(ramp.planned)
    if finite < done:
        where = f"that of step {finite + 1}, at learning rate {ramp.rates[finite]:.1e}, is not finite"
        return f"{where}; take a smaller --low, or more --steps"
    if done < planned:  # the losses were finite, the gradients were not
        where = f"training ended after {done} of {planned}, at learning rate {ramp.planned[done]:.1e}"
        return f"{where}; take a smaller --low"
    return "take more --steps"


def _table(report: dict[str, Any]) -> list[str]:
    count = len(report["smoothed"])
    shown = sorted({round(place * (count - 1) / (_ROWS - 1)) for place in range(_ROWS)})
    lines = [f"{report['rates'][place]:13.2e}  {report['smoothed'][place]:8.4g}" for place in shown]
    return ["learning rate  loss, smoothed", *lines]


def _sentences(report: dict[str, Any]) -> list[str]:
    found = report["suggestion"]
    lowest = f"the smoothed loss is lowest at {found['lowest']:.1e}"
    diverged = "" if found["diverged"] is None else f" and diverges at {found['diverged']:.1e}"
    if found["rate"] is None:
        early = "" if found["diverged"] is None else f"; it diverges at {found['diverged']:.1e}"
        return [f"no suggestion: {found['reason']}{early}"]
    return [
        f"suggestion: --{_KEY} {found['rate']:.1e} ({found['reason']})",
        f"{lowest}{diverged}; after the warm-up of a longer run less may be better",
    ]


def _write(out: str, report: dict[str, Any]) -> list[Path]:
    from orpo_lightning.pages.files import write_text
    from orpo_lightning.pages.find_lr_page import find_lr_page

    folder = Path(out).expanduser()
    page, numbers = folder / "find-lr.html", folder / "find-lr.json"
    write_text(page, find_lr_page(report, _sentences(report)))
    write_text(numbers, json.dumps(report, indent=1) + "\n")
    return [page, numbers]
