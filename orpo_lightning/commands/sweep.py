"""`sweep`: many runs of a configuration with other values of some keys, and which of them is best."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_lightning import __version__
from orpo_lightning.masking import mask, mask_text

if TYPE_CHECKING:
    from orpo_lightning.sweeping.study import Study

HELP = """usage: orpo-lightning sweep --config CONFIG.yaml --search SPACE.yaml [--trials N] [--KEY VALUE ...]

Runs `fit` again and again with other values of some keys, and says which are best. SPACE.yaml has any keys of
`fit`, each with a list of values, or with low and high, and log: true where it spans powers of ten:

  model.optimizer.init_args.lr: {low: 1e-5, high: 1e-3, log: true}
  model.objective.init_args.beta: [0.1, 0.3, 1.0]

Only lists: all combinations are tried. Else Optuna's TPE sampler draws. A trial is a run in a folder and a
process of its own: one that fails is a failed trial, one that falls behind the median of the others is ended
early. What was stopped or killed goes on with the same command. The same command started twice shares the
trials out: for two GPUs, once with CUDA_VISIBLE_DEVICES=0 and once with 1. Needs the extra `sweep`.

options:
  --config FILE       YAML file of keys; may be given again, the later file wins
  --search FILE       the search space
  --trials N          how many in all (default: all combinations, or 20)
  --out DIR           the sweep's folder (default: sweeps/NAME_OF_SEARCH_FILE)
  --metric NAME       what decides, as it is logged in validation (default: val/loss; where keys of the
                      objective are searched, which change the loss itself, another must be named)
  --goal min|max      which of its values are good (default: what the metric's name says)
  --pruner NAME       median, or none: every trial runs to its end (default: median)
  --json              print the trials as JSON, and nothing else
  --KEY VALUE         any key of `fit`, such as --data.train PATH; `fit --help` lists them

The folder has sweep.html, sweep.json, best.yaml (for `fit --config`) and trials/NUMBER/, each a run's.

examples:
  orpo-lightning sweep --config configs/quickstart.yaml --search configs/sweeps/lr.yaml --trials 6
  orpo-lightning sweep -c configs/mistral.yaml --search configs/sweeps/lr.yaml --metric val/rewards/accuracies
"""
_OWN = ("search", "trials", "out", "metric", "goal", "pruner", "json")
log = logging.getLogger(__name__)


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _sweep)


def _sweep(args: list[str]) -> int:
    from orpo_lightning.callbacks.header import aligned
    from orpo_lightning.sweeping.report import as_json, table
    from orpo_lightning.sweeping.runner import run
    from orpo_lightning.sweeping.study import import_optuna

    import_optuna()
    sweep = _Sweep(args)
    if not sweep.config.json:
        log.info("%s", aligned(sweep.rows()))
    run(sweep.study, sweep.words, sweep.metric, sweep.write)
    sweep.write()
    report = as_json(sweep.study, sweep.facts)
    if sweep.config.json:
        print(json.dumps(report, indent=1))
    else:
        log.info("%s\nwritten to %s", table(report), ", ".join(map(str, sweep.files)))
    return 0 if report["best"] is not None else 5


class _Sweep:
    """A sweep as its command line asks for it."""

    def __init__(self, args: list[str]) -> None:
        """Read and check everything before the first trial."""
        from orpo_lightning.errors import UsageError
        from orpo_lightning.sweeping.space import corners, flags, read_space
        from orpo_lightning.sweeping.study import Study

        self.words, own = others(args)
        self.config = config = _parsed(args)
        if config.search is None:
            raise UsageError("--search is not set: name a YAML file of keys and their values (sweep --help)")
        self.space = read_space(config.search)
        self.metric, self.goal = config.metric, _goal(config)
        if config.metric.startswith("val") and config.data.get("validation") is None:
            raise UsageError("data.validation is not set: trials are compared by their validation")
        _refuse_moving_measure(self.metric, self.space)
        for values in corners(self.space):
            _parsed([*self.words, *flags(values)])
        self.folder = Path(config.out or Path("sweeps") / Path(config.search).stem).expanduser()
        self.study: Study = Study(
            self.folder,
            self.space,
            {
                "search space": {key: list(values) for key, values in self.space.items()},
                "metric": self.metric,
                "goal": self.goal,
                "configuration": _digest(config),
            },
            goal=self.goal,
            most=config.trials,
            prunes=config.pruner == "median",
            seed=int(config.seed_everything if config.seed_everything is not True else 0),
        )
        self.facts = {
            "package": __version__,
            "created": datetime.now().isoformat(timespec="seconds"),
            "command": mask_text(f"sweep {shlex.join([*own, *self.words])}"),
            "metric": self.metric,
            "goal": self.goal,
        }
        self.files = [self.folder / name for name in ("sweep.html", "sweep.json")]

    def rows(self) -> dict[str, str]:
        """Return the header's rows."""
        study = self.study
        drawn = "Optuna's TPE, since a key has a range"
        if study.grid:
            drawn = f"all {len(study.grid)} combinations, since every key has a list of values"
        ended = len(study.ended())
        return {
            "searched": ", ".join(self.space),
            "trials": f"{study.most} ({drawn})" + (f", {ended} have ended before" if ended else ""),
            "compared by": f"{self.metric}, {self.goal}",
            "pruned": f"by the {self.config.pruner}",
            "written to": str(self.folder),
        }

    def write(self) -> None:
        """Write page, numbers and the best settings so far, each file whole or not at all."""
        from orpo_lightning.pages.files import write_text
        from orpo_lightning.pages.sweep_page import sweep_page
        from orpo_lightning.sweeping.report import as_json

        report = as_json(self.study, self.facts)
        page, numbers = self.files[:2]
        write_text(page, sweep_page(report))
        write_text(numbers, json.dumps(report, indent=1) + "\n")
        best = self.study.best()
        if best is not None:
            file = self.folder / "best.yaml"
            write_text(file, self._best_yaml(best))
            self.files = [page, numbers, file]

    def _best_yaml(self, best: Any) -> str:
        import yaml

        from orpo_lightning.sweeping.space import flags, settings, words

        values = settings(self.space, best.params)
        config = mask(_parsed([*self.words, *flags(values)], with_own=False))
        head = f"# Trial {self.study.name_of(best)} of {self.folder}: {self.metric} {best.value:.6g} with "
        head += words(mask(values))
        return f"{head}\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _parsed(args: Sequence[str], *, with_own: bool = True) -> Any:
    """Return the configuration that the words stand for; without the sweep's own keys as a plain mapping."""
    import yaml

    from orpo_lightning import runfolder
    from orpo_lightning.commands.config_cli import ConfigCLI

    cli = ConfigCLI("sweep", list(args), add_options=_add_options)
    if cli.config.json:
        runfolder.log_to_console(1)  # the CLI has switched it on again
    if with_own:
        return cli.config
    text = cli.parser.dump(cli.config, skip_none=False, skip_validation=True)
    plain = yaml.safe_load(text)
    return {key: value for key, value in plain.items() if key not in (*_OWN, "run_dir", "resume", "config")}


def _add_options(parser: Any) -> None:
    from jsonargparse.typing import PositiveInt

    parser.add_argument("--search", type=str | None, default=None, help="YAML file of the search space.")
    parser.add_argument("--trials", type=PositiveInt | None, default=None, help="How many in all.")
    parser.add_argument("--out", type=str | None, default=None, help="The sweep's folder.")
    parser.add_argument("--metric", type=str, default="val/loss", help="What decides.")
    parser.add_argument("--goal", choices=["min", "max"], help="Which of its values are good.")
    parser.add_argument("--pruner", choices=["median", "none"], default="median", help="What ends trials.")
    parser.add_argument("--json", action="store_true", help="Print the trials as JSON.")


def others(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that every trial is run with, and the sweep's own."""
    rest: list[str] = []
    own: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, _ = word.partition("=")
        if name.removeprefix("--") not in _OWN or not name.startswith("--"):
            rest.append(word)
            continue
        own.append(word)
        if not equals and name != "--json":
            own += [following] if (following := next(words, None)) is not None else []
    return rest, own


def _goal(config: Any) -> str:
    from orpo_lightning.errors import UsageError
    from orpo_lightning.sweeping.report import goal_of

    goal = config.goal or goal_of(config.metric)
    if goal is None:
        raise UsageError(
            f"--goal: expected min or max: which of them is good of {config.metric} is not known"
        )
    return str(goal)


def _refuse_moving_measure(metric: str, space: Any) -> None:
    """Stop where what is searched is part of what trials would be compared by."""
    from orpo_lightning.errors import UsageError

    name = metric.partition("/")[2]
    moving = [key for key in space if key.startswith("model.objective")]
    if moving and name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins"):
        raise UsageError(
            f"--metric {metric}: its value depends on {moving[0]} itself, which is searched; compare by "
            "val/odds_ratio_loss, val/nll_loss or val/rewards/accuracies"
        )


def _digest(config: Any) -> str:
    """Return a digest of all keys that a trial is run with."""
    plain = {key: value for key, value in config.as_dict().items() if key not in (*_OWN, "config")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
