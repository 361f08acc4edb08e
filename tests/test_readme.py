"""Every command of the README is run here or by the test named here; its Python by test_quickstart.py."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from readme import COMMANDS, PYTHON, ROOT

ELSEWHERE = {
    "git clone <this repository> && cd orpo_lightning": "a clone is what CI runs in",
    "bash scripts/quickstart": "test_quickstart.py",
    "python -m orpo_lightning evaluate runs/quickstart": "scripts/quickstart",
    "python -m orpo_lightning doctor": "test_doctor.py",
    "pip install -c constraints.txt -e .": "scripts/quickstart and scripts/test",
    "pip install -c constraints.txt -e '.[sweep]'": "scripts/test, whose extra dev has it",
    "python -m orpo_lightning report runs/mistral runs/mistral-dora --out compare.html": "test_report.py",
    "tensorboard --logdir runs": "test_tensorboard_finds_the_runs_curves",
    **{
        line: "test_using.py"
        for line in COMMANDS
        if line.split()[3:4] in (["generate"], ["chat"], ["merge"], ["export"], ["push"])
    },
}


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) >= 8
    assert len(PYTHON) == 2


UNDERSTOOD = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from orpo_lightning.__main__ import main
found = []
for words in json.loads(sys.argv[1]):
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([*words, "--print_config"])
        except SystemExit as error:
            code = error.code
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def test_every_command_of_the_readme_is_understood(tmp_path: Path) -> None:
    """All in one process: importing takes far longer than understanding."""
    asked = [shlex.split(command) for command in COMMANDS if command not in ELSEWHERE]
    for words in asked:
        assert words[:3] == ["python", "-m", "orpo_lightning"], f"{shlex.join(words)}: no test runs this"
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run(
        [sys.executable, "-c", UNDERSTOOD, json.dumps([words[3:] for words in asked])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words, (code, out, err) in zip(asked, json.loads(done.stdout), strict=True):
        assert code in (0, None), f"{shlex.join(words)}: {err}"
        assert "base_model: mistralai/Mistral-7B-v0.1" in out, shlex.join(words)
