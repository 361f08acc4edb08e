"""Which processes of a run are alive: each says so in a shared store, and reads what the others say."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore

INTERVAL = 2.0
SILENT = 20.0
"""Seconds after which a process that says nothing is taken for hanging; one that is busy says something."""
FAILED, DONE, WAITING = "failed", "done", "waiting"
_STORE = -1
"""Stands among the ranks for the store itself."""


class Word(NamedTuple):
    """What a process last said of itself."""

    host: str
    space: str
    """Of process ids: the same number may be another process in another container."""
    pid: int
    state: str
    """A count, after WAITING where it gave up waiting for another one; or how it ended: FAILED, DONE."""

    @classmethod
    def of_this_process(cls, state: str) -> Word:
        """Return what to say."""
        return cls(socket.gethostname(), _pid_space(), os.getpid(), state)

    @classmethod
    def read(cls, said: bytes) -> Word:
        """Return what was said."""
        host, space, pid, state = said.decode().split("|")
        return cls(host, space, int(pid), state)

    def __str__(self) -> str:
        """Return how it is said."""
        return "|".join(map(str, self))

    @property
    def is_near(self) -> bool:
        """Whether its process id means the same here."""
        return (self.host, self.space) == (socket.gethostname(), _pid_space())

    def who(self, rank: int) -> str:
        """Return the process in words."""
        return f"rank {rank} (process {self.pid} on {self.host})"

    def is_gone(self) -> bool:
        """Tell whether its process has ended; False where that cannot be seen from here."""
        if not self.is_near:
            return False
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return Path("/proc/self").exists()
        return stat.rpartition(")")[2].split()[0] in "ZX"


class Watch:
    """Judges what the others say; a pure object: words and times come in, sentences go out.

    Args:
        rank: the own one, which is not judged.
        silent: seconds without a new word that are too many.
    """

    def __init__(self, rank: int, silent: float = SILENT) -> None:
        """Start with nothing heard."""
        self.rank, self.silent = rank, silent
        self.heard: dict[int, tuple[Word, float]] = {}
        self._last_look: float | None = None
        self._gone: set[int] = set()

    def look(self, words: Mapping[int, Word], now: float) -> dict[int, str]:
        """Return what is wrong with which rank.

        Args:
            words: the last one of each rank.
            now: seconds of a clock that only goes forward.
        """
        # Every word is new after that: this process itself was stopped for a while, perhaps all were.
        if self._last_look is None or now - self._last_look > self.silent / 2:
            self.heard = {}
        self._last_look = now
        for rank, word in words.items():
            if rank not in self.heard or self.heard[rank][0] != word:
                self.heard[rank] = (word, now)
        lost = {rank: what for rank in words if rank != self.rank and (what := self._wrong(rank, now))}
        self._gone = {rank for rank, word in words.items() if word.is_gone()}
        return lost

    def _wrong(self, rank: int, now: float) -> str | None:
        word, since = self.heard[rank]
        who = word.who(rank)
        if word.state == DONE:
            return None
        if word.state == FAILED:
            return f"{who} ended with an error of its own, see its message"
        # Seen twice: its last word, that it failed, may not have been read at the first time.
        if rank in self._gone and word.is_gone():
            return f"{who} was killed: by hand, by the scheduler, or for memory"
        if now - since > self.silent:
            return f"{who} has not been heard of for {now - since:.0f} s: it hangs, or its machine is lost"
        return None


class Heartbeat:
    """Says that this process is alive, and calls `on_lost` once when another one is not.

    One thread talks to the store and a second one judges: no timeout ends a talk with a stopped process.

    Args:
        rank: of this process.
        world_size: how many there are.
        on_lost: called in a thread of its own with what is wrong with which rank.
        store: where all can write; the run's own TCPStore where left out.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        on_lost: Callable[[dict[int, str]], None],
        store: Store | None = None,
    ) -> None:
        """Say the first word; no others are read before `start`."""
        self.rank, self.ranks, self.on_lost = rank, range(world_size), on_lost
        self.watch = Watch(rank)
        self._store = store or _run_store()
        self._stopped = threading.Event()
        self._talks = 0
        self._waits = ""
        self._words: dict[int, Word] = {}
        self._before: dict[int, Word] = {}
        self._broken: RuntimeError | None = None
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True) for run in (self._talk, self._judge)
        ]
        self._say("0")

    def start(self) -> None:
        """Begin; all ranks must have been made by now."""
        for thread in self._threads:
            thread.start()

    def stop(self, state: str = DONE) -> None:
        """Say the last word, if anybody can still hear it, and end the thread."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        talking = self._threads[0]
        if talking.ident is not None:
            talking.join(INTERVAL)
        if self._broken is not None or talking.is_alive():
            return
        try:
            self._say(state)
        except RuntimeError:  # the store ended meanwhile, with its process
            return

    def give_up(self) -> None:
        """Tell the others that this process no longer waits for one of them."""
        self._before, self._waits = self._words, f"{WAITING} "

    def late(self) -> dict[int, str]:
        """Return who has said something since `give_up`, and does not wait: all others wait for those."""
        now = self._words
        return {
            rank: f"{now[rank].who(rank)} is alive but hangs: it did not come to where the others wait"
            for rank in self.ranks
            if rank != self.rank and now.get(rank) != self._before.get(rank) and now[rank].state.isdigit()
        }

    def end_hanging(self, ranks: Mapping[int, str]) -> None:
        """Kill those of the lost ranks that are still there: a stopped process would keep its GPU."""
        for rank in ranks:
            word = self._words.get(rank)
            if word is not None and word.is_near and word.state != FAILED and not word.is_gone():
                os.kill(word.pid, signal.SIGKILL)

    def _talk(self) -> None:
        keys = [f"{rank}" for rank in self.ranks]
        while not self._stopped.is_set():
            try:
                self._say(f"{self._waits}{self._talks}")
                said = self._store.multi_get(keys)
            except RuntimeError as error:
                self._broken = error
                return
            self._words = {rank: Word.read(value) for rank, value in zip(self.ranks, said, strict=True)}
            self._talks += 1
            self._stopped.wait(INTERVAL / 2)  # so there is a new word between any two looks

    def _judge(self) -> None:
        while not self._stopped.wait(INTERVAL):
            talks = Word(_address(), "", 0, str(self._talks))
            lost = self.watch.look({**self._words, _STORE: talks}, time.monotonic())
            if self._broken is not None or _STORE in lost:
                lost = self._without_store()
            if lost and not self._stopped.is_set():
                self.on_lost(lost)
                return

    def _without_store(self) -> dict[int, str]:
        """Return who is lost with the store: rank 0 keeps it, or the launcher."""
        if 0 not in self._words or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            reason = str(self._broken or f"silent for {SILENT:.0f} s").partition("\n")[0]
            return {0: f"the launcher of rank 0, whose store at {_address()} all meet at, is gone ({reason})"}
        word = self._words[0]
        silent = f"has not answered for {SILENT:.0f} s: it hangs, or its machine is lost"
        return (
            {} if word.state == DONE else {0: f"{word.who(0)} {'was killed' if word.is_gone() else silent}"}
        )

    def _say(self, state: str) -> None:
        self._store.set(f"{self.rank}", str(Word.of_this_process(state)))


def _run_store() -> Store:
    """Return a connection of its own to the store at which the run's processes met.

    The process group's own may be in use, and locked, by a thread that waits for another process.
    """
    host, port = _address().rsplit(":", 1)
    store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=SILENT))
    # A launcher keeps its store when it starts all processes again.
    return PrefixStore(f"alive/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
