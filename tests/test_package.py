"""What the package offers before anything heavy is imported."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import orpo_lightning
from orpo_lightning import __main__ as front
from orpo_lightning.commands import COMMANDS, SUBCOMMANDS

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "lightning", "transformers", "datasets", "peft"}
_VERBS = [*SUBCOMMANDS, *COMMANDS]
LISTED = f"{', '.join(_VERBS[:-1])} or {_VERBS[-1]}"


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)


def constraints() -> dict[str, str]:
    """Return the pinned version of each package, by its normalised name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    for name in orpo_lightning.__all__:
        assert getattr(orpo_lightning, name) is not None
        assert name in dir(orpo_lightning)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'PreferenceTrainer'"):
        orpo_lightning.PreferenceTrainer  # noqa: B018


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"], ["ftt"], []])
def test_the_front_door_answers_without_importing_anything_heavy(words: list[str]) -> None:
    code = (
        "import sys; from orpo_lightning.__main__ import main; main(sys.argv[1:]); "
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    assert python("-c", code, *words).stdout.endswith("HEAVY []\n")


def test_help_names_every_subcommand_and_every_exit_code() -> None:
    done = python("-m", "orpo_lightning", "--help")
    assert done.returncode == 0
    for word in ("fit", "validate", "test"):
        assert f"\n  {word} " in done.stdout
    codes = done.stdout.partition("exit codes: ")[2].replace("\n", " ")
    assert re.findall(r"(?:^|, )(\d) ", codes) == list("0123456")


def test_version_is_that_of_the_package() -> None:
    done = python("-m", "orpo_lightning", "--version")
    assert done.stdout == f"orpo-lightning {orpo_lightning.__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ftt"], "error: unknown subcommand 'ftt': did you mean fit?"),
        (["train"], f"error: unknown subcommand 'train': expected {LISTED}"),
        ([], f"error: expected a subcommand: {LISTED} (see --help)"),
    ],
)
def test_a_wrong_or_missing_subcommand_is_one_line_and_exit_code_two(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front.main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_the_constraints_fit_what_setup_cfg_asks_for() -> None:
    from packaging.requirements import Requirement

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    pinned = constraints()
    checked = 0
    for line in wanted.splitlines():
        if line and not line.startswith("#") and "orpo-lightning" not in line:
            requirement = Requirement(line)
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), line
            checked += 1
    assert checked >= 12


def test_this_environment_is_the_one_the_constraints_describe() -> None:
    pinned = constraints()
    for name in ("torch", "lightning", "jsonargparse", "transformers", "peft", "bitsandbytes", "trl"):
        assert metadata.version(name).partition("+")[0] == pinned[name]
