"""A digest of weights changes with any of them, and with nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orpo_lightning.weights_digest import weights_digest


def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(5, 3, generator=generator).to(dtype),
        "b": torch.randn(7, generator=generator).to(dtype),
        "empty": torch.zeros(0, dtype=dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_one_changed_element_changes_the_digest(dtype: torch.dtype) -> None:
    before = weights_digest(weights(dtype).items())
    assert weights_digest(weights(dtype).items()) == before
    changed = weights(dtype)
    changed["b"][6] += 1
    assert weights_digest(changed.items()) != before


def test_name_and_shape_count() -> None:
    value = torch.ones(4)
    found = {
        weights_digest({name: tensor}.items())
        for name, tensor in (("a", value), ("b", value), ("a", value[None]))
    }
    assert len(found) == 3


def test_a_view_that_is_not_contiguous_is_read_as_its_elements() -> None:
    whole = torch.arange(12.0).view(3, 4)
    assert weights_digest([("w", whole.T)]) == weights_digest([("w", whole.T.contiguous())])


def test_no_weights_have_a_digest_too() -> None:
    assert weights_digest([]) == weights_digest({}.items())
