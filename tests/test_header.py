"""The header's own rows."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize(
    ("settings", "accumulate", "row"),
    # Four pairs of one length: two and two, or all in one of four micro-batches a step.
    [({"batch_size": 2}, 2, "2 a step"), ({"batch_size": 1, "tokens_per_batch": 10_000}, 4, "1 of 4 a step")],
)
def test_the_header_says_how_steps_are_split_and_what_is_padding(
    tiny_base: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, int],
    accumulate: int,
    row: str,
) -> None:
    caplog.set_level("INFO", logger="orpo_lightning")
    data = Words(tokenizer=tiny_base, max_length=64, cache_dir=str(tmp_path), layout="padded", **settings)
    module = PreferenceModule(tiny_base, lora_r=2)
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=accumulate, callbacks=[RunHeader()])
    trainer.fit(module, datamodule=data)
    lengths = data.train_dataset.lengths
    longest, rows = (lengths[:, 0] + lengths[:, 1:].amax(1)).max(), 2 * lengths[:, 0] + lengths[:, 1:].sum(1)
    padding = 1 - rows.sum() / (8 * longest)
    tokens = f"{8 * longest / int(row[0]):,.0f} tokens"
    assert re.search(rf"^micro-batches +{row}, of {tokens} \(largest", caplog.text, re.MULTILINE)
    assert f"{padding:.1%} padding" in caplog.text


def test_a_fit_begins_with_what_is_suspicious_in_its_data_and_a_sound_set_with_nothing(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(rows: list[dict[str, str]], name: str) -> str:
        class Given(PreferenceDataModule):
            def load_rows(self, split: str) -> Any:
                return rows if split == "train" else ()

        caplog.clear()
        data = Given(tokenizer=tiny_base, max_length=64, cache_dir=str(tmp_path / name))
        module = PreferenceModule(tiny_base, lora_r=2)
        make_trainer(max_steps=1, callbacks=[RunHeader()], default_root_dir=tmp_path).fit(module, data)
        return "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")

    caplog.set_level("INFO", logger="orpo_lightning")
    sound = [{"prompt": f"count {k}", "chosen": f" up {k}", "rejected": f" down it {k}"} for k in range(8)]
    sound += [{"prompt": f"name {k}", "chosen": f" a thing {k}", "rejected": f" no {k}"} for k in range(8)]
    assert "contradict" not in warnings(sound, "sound")
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in sound[:3]]
    assert "contradict" in warnings([*sound, *turned], "turned")
