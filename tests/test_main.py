"""The front door: which verbs there are, and how they are found."""

from __future__ import annotations

import errno
import importlib
import re
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


def last_line(
    verb: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Return what a verb says of an error that comes out of its work."""
    module, _, function = COMMANDS[verb].function.partition(":")
    command = importlib.import_module(module)

    def broken(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(command, f"_{verb}", broken)
    assert getattr(command, function)([]) == 5
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "verb", ["generate", "chat", "evaluate", "merge", "export", "push", "report", "plan"]
)
def test_the_advice_for_an_error_names_options_of_the_command_alone(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    help_text = importlib.import_module(COMMANDS[verb].function.partition(":")[0]).HELP
    errors = [
        MemoryError("too large"),
        PermissionError(errno.EACCES, "Permission denied", "there"),
        OSError(errno.ENOSPC, "No space left on device", "there"),
    ]
    for error in errors:
        line = last_line(verb, error, monkeypatch, capsys)
        named = re.findall(r"--\w+", line)
        assert [option for option in named if f"  {option} " not in help_text] == []
        assert not re.search(r"\b(?:data|model|trainer)\.", line)
        if isinstance(error, MemoryError) and verb in ("generate", "chat", "evaluate", "merge"):
            assert named
        if isinstance(error, OSError) and "  --out " in help_text:
            assert named == ["--out"]


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
