"""README.md in parts: its commands and its blocks of Python."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"[a-z]+ ", line)]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
