"""The command line's front door: what needs no torch is answered before torch is imported."""

from __future__ import annotations

import difflib
import logging
import sys

from orpo_lightning import __version__
from orpo_lightning.commands import COMMANDS, GROUPS, SUBCOMMANDS
from orpo_lightning.stop_signals import Stopped, StopSignals

_VERBS = [*SUBCOMMANDS, *COMMANDS]
_USAGE = "usage: orpo-lightning VERB [-c CONFIG.yaml ...] [--KEY VALUE ...]"


def help_text() -> str:
    """Return the text of the top-level `--help`."""
    lines = SUBCOMMANDS | {name: command.line for name, command in COMMANDS.items()}
    listed = []
    for group, names in GROUPS.items():
        there = [f"  {name:10} {lines[name]}" for name in names if name in lines]
        listed += [f"{group}:", *there] if there else []
    verbs = "\n".join(listed)
    return f"""{_USAGE}

ORPO preference training. Every key of the YAML files is also a flag; flags
beat YAML beats defaults. VERB --help has all options and keys.

{verbs}

examples:
  orpo-lightning plan -c configs/mistral.yaml --gpu T4
  orpo-lightning fit -c configs/mistral.yaml -c configs/dora.yaml --resume auto

exit codes: 0 ok, 1 a bug of ours, 2 usage or configuration, 3 data,
4 checkpoint or resume, 5 surroundings (GPU, library, model file, disk),
6 training diverged, 128 + n ended by signal n. ORPO_DEBUG=1 shows tracebacks.
"""


def _expected() -> str:
    return f"{', '.join(_VERBS[:-1])} or {_VERBS[-1]}"


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        args: The words after the program's name; None takes them from `sys.argv`.
    """
    words = sys.argv[1:] if args is None else args
    if not words:
        print(_USAGE, file=sys.stderr)
        print(f"error: expected a subcommand: {_expected()} (see --help)", file=sys.stderr)
        return 2
    if words[0] in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if words[0] == "--version":
        print(f"orpo-lightning {__version__}")
        return 0
    if not words[0].startswith("-") and words[0] not in _VERBS:
        close = difflib.get_close_matches(words[0], _VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected {_expected()}"
        print(f"error: unknown subcommand {words[0]!r}: {hint}", file=sys.stderr)
        return 2
    try:
        with StopSignals():
            return _run(words, args)
    except Stopped as stopped:  # while the libraries were loaded
        print(f"error: {stopped.line}", file=sys.stderr)
        return int(str(stopped.code))


def _run(words: list[str], args: list[str] | None) -> int:
    # Told to every CPU run, but slow and not wrong is all it means; and, of each layer in each pass, that
    # int8 casts what it is given to half precision.
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    if words[0] in COMMANDS:
        return COMMANDS[words[0]].run(words[1:])
    from orpo_lightning import cli

    return cli.main(args)


if __name__ == "__main__":
    sys.exit(main())
