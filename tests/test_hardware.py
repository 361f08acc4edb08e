"""Every generation of hardware is a row here, so that none of them has to be bought."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from orpo_lightning import hardware
from orpo_lightning.errors import SurroundingsError, UsageError
from orpo_lightning.hardware import (
    Device,
    check_attention,
    check_precision,
    choose_attention,
    choose_precision,
    compute_dtype,
    detect_device,
)

T4 = Device("cuda", "Tesla T4", (7, 5))
V100 = Device("cuda", "Tesla V100", (7, 0))
A100 = Device("cuda", "A100", (8, 0))
RTX_4090 = Device("cuda", "RTX 4090", (8, 9))
L4 = Device("cuda", "L4", (8, 9))
H100 = Device("cuda", "H100", (9, 0))
B200 = Device("cuda", "B200", (10, 0))
CPU = Device("cpu", "CPU")
MPS = Device("mps", "Apple GPU")
OLD, NEW = [V100, T4], [A100, RTX_4090, L4, H100, B200]

TABLE = [
    # device, precision, dtype, attention without flash-attn, attention with it
    (V100, "16-mixed", torch.float16, "sdpa", "sdpa"),
    (T4, "16-mixed", torch.float16, "sdpa", "sdpa"),
    (A100, "bf16-mixed", torch.bfloat16, "sdpa", "flash_attention_2"),
    (RTX_4090, "bf16-mixed", torch.bfloat16, "sdpa", "flash_attention_2"),
    (L4, "bf16-mixed", torch.bfloat16, "sdpa", "flash_attention_2"),
    (H100, "bf16-mixed", torch.bfloat16, "sdpa", "flash_attention_2"),
    (B200, "bf16-mixed", torch.bfloat16, "sdpa", "flash_attention_2"),
    (CPU, "32-true", torch.float32, "sdpa", "sdpa"),
    (MPS, "32-true", torch.float32, "sdpa", "sdpa"),
]


@pytest.mark.parametrize(("device", "precision", "dtype", "plain", "flash"), TABLE)
def test_each_device_gets_its_precision_dtype_and_attention(
    device: Device, precision: str, dtype: torch.dtype, plain: str, flash: str
) -> None:
    choice = choose_precision(device)
    assert choice.value == precision
    assert compute_dtype(choice.value) == dtype
    assert choose_attention(device, choice.value).value == plain
    assert choose_attention(device._replace(flash_attn=True), choice.value).value == flash


@pytest.mark.parametrize("device", [*OLD, *NEW, CPU, MPS], ids=lambda device: device.name)
@pytest.mark.parametrize("flash_attn", [False, True])
def test_what_is_chosen_passes_the_checks_of_what_is_set(device: Device, flash_attn: bool) -> None:
    device = device._replace(flash_attn=flash_attn)
    precision = choose_precision(device).value
    check_precision(device, precision)
    check_attention(device, precision, choose_attention(device, precision).value)


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        (T4, "16-mixed", "7.5 has no bfloat16"),
        (H100, "bf16-mixed", "9.0 has bfloat16"),
        (CPU, "32-true", "CPU"),
        (MPS, "32-true", "MPS"),
    ],
)
def test_the_reason_of_a_precision_names_the_fact_it_follows_from(
    device: Device, precision: str, words: str
) -> None:
    choice = choose_precision(device)
    assert choice.value == precision
    assert words in choice.reason


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        (A100, "bf16-mixed", "torch's own flash kernels"),
        (A100._replace(flash_attn=True), "bf16-mixed", "flash-attn is installed"),
        (A100._replace(flash_attn=True), "32-true", "half precision"),
        (T4._replace(flash_attn=True), "16-mixed", "needs capability 8.0"),
        (CPU, "32-true", "CPU"),
    ],
)
def test_the_reason_of_an_attention_kernel_names_what_decided(
    device: Device, precision: str, words: str
) -> None:
    assert words in choose_attention(device, precision).reason


@pytest.mark.parametrize(
    ("device", "precision", "instead"),
    [
        (T4, "bf16-mixed", "use 16-mixed"),
        (V100, "bf16", "use 16-mixed"),
        (T4, "bf16-true", "use 16-mixed"),
        (A100, "bf16-true", "use bf16-mixed"),
        (A100, "16-true", "use bf16-mixed"),
        (CPU, "16-mixed", "use 32-true or bf16-mixed"),
        (CPU, 16, "use 32-true or bf16-mixed"),
        (CPU, "bf16-true", "use bf16-mixed or 32-true"),
        (MPS, "16-mixed", "use 32-true or bf16-mixed"),
        (MPS, "64-true", "use 32-true"),
        (H100, "transformer-engine", "expected one of 32-true"),
    ],
)
def test_a_precision_that_cannot_work_is_refused_by_name_of_the_right_one(
    device: Device, precision: str | int, instead: str
) -> None:
    with pytest.raises(UsageError, match=instead):
        check_precision(device, precision)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        (CPU, "bf16-mixed"),
        (CPU, 32),
        (CPU, "64-true"),
        (MPS, "bf16-mixed"),
        (T4, "32-true"),
        (H100, "16-mixed"),
    ],
)
def test_a_precision_that_works_is_left_to_the_user(device: Device, precision: str | int) -> None:
    check_precision(device, precision)


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        (T4._replace(flash_attn=True), "16-mixed", "8.0 or newer.*use sdpa"),
        (CPU._replace(flash_attn=True), "32-true", "CUDA GPU.*use sdpa"),
        (A100, "bf16-mixed", "flash-attn, not installed.*use sdpa"),
        (A100._replace(flash_attn=True), "32-true", "use bf16-mixed"),
    ],
)
def test_flash_attention_that_cannot_run_is_refused_with_the_way_out(
    device: Device, precision: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_attention(device, precision, "flash_attention_2")


@pytest.mark.parametrize("attention", ["eager", "sdpa", "auto"])
def test_other_attention_kernels_run_anywhere(attention: str) -> None:
    check_attention(T4, "16-mixed", attention)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", torch.bfloat16), (16, torch.float16), ("32", torch.float32), (64, torch.float64)],
)
def test_short_spellings_of_a_precision_mean_the_same(precision: str | int, dtype: torch.dtype) -> None:
    assert compute_dtype(precision) == dtype


def test_the_weakest_of_several_gpus_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [("H100", (9, 0)), ("Tesla T4", (7, 5))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpus[index][1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: gpus[index][0])
    assert detect_device("gpu")[:3] == ("cuda", "Tesla T4", (7, 5))


def test_without_a_gpu_auto_takes_the_cpu_and_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert detect_device("auto") == CPU
    for accelerator in ("gpu", "cuda", "mps"):
        with pytest.raises(SurroundingsError, match=f"{accelerator} is not available: auto takes cpu"):
            detect_device(accelerator)


def test_a_package_of_the_name_without_the_kernels_is_not_taken_for_flash_attn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    assert not hardware._flash_attn_importable()
    package.flash_attn_varlen_func = print  # type: ignore[attr-defined]
    assert hardware._flash_attn_importable()
