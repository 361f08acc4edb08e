"""Runs command lines, each in a process of its own; what takes seconds to import is imported once for all.

Called with two JSON files: the cases {name: words}, and one to write the results {name: {code, ...}} to.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from orpo_lightning import cli  # noqa: F401  (it imports torch, Lightning and transformers)
from orpo_lightning.__main__ import main

SECONDS = 100
# So that files may change between two command lines.
COPY = "copy"


def run(words: list[str], streams: tuple[Path, Path]) -> dict[str, Any]:
    """Run one command line in a fork; return its exit code, what it wrote, and its peak memory in bytes."""
    child = os.fork()
    if child == 0:
        _become(words, streams)
    _, status, usage = os.wait4(child, 0)
    out, err = (stream.read_text(encoding="utf-8") for stream in streams)
    return {"code": os.waitstatus_to_exitcode(status), "out": out, "err": err, "peak": usage.ru_maxrss << 10}


def _become(words: list[str], streams: tuple[Path, Path]) -> None:
    for descriptor, stream in zip((1, 2), streams, strict=True):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    code = 1
    try:
        code = _copy(*words[1:]) if words[0] == COPY else main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _copy(source: str, target: str) -> int:
    shutil.copy(source, target)
    return 0


if __name__ == "__main__":
    cases, results = map(Path, sys.argv[1:])
    streams = (results.with_suffix(".out"), results.with_suffix(".err"))
    found = {name: run(words, streams) for name, words in json.loads(cases.read_text()).items()}
    results.write_text(json.dumps(found))
