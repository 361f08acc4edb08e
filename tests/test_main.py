"""The front door: which verbs there are, and how they are found."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from orpo_lightning import __main__ as front
from orpo_lightning.commands import COMMANDS
from orpo_lightning.commands.guard import guarded
from orpo_lightning.errors import CheckpointError, DataError

ROOT = Path(__file__).parent.parent


def test_help_names_every_command_with_what_it_does() -> None:
    for name, command in COMMANDS.items():
        assert f"  {name:10} {command.line}\n" in front.help_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_function_of_every_command_is_there(name: str) -> None:
    module, _, function = COMMANDS[name].function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_command_is_suggested(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main([name[:-1]]) == 2
    assert f"did you mean {name}?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_needs_nothing_heavy_and_shows_an_example(name: str) -> None:
    code = (
        "import sys; from orpo_lightning.__main__ import main; code = main(sys.argv[1:]); "
        "print('HEAVY', sorted({'torch', 'numpy', 'lightning', 'transformers', 'yaml'} & set(sys.modules))); "
        "sys.exit(code)"
    )
    words = [sys.executable, "-c", code, name, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: orpo-lightning {name} ")
    assert f"\n  orpo-lightning {name} " in done.stdout
    assert done.stdout.endswith("HEAVY []\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("pairs.jsonl:3: no answer"), 3, "error: pairs.jsonl:3: no answer"),
        (CheckpointError("no such checkpoint"), 4, "error: no such checkpoint"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (KeyError("x"), 1, "error: KeyError: 'x' (set ORPO_DEBUG=1 for the traceback)"),
    ],
)
def test_an_error_of_a_command_is_one_line_and_its_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    assert guarded(command) == code
    assert capsys.readouterr().err == f"{line}\n"
    assert guarded(lambda: 7) == 7
