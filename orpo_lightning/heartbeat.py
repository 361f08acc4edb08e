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
FAILED, DONE = "failed", "done"


class Word(NamedTuple):
    """What a process last said of itself."""

    host: str
    space: str
    """Of process ids: the same number may be another process in another container."""
    pid: int
    state: str
    """A count, or how it ended: FAILED, DONE."""

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

    def look(self, words: Mapping[int, Word], now: float) -> dict[int, str]:
        """Return what is wrong with which rank.

        Args:
            words: the last one of each rank.
            now: seconds of a clock that only goes forward.
        """
        if self._last_look is None or now - self._last_look > self.silent / 2:
            # This process itself was stopped for a while, perhaps all were: nobody is late yet.
            self.heard = {}
        self._last_look = now
        for rank, word in words.items():
            if rank not in self.heard or self.heard[rank][0] != word:
                self.heard[rank] = (word, now)
        return {rank: what for rank in words if rank != self.rank and (what := self._wrong(rank, now))}

    def _wrong(self, rank: int, now: float) -> str | None:
        word, since = self.heard[rank]
        who = f"rank {rank} (process {word.pid} on {word.host})"
        if word.state == DONE:
            return None
        if word.state == FAILED:
            return f"{who} ended with an error of its own, see its message"
        if word.is_gone():
            return f"{who} was killed: by hand, by the scheduler, or for memory"
        if now - since > self.silent:
            return f"{who} has not been heard of for {now - since:.0f} s: it hangs, or its machine is lost"
        return None


class Heartbeat:
    """A thread that says that this process is alive, and calls `on_lost` once when another one is not.

    Args:
        rank: of this process.
        world_size: how many there are.
        on_lost: called in the thread with what is wrong with which rank.
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
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._say(str(self._count))

    def start(self) -> None:
        """Begin; all ranks must have been made by now."""
        self._thread.start()

    def stop(self, state: str = DONE) -> None:
        """Say the last word, if anybody can still hear it, and end the thread."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(INTERVAL)
        try:
            self._say(state)
        except RuntimeError:  # the store is gone, as its process is
            return

    def end_hanging(self, ranks: Mapping[int, str]) -> None:
        """Kill those of the lost ranks that are still there: a stopped process would keep its GPU."""
        for rank in ranks:
            word = self.watch.heard[rank][0] if rank in self.watch.heard else None
            if word is not None and word.is_near and word.state != FAILED and not word.is_gone():
                os.kill(word.pid, signal.SIGKILL)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            lost = self._look()
            if lost:
                self.on_lost(lost)
                return

    def _look(self) -> dict[int, str]:
        self._count += 1
        try:
            self._say(str(self._count))
            said = self._store.multi_get([f"{rank}" for rank in self.ranks])
        except RuntimeError as error:
            return {} if self._stopped.is_set() else self._without_store(error)
        words = {rank: Word.read(value) for rank, value in zip(self.ranks, said, strict=True)}
        return self.watch.look(words, time.monotonic())

    def _without_store(self, error: RuntimeError) -> dict[int, str]:
        """Return who is lost with the store: the launcher keeps it, or rank 0."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or 0 not in self.watch.heard:
            reason = str(error).partition("\n")[0]
            return {0: f"the store at {_address()} does not answer, with rank 0 or its launcher: {reason}"}
        word = self.watch.heard[0][0]
        silent = f"has not answered for {SILENT:.0f} s, so it hangs or is lost"
        how = "was killed" if word.is_gone() else silent
        return {0: f"rank 0 (process {word.pid} on {word.host}), which the others meet at, {how}"}

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
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
