"""Write tokenizers in the formats that `scripts/real_tokenizers` unpacks as folders for `AutoTokenizer`.

    python scripts/convert_tokenizers.py FROM TO NAME ...

Reading SentencePiece models and GGUF files takes the packages sentencepiece and gguf.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def read(folder: Path) -> Any:
    """Return the tokenizer of a folder."""
    from transformers import AutoTokenizer, LlamaTokenizer

    if (folder / "model.gguf").exists():
        return AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    if (folder / "tokenizer.model").exists():
        # As the model's own configuration has it, which is not part of the package.
        return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    return AutoTokenizer.from_pretrained(folder)


def main(source: str, target: str, *names: str) -> None:
    """Convert tokenizers; a folder appears when it is whole."""
    for name in names:
        part = Path(target) / f".{name}.part"
        read(Path(source) / name).save_pretrained(part)
        part.rename(Path(target) / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
