"""The loop of a sweep: takes a trial, runs it, tells how it went, until all have ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from orpo_lightning.errors import SurroundingsError
from orpo_lightning.masking import mask
from orpo_lightning.sweeping.space import words as in_words
from orpo_lightning.sweeping.study import Study, Taken, import_optuna
from orpo_lightning.sweeping.trial import Ended, run_trial

log = logging.getLogger(__name__)
HOPELESS = 3
"""Trials that may fail before one has succeeded."""
_WAIT_SECONDS = 1.0


def run(study: Study, words: Sequence[str], metric: str, write: Callable[[], None]) -> None:
    """Run trials until all have ended, here or in other processes.

    Args:
        study: with its trials.
        words: of `fit`, for all of them.
        metric: that decides.
        write: called after each trial.

    Raises:
        SurroundingsError: the first trials all failed.
        Stopped: a signal came, here or to the trial under way, which goes on when the sweep is started again.
    """
    while not study.is_over():
        taken = study.take()
        if taken is None:
            time.sleep(_WAIT_SECONDS)  # others run the last ones; should they be killed, those go on here
            continue
        with taken.lock:
            _run(study, taken, words, metric)
        write()
        _stop_if_hopeless(study)


def _run(study: Study, taken: Taken, words: Sequence[str], metric: str) -> None:
    log.info(
        "trial %d (%d of %d have ended): %s",
        taken.name,
        len(study.ended()),
        study.most,
        in_words(mask(taken.settings)),
    )
    ended = run_trial(taken, words, metric)
    states = import_optuna().trial.TrialState
    state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[ended.state]
    if ended.reason:
        taken.trial.set_user_attr("reason", ended.reason)
    study.optuna.tell(taken.trial, ended.value if ended.state == "complete" else None, state=state)
    log.info("trial %d %s", taken.name, _told(study, ended, metric))


def _told(study: Study, ended: Ended, metric: str) -> str:
    if ended.state == "failed":
        return f"failed: {ended.reason}"
    if ended.state == "pruned":
        return (
            f"ended early, after step {ended.step}: {metric} {ended.value:.4g} is behind the others' median"
        )
    best = study.best()
    assert best is not None  # this one has ended
    of = f"trial {study.name_of(best)}"
    return f"ended: {metric} {ended.value:.4g}, best so far {best.value:.4g} ({of})"


def _stop_if_hopeless(study: Study) -> None:
    ended = study.ended()
    if len(ended) < HOPELESS or any(trial.state.name != "FAIL" for trial in ended):
        return
    last = ended[-1]
    raise SurroundingsError(
        f"all of the first {len(ended)} trials failed, the last: {last.user_attrs.get('reason')}; what they "
        f"printed is in {study.run_of(last)}"
    )
