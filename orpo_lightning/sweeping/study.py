"""The trials of a sweep in a SQLite file, which several processes may work on at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import IO, Any, NamedTuple

from orpo_lightning import file_locks
from orpo_lightning.errors import SurroundingsError, UsageError
from orpo_lightning.sweeping.space import Choices, Range, Space, grid, settings

log = logging.getLogger(__name__)
DATABASE = "sweep.db"
TRIALS = "trials"
_QUESTION, _NAME, _INSTEAD_OF = "question", "name", "instead_of"
_BUSY_SECONDS = 60
STARTUP = 5
"""Trials that end before any is pruned."""


class Taken(NamedTuple):
    """A trial that this process runs."""

    trial: Any
    """Optuna's."""
    name: int
    """From 1 on; of one that was interrupted, what it was called before."""
    folder: Path
    """Of its run: of one that was interrupted, where it goes on."""
    settings: dict[str, Any]
    """Keys of `fit` and their values."""
    lock: IO[str]
    """Open as long as the trial is run; the system closes it with the process, however that ends."""


class Study:
    """Which trials there are, which is next, and which ran in a process that is gone.

    Args:
        folder: of the sweep.
        space: what is searched.
        question: all that must be the same for trials to be comparable.
        goal: min or max.
        most: trials that are to end, one way or another; None: all of a grid, else 20.
        prunes: whether trials that fall behind are ended early.
        seed: of what is tried next.

    Raises:
        SurroundingsError: Optuna is not installed.
        UsageError: the folder holds a sweep of another question.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        question: Mapping[str, Any],
        *,
        goal: str,
        most: int | None = None,
        prunes: bool = True,
        seed: int = 0,
    ) -> None:
        """Open the folder's trials, or begin them."""
        optuna = import_optuna()
        self.folder, self.space, self.seed = folder, space, seed
        self.grid = grid(space)
        self.most = most or (len(self.grid) if self.grid else 20)
        if self.grid:
            self.most = min(self.most, len(self.grid))
        pruner = optuna.pruners.MedianPruner(STARTUP) if prunes else optuna.pruners.NopPruner()
        with self._turn():
            self.optuna = optuna.create_study(
                study_name="sweep",
                storage=_storage(folder / DATABASE),
                direction={"min": "minimize", "max": "maximize"}[goal],
                pruner=pruner,
                load_if_exists=True,
            )
            self._ask(question)

    def _ask(self, question: Mapping[str, Any]) -> None:
        """Compare the question with that of the trials there are; line up the trials of a new grid."""
        asked = json.loads(json.dumps(question))
        before = self.optuna.user_attrs.get(_QUESTION)
        if before is None:
            for values in Random(self.seed).sample(self.grid or [], len(self.grid or [])):
                self.optuna.enqueue_trial(values)
            self.optuna.set_user_attr(_QUESTION, asked)  # last: a sweep killed in here has asked nothing
        elif before != asked:
            names = ", ".join(key for key in asked if asked[key] != before.get(key))
            raise UsageError(f"{self.folder} holds a sweep with another {names}: set --out NEW for this one")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one process at a time decide what is next."""
        with lock(self.folder / ".turn", wait=True) as _:  # type: ignore[union-attr]
            yield

    def take(self) -> Taken | None:
        """Return the next trial to run; None where all have ended or are run by other processes."""
        with self._turn():
            self._line_up_again()
            if len(self.ended()) + len(self._in("RUNNING")) >= self.most:
                return None
            self.optuna.sampler = self._sampler(len(self.optuna.get_trials(deepcopy=False)))
            trial = self.optuna.ask(_distributions(self.space))
            held = lock(self._lock_of(trial.number))
            assert held is not None  # nobody else knows the trial
        return Taken(trial, self.name_of(trial), self.run_of(trial), settings(self.space, trial.params), held)

    def is_over(self) -> bool:
        """Tell whether all trials have ended."""
        return len(self.ended()) >= self.most

    def ended(self) -> list[Any]:
        """Return the trials that have ended, in their order."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def trials(self) -> list[Any]:
        """Return all trials but those that go on under another number."""
        found = self.optuna.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get(_INSTEAD_OF) for trial in found}
        return [trial for trial in found if trial.number not in replaced]

    def best(self) -> Any | None:
        """Return the best of the trials that were not ended early."""
        found = [trial for trial in self._in("COMPLETE") if trial.value is not None]
        sign = 1 if self.optuna.direction.name == "MINIMIZE" else -1
        return min(found, key=lambda trial: sign * trial.value, default=None)

    def name_of(self, trial: Any) -> int:
        """Return what a trial is called: a number from 1 on, which it keeps when it is interrupted."""
        return int(trial.user_attrs.get(_NAME, trial.number + 1))

    def run_of(self, trial: Any) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / TRIALS / f"{self.name_of(trial):04d}"

    def _line_up_again(self) -> None:
        """Put the trials of processes that are gone back into the queue, to go on in the same folders."""
        for trial in self._in("RUNNING"):
            held = lock(self._lock_of(trial.number))
            if held is None:
                continue
            held.close()
            name = self.name_of(trial)
            self.optuna.enqueue_trial(trial.params, user_attrs={_NAME: name, _INSTEAD_OF: trial.number})
            self.optuna.tell(trial.number, state=import_optuna().trial.TrialState.FAIL)
            log.info("trial %d was interrupted: it goes on from where it was", name)

    def _in(self, state: str) -> list[Any]:
        return [trial for trial in self.trials() if trial.state.name == state]

    def _lock_of(self, number: int) -> Path:
        return self.folder / TRIALS / f".{number:04d}.lock"

    def _sampler(self, begun: int) -> Any:
        """Return what draws the next trial: of the same seed, two processes must not draw the same one."""
        startup = max(self.most // 4, STARTUP)
        return import_optuna().samplers.TPESampler(n_startup_trials=startup, seed=self.seed + begun)


def import_optuna() -> Any:
    """Return the package, its messages off the terminal.

    Raises:
        SurroundingsError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        advice = "pip install 'orpo-lightning[sweep]'"
        raise SurroundingsError(f"sweep needs the package optuna, not installed here: {advice}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _storage(file: Path) -> Any:
    storages = import_optuna().storages
    arguments = {"connect_args": {"timeout": _BUSY_SECONDS}}  # another process may be writing
    return storages.RDBStorage(f"sqlite:///{file.resolve()}", engine_kwargs=arguments)


def _distributions(space: Space) -> dict[str, Any]:
    kinds = import_optuna().distributions

    def one(values: Range | Choices) -> Any:
        if isinstance(values, Choices):
            return kinds.CategoricalDistribution(values.labels)
        kind = kinds.IntDistribution if values.whole else kinds.FloatDistribution
        return kind(values.low, values.high, log=values.log)

    return {key: one(values) for key, values in space.items()}


def lock(file: Path, *, wait: bool = False) -> IO[str] | None:
    """Return a file that this process has locked until it is closed; None where another one has it.

    Args:
        file: made where it is not there.
        wait: until the other one lets go of it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = file.open("a", encoding="utf-8")
    if file_locks.lock(handle, wait=wait):
        return handle
    handle.close()
    return None
