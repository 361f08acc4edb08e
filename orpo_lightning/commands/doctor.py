"""`doctor`: what this machine can do, and which configuration fits it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_lightning.checkup.base import Check

HELP = """usage: orpo-lightning doctor [--json]

Looks at Python, processor, memory, GPUs, precision, attention kernels, bitsandbytes (a small layer is
quantised and multiplied), versions of packages, disks and the hub, and says which shipped configurations
fit. Each line is ok, a warning or an error, with what to do. Of the hub only the front page is asked for,
without a token. Exit code 5 where something stands in the way of training, else 0.

options:
  --json         print all lines as JSON, and nothing else

examples:
  orpo-lightning doctor
  orpo-lightning doctor --json
"""
_SIGNS = {"ok": "ok", "warning": "warning", "error": "ERROR"}


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _doctor)


def _doctor(args: list[str]) -> int:
    import logging
    import warnings

    from orpo_lightning.commands.words import Words

    words = Words("doctor")
    words.add_argument("--json", action="store_true")
    asked = words.parse_args(args)
    warnings.simplefilter("ignore")  # a library's remark is no finding of ours
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if not asked.json:
        return _print(_looks())
    found = [check for name, look in _looks() for check in _checked(name, look)]
    print(json.dumps({"checks": [check._asdict() for check in found], "ok": _code(found) == 0}, indent=1))
    return _code(found)


def _looks() -> list[tuple[str, Callable[[], Check | Iterable[Check]]]]:
    """Return what is looked at, the quick things first."""
    from orpo_lightning.checkup import machine, packages, places
    from orpo_lightning.commands import doctor_fit

    return [
        ("Python", machine.python),
        ("system", machine.processor),
        ("disk", places.disks),
        ("packages", packages.versions),
        ("hub", places.hub),
        ("memory", machine.memory),
        ("GPU", machine.gpus),
        ("flash-attn", machine.flash_attention),
        ("bitsandbytes", machine.bitsandbytes),
        ("configurations", doctor_fit.configurations),
    ]


def _checked(name: str, look: Any) -> list[Check]:
    from orpo_lightning.checkup.base import checked

    return checked(name, look)


def _print(looks: list[tuple[str, Any]]) -> int:
    """Print each line as soon as it is known."""
    found: list[Check] = []
    for name, look in looks:
        for check in _checked(name, look):
            found.append(check)
            print(f"{_SIGNS[check.status]:<8} {check.name:<18} {check.found}", flush=True)
            if check.advice:
                print(f"{'':<27} → {check.advice}", flush=True)
    count = {status: sum(check.status == status for check in found) for status in ("error", "warning")}
    told = [f"{number} {status}{'s' * (number != 1)}" for status, number in count.items()]
    print(f"\n{', '.join(told)}")
    return _code(found)


def _code(found: list[Check]) -> int:
    return 5 if any(check.status == "error" for check in found) else 0
