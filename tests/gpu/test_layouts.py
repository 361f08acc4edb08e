"""Every backend that this GPU can run, against the one that runs everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from attention_cases import CASES, by_backend, make_inputs, make_plan
from layout_families import PAIRS, one_at_a_time
from tiny_models import tiny_model

from orpo_lightning.batching import lay_flat
from orpo_lightning.layouts import choose_layout
from orpo_lightning.scoring import score_targets, take_apart
from orpo_lightning.shared_attention import interface, rows
from orpo_lightning.shared_attention.choice import Needs, choose_backend, find_backends

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]

# FlexAttention is compiled anew for each dtype, which takes seconds; half precision comes below.
DTYPES = {"flex_attention": (torch.float32,)}
ALL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = ((150, 60, 90), (1, 200, 30), (40, 40, 300), (0, 50, 20))
BACKENDS = sorted(find_backends("cuda"))


@pytest.fixture(autouse=True)
def _compiled_and_chosen_anew() -> Iterator[None]:
    """Forget what was compiled (after so many variants nothing more is) and what was left out."""
    torch._dynamo.reset()
    before = interface.excluded()
    yield
    interface.exclude(before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(backend, dtype) for backend in BACKENDS for dtype in DTYPES.get(backend, ALL_DTYPES)],
    ids=str,
)
def test_a_backend_gives_the_output_and_gradients_of_the_one_that_pads(
    backend: str, case: str, dtype: torch.dtype
) -> None:
    leaves, recipe = make_inputs(case, LENGTHS, dtype, "cuda")
    width = max(leaves[0].shape[-1], leaves[2].shape[-1])
    features = {name: name in recipe for name in ("window", "softcap")} | {"sinks": len(leaves) == 4}
    device = interface._device(torch.device("cuda", torch.cuda.current_device()))
    choice = choose_backend(device, Needs(dtype, width, **features), {backend})
    if choice.value != backend:
        pytest.skip(choice.reason)
    plan = make_plan(LENGTHS, "cuda")
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = by_backend(rows.attend, exact, plan, recipe)
    found = by_backend(interface._ATTEND[backend], leaves, plan, recipe)
    for one, other in zip(found, wanted, strict=True):
        # A gradient adds up rounded values: what counts is its size as a whole.
        tolerance = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}[dtype]
        gap = (one.double() - other).norm() / other.norm()
        assert gap < tolerance, gap


# One for each thing that kernels find hard: grouped heads, windows, soft-caps, sinks, narrow values, experts.
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3", "mixtral"])
def test_shared_prefixes_on_a_gpu_give_what_one_sequence_at_a_time_gives(family: str) -> None:
    for dtype, tolerance in ((torch.float32, 5e-3), (torch.bfloat16, 0.1)):
        model = tiny_model(family).to("cuda")
        wanted = one_at_a_time(model, PAIRS)
        scorer = take_apart(model.to(dtype))
        assert choose_layout("auto", scorer).value == "shared_prefix"
        assert interface.used.keys() - {"rows"}, "every kernel for GPUs failed the check"
        batch = lay_flat(PAIRS)
        moved = batch._replace(
            model_inputs={name: _to_gpu(value) for name, value in batch.model_inputs.items()},
            **{name: getattr(batch, name).cuda() for name in batch._fields if name.startswith("target_")},
        )
        found, _ = score_targets(scorer, moved)
        assert ((found - wanted).norm() / wanted.norm()).item() < tolerance


def _to_gpu(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.cuda()
    assert isinstance(value, tuple)
    return type(value)(*(one.cuda() if isinstance(one, torch.Tensor) else one for one in value))
