"""Run the cells of a notebook in order, in one process without Jupyter; write what they print beside them.

python scripts/notebook.py docs/quickstart.ipynb           fails at the first cell that fails
python scripts/notebook.py docs/quickstart.ipynb --write   and keeps what is printed and drawn in the file
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

_MOST_LINES = 60


class Both(io.StringIO):
    """Keeps what is written and shows it."""

    def write(self, text: str) -> int:
        """Write to both."""
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def run(notebook: dict[str, Any]) -> None:
    """Run every code cell; its outputs become what it printed, returned and drew."""
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        printed = Both()
        with redirect_stdout(printed):
            value = _run_cell("".join(cell["source"]), names)
        cell["execution_count"] = count
        cell["outputs"] = [*_text(printed.getvalue()), *_value(value, count), *_figures()]


def _run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; return the value of its last line where that is an expression, as Jupyter shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def _text(printed: str) -> list[dict[str, Any]]:
    lines = printed.replace(str(Path.cwd()), ".").splitlines(keepends=True)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES // 2], "...\n", *lines[-_MOST_LINES // 2 :]]
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _value(value: Any, count: int) -> list[dict[str, Any]]:
    if value is None:
        return []
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    return [{"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"}]


def _figures() -> list[dict[str, Any]]:
    """Return the figures that matplotlib holds, and close them."""
    if "matplotlib.pyplot" not in sys.modules:
        return []
    plt = sys.modules["matplotlib.pyplot"]
    found = []
    for number in plt.get_fignums():
        drawn = io.BytesIO()
        plt.figure(number).savefig(drawn, format="png", dpi=72, bbox_inches="tight")
        data = {"image/png": base64.b64encode(drawn.getvalue()).decode()}
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return found


def main(file: str, *options: str) -> None:
    """Run the notebook of a file, in the current folder."""
    os.environ.setdefault("MPLBACKEND", "agg")
    path = Path(file)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run(notebook)
    if "--write" in options:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
