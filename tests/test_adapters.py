"""An adapter that is damaged, incomplete or of another base is refused by every command that loads it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from test_trained import as_run
from tiny_models import tiny_model, tiny_tokenizer

from orpo_lightning.__main__ import main
from orpo_lightning.errors import CheckpointError
from orpo_lightning.modeling import add_lora, load_base
from orpo_lightning.using.adapters import add_adapter

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def sealed(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter as a run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    as_run(folder, tiny_base, trainable_tokens=["<|im_end|>"])
    return folder / "adapter"


def changed(sealed: Path, folder: Path, change: Change) -> str:
    """Return an adapter, without manifest, that was saved with other weights."""
    shutil.copytree(sealed, folder, ignore=shutil.ignore_patterns("SHA256SUMS"))
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    return str(folder)


def without_a_layer(weights: dict[str, Any]) -> None:
    for name in [name for name in weights if ".layers.1." in name]:
        del weights[name]


def without_token_rows(weights: dict[str, Any]) -> None:
    for name in [name for name in weights if "token_adapter" in name]:
        del weights[name]


def with_a_layer_more(weights: dict[str, Any]) -> None:
    weights |= {name.replace(".layers.1.", ".layers.7."): value.clone() for name, value in weights.items()}


FAULTS: dict[str, tuple[Change, str]] = {
    "incomplete": (
        without_a_layer,
        r"lacks \d+ weights \(first .*layers\.1.* it is not whole, or was",
    ),
    "without token rows": (without_token_rows, r"lacks 1 weights \(first .*token_adapter.* is not whole"),
    "of another base": (
        with_a_layer_more,
        r"has \d+ weights \(first .*layers\.7.* no layer for: it was",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "words",
    [
        "generate {adapter} --prompts {file} --out {out} --accelerator cpu",
        "chat {adapter} --accelerator cpu",
        "evaluate {adapter} --pairs {file} --out {out} --accelerator cpu",
        "merge {adapter} --out {out} --accelerator cpu",
        "export {adapter} --out {out}",
    ],
    ids=lambda words: words.partition(" ")[0],
)
def test_an_adapter_that_does_not_fit_its_base_is_exit_four_in_one_line(
    sealed: Path, tmp_path: Path, fault: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, line = FAULTS[fault]
    adapter = changed(sealed, tmp_path / "adapter", change)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "the thing", "chosen": "it is", "rejected": "it was"}\n' * 2)
    given = words.format(adapter=adapter, file=pairs, out=tmp_path / "out").split()
    assert main(given) == 4
    told = [text for text in capsys.readouterr().err.splitlines() if "error" in text or "arning" in text]
    assert len(told) == 1
    assert re.search(line, told[0])


@pytest.mark.parametrize("verb", ["generate", "merge", "export"])
def test_weights_that_are_not_those_of_the_manifest_are_refused(
    sealed: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sealed, tmp_path / "adapter"))
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the thing"}\n')
    more = ["--prompts", str(prompts)] if verb == "generate" else []
    assert main([verb, str(folder), "--out", str(tmp_path / "out"), *more]) == 4
    assert f"{weights} is not what was written: its digest differs from" in capsys.readouterr().err


def test_a_card_or_a_template_of_ones_own_does_not_stop_an_adapter(
    sealed: Path, tiny_base: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sealed, tmp_path / "adapter"))
    (folder / "README.md").write_text("mine")
    assert add_adapter(load_base(tiny_base), str(folder)).active_adapter == "default"


def test_an_adapter_that_began_with_the_weights_of_its_base_is_exported_without_them(
    tiny_base: str, tmp_path: Path
) -> None:
    model = add_lora(
        load_base(tiny_base), r=4, alpha=8, dropout=0.0, targets="all-linear", variant="lora", init="pissa"
    )
    model.save_pretrained(tmp_path / "adapter")
    assert main(["export", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]) == 0


def test_an_adapter_of_another_width_is_told_so(sealed: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    base = tiny_model("llama", tokenizer=tokenizer, hidden_size=32)
    with pytest.raises(CheckpointError, match="is not of this base: its weights have other shapes"):
        add_adapter(base, str(sealed))
