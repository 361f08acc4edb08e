"""What counts as a secret, in settings and in text, and what only sounds like one."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import Namespace

from orpo_lightning.masking import is_secret, mask, mask_text


@pytest.mark.parametrize(
    "name",
    ["token", "hub_token", "HF_TOKEN", "api_key", "apiKey", "api-key", "apikey", "client_secret", "password",
     "db.password", "secret_value", "access_key", "aws_access_key_id", "private_key", "credentials"],
)  # fmt: skip
def test_a_name_that_says_so_is_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["tokenizer", "tokens_per_batch", "trainable_tokens", "max_tokens", "pad_token", "eos_token", "key",
     "monitor", "passes", "secretary", "monkey", "keys"],
)  # fmt: skip
def test_a_name_that_only_sounds_like_it_is_none(name: str) -> None:
    assert not is_secret(name)


def test_settings_are_masked_wherever_they_stand_and_the_original_is_left_alone() -> None:
    settings: Any = {
        "logger": [Namespace(init_args=Namespace(api_key="abc", project="p", retries=3))],
        "url": "https://me:pw@host/x",
        "token": "",
        "api_key": None,
        "both": ("https://x@y", {"password": "p"}),
    }
    masked = mask(settings)
    assert masked["logger"][0].init_args == Namespace(api_key="***", project="p", retries=3)
    assert masked["url"] == "https://***@host/x"
    assert (masked["token"], masked["api_key"]) == ("", None)
    assert masked["both"] == ("https://***@y", {"password": "***"})
    assert settings["logger"][0].init_args.api_key == "abc"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("from s3://KEY:SECRET@bucket/x and ok", "from s3://***@bucket/x and ok"),
        ("https://hf_x@huggingface.co/o/n", "https://***@huggingface.co/o/n"),
        ("the token hf_AbCdEfGhIjKlMnOpQrSt is refused", "the token hf_*** is refused"),
        ("fit --model.hub_token abc --x 1", "fit --model.hub_token *** --x 1"),
        ("fit --model.hub_token=abc --x 1", "fit --model.hub_token=*** --x 1"),
        ("Logger(api_key=abc, name=n)", "Logger(api_key=***, name=n)"),
        ("{'password': 'a b', 'x': 'y'}", "{'password': '***', 'x': 'y'}"),
        ("error: model.api_key: expected int, found abc", "error: model.api_key: expected int, found ***"),
    ],
)
def test_text_loses_what_stands_behind_a_secrets_name(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "step 3/9  loss 1.2  eta 0:00:01",
        "hf://datasets/o/n@refs/convert/parquet",
        "https://example.com/a@b?c=d",
        "data.tokenizer: expected str, found 3",
        "answers end with '<|im_end|>', 3 tokens: a, b",
        "--data.tokens_per_batch 4096 --model.trainable_tokens [a]",
        "a private one needs a token: `hf auth login`",
    ],
)
def test_text_without_secrets_is_left_as_it_is(text: str) -> None:
    assert mask_text(text) == text
