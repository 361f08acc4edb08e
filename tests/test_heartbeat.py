"""Processes that are killed, stopped or failing are told apart, and none is accused that is well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from orpo_lightning import heartbeat
from orpo_lightning.heartbeat import DONE, FAILED, Heartbeat, Watch, Word

HERE = Word.of_this_process("1")


def far(state: str) -> Word:
    """Return the word of a process on another machine."""
    return Word("elsewhere", "pid:[1]", 1, state)


def test_a_word_is_read_as_it_was_said() -> None:
    assert Word.read(str(HERE).encode()) == HERE


def test_a_rank_that_says_something_new_in_time_is_well() -> None:
    watch = Watch(0)
    for count in range(10):
        assert watch.look({0: HERE, 1: far(str(count))}, 15.0 * count / 2) == {}


def test_a_rank_that_repeats_itself_for_too_long_hangs() -> None:
    watch = Watch(0)
    looks = [watch.look({0: HERE, 1: far("7"), 2: far(str(now))}, float(now)) for now in range(0, 26, 2)]
    silent = [now for now, lost in zip(range(0, 26, 2), looks, strict=True) if lost]
    assert silent == [22, 24]
    assert looks[-1].keys() == {1}
    assert "rank 1 (process 1 on elsewhere) has not been heard of for 24 s" in looks[-1][1]


def test_a_process_that_was_stopped_itself_accuses_nobody() -> None:
    watch = Watch(0)
    watch.look({0: HERE, 1: far("7")}, 0.0)
    assert watch.look({0: HERE, 1: far("7")}, 500.0) == {}
    assert watch.look({0: HERE, 1: far("8")}, 502.0) == {}


def test_a_rank_that_is_done_may_be_silent_and_one_that_failed_is_told() -> None:
    watch = Watch(0)
    for now in range(0, 60, 2):
        assert watch.look({0: HERE, 1: far(DONE)}, float(now)) == {}
    assert "ended with an error of its own" in watch.look({0: HERE, 1: far(FAILED)}, 60.0)[1]


@pytest.mark.parametrize("is_reaped", [False, True])
def test_a_killed_process_of_this_machine_is_seen_at_the_second_look(is_reaped: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    word = HERE._replace(pid=child.pid)
    watch = Watch(0)
    assert watch.look({0: HERE, 1: word}, 0.0) == {}
    child.kill()
    if is_reaped:
        child.wait()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert watch.look({0: HERE, 1: word}, 1.0) == {}  # it may have had a last word
    assert f"rank 1 (process {child.pid} on " in watch.look({0: HERE, 1: word}, 3.0)[1]
    assert "ended with an error" in watch.look({0: HERE, 1: word._replace(state=FAILED)}, 3.0)[1]
    child.wait()


def test_the_same_number_in_another_container_is_another_process() -> None:
    gone = HERE._replace(pid=2**22 - 1)
    assert gone.is_gone()
    assert not gone._replace(space="pid:[1]").is_gone()


def test_two_heartbeats_find_the_third_that_stops_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
    store, found = HashStore(), {}
    store.set_timeout(timedelta(seconds=5))
    beats = [
        Heartbeat(rank, 3, lambda lost, rank=rank: found.update({rank: lost}), store) for rank in range(3)
    ]
    for beat in beats:
        beat.watch = Watch(beat.rank, silent=0.5)
    for beat in beats[:2]:
        beat.start()
    for beat in beats[:2]:
        beat._threads[1].join(10)
    assert {rank: set(lost) for rank, lost in found.items()} == {0: {2}, 1: {2}}
    assert "has not been heard of" in found[0][2]


def test_a_hanging_process_is_killed_and_one_elsewhere_is_let_be() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    os.kill(child.pid, signal.SIGSTOP)
    beat = Heartbeat(0, 3, lambda lost: None, HashStore())
    beat._words = {0: HERE, 1: HERE._replace(pid=child.pid), 2: far("1")}
    beat.end_hanging({1: "", 2: ""})
    assert child.wait(10) == -signal.SIGKILL


def test_a_store_that_no_longer_answers_is_rank_zero_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher's store; a read of a stopped process's one never returns, whatever its timeout."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    answer, found = threading.Event(), []

    class Stopped:
        """A store that answers once."""

        def set(self, key: str, value: str) -> None:
            """Take a word."""

        def multi_get(self, keys: list[str]) -> list[bytes]:
            """Wait, but for the first time."""
            if beat._talks:
                answer.wait()
            return [str(far("1")).encode() for _ in keys]

    beat = Heartbeat(1, 2, found.append, Stopped())  # type: ignore[arg-type]
    beat.watch = Watch(1, silent=0.5)
    beat.start()
    beat._threads[1].join(10)
    answer.set()
    assert [list(lost) for lost in found] == [[0]]
    assert "rank 0 (process 1 on elsewhere) has not answered for 20 s" in found[0][0]


def test_who_does_not_wait_where_all_others_do_hangs() -> None:
    beat = Heartbeat(0, 4, lambda lost: None, HashStore())
    beat._words = {0: HERE, 1: far("5"), 2: far("5"), 3: far("5")}
    beat.give_up()
    assert beat.late() == {}
    beat._words = {0: HERE, 1: far("waiting 6"), 2: far("6"), 3: far("5")}
    late = beat.late()
    assert list(late) == [2]
    assert "rank 2 (process 1 on elsewhere) is alive but hangs" in late[2]
