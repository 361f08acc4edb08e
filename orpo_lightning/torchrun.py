"""What torchrun says of the processes it started, and how those of a second start meet."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from torch.distributed import TCPStore


def started() -> dict[str, int]:
    """Return `devices` of this node and `num_nodes`, as torchrun started them; nothing without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    counts = {"devices": "LOCAL_WORLD_SIZE", "num_nodes": "GROUP_WORLD_SIZE"}
    return {key: int(os.environ[name]) for key, name in counts.items() if name in os.environ}


def meet_anew(timeout: timedelta) -> None:
    """After a restart (`--max-restarts`), let the processes meet at a store of their own.

    The launcher keeps one store over all starts, and in it the addresses of processes that are dead: who
    reads them before they are written anew waits for a dead process. So rank 0 opens another store, and the
    old one is only asked for its port.

    Args:
        timeout: how long to wait for rank 0.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store, key = TCPStore(host, port, is_master=False, timeout=timeout), f"orpo_lightning/port/{attempt}"
    if os.environ["RANK"] == "0":
        store.set(key, str(_free_port()))
    os.environ["MASTER_PORT"] = store.get(key).decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])
