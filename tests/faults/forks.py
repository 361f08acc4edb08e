"""A process that has imported everything, and forks a command line when it is told to.

Each line on stdin is JSON: {"words": [...], "out": FILE, "err": FILE, "cwd": FOLDER, "env": {...}} answers
the child's process id at once; {"wait": PID} answers its exit code when it has ended.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from typing import Any

import bitsandbytes  # noqa: F401
import datasets  # noqa: F401
import peft  # noqa: F401
import torch.nn.attention.varlen  # noqa: F401
import transformers.models.llama.modeling_llama
import transformers.trainer_pt_utils  # noqa: F401
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.backend.event_processing import event_accumulator  # noqa: F401
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from orpo_lightning import cli  # noqa: F401
from orpo_lightning.__main__ import main

SECONDS = 900


def _start(order: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    os.setsid()
    for descriptor, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags), descriptor)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    rank_zero_only.rank = int(os.environ.get("RANK", "0"))  # read when it was imported
    code = 1
    try:
        code = main(order["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(_wait(order["wait"]) if "wait" in order else _start(order), flush=True)
