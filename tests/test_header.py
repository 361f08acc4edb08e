"""The header's own rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule
from orpo_lightning.callbacks import RunHeader

ROWS = [{"prompt": f"count {k}", "chosen": f" up {k}", "rejected": f" down {k}"} for k in range(4)]


class Words(PreferenceDataModule):
    """Four pairs."""

    def load_rows(self, split: str) -> Any:
        """Return them for training only."""
        return ROWS if split == "train" else ()


@pytest.mark.parametrize(
    ("stop", "rows", "warned"), [("own", False, False), ("other", False, True), ("other", True, False)]
)
def test_the_header_warns_of_a_stop_token_that_cannot_be_learned(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: str, rows: bool, warned: bool
) -> None:
    caplog.set_level("INFO", logger="orpo_lightning")
    data = Words(tokenizer=tiny_base, max_length=64, cache_dir=str(tmp_path))
    if stop == "other":
        data.processor.eos_token = "<|im_start|>"
    module = PreferenceModule(tiny_base, lora_r=2, trainable_tokens=["<|im_start|>"] if rows else None)
    make_trainer(max_steps=1, callbacks=[RunHeader()]).fit(module, datamodule=data)
    assert ("never have learned to stop with <|im_start|>" in caplog.text) is warned
    assert "4 pairs" in caplog.text
