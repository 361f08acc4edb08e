"""The ORPO loss against high precision, the paper, and other people's definitions."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from orpo_lightning.batching.base import Normalisers
from orpo_lightning.logps import PairLogps
from orpo_lightning.objectives import ORPO
from orpo_lightning.objectives.orpo import EPSILON, log_odds


def logps_of(
    chosen: list[float],
    rejected: list[float],
    tokens: tuple[list[int], list[int]] | None = None,
    **more: object,
) -> PairLogps:
    """Return pairs with these mean log-probabilities; 2 prompt tokens of log-probability -1 each."""
    chosen_tokens, rejected_tokens = tokens or ([1] * len(chosen), [1] * len(rejected))
    c, r = torch.tensor(chosen_tokens).float(), torch.tensor(rejected_tokens).float()
    return PairLogps(
        chosen_sum=torch.tensor(chosen) * c,
        rejected_sum=torch.tensor(rejected) * r,
        prompt_sum=torch.full_like(c, -2.0),
        chosen_tokens=c,
        rejected_tokens=r,
        prompt_tokens=torch.full_like(c, 2.0),
        **more,  # type: ignore[arg-type]
    )


def exact_log_odds(logp: float) -> tuple[float, float]:
    """Return value and derivative of log(p / (1 - p)) to 50 digits."""
    with mpmath.workdps(50):
        x = mpmath.mpf(logp)
        return float(mpmath.log(mpmath.exp(x) / (1 - mpmath.exp(x)))), float(1 / (1 - mpmath.exp(x)))


def test_log_odds_and_its_gradient_agree_with_fifty_digits_from_minus_120_to_minus_1e_6() -> None:
    points = [-(10**e) for e in torch.linspace(-6, math.log10(120), 400).tolist()] + [
        -20.0,
        -19.99999,
        -20.00001,
    ]
    x = torch.tensor(points, requires_grad=True)
    log_odds(x).sum().backward()
    exact = [exact_log_odds(value) for value in x.tolist()]
    values = torch.tensor([value for value, _ in exact], dtype=torch.float64)
    slopes = torch.tensor([slope for _, slope in exact], dtype=torch.float64)
    bounded = x.detach() < -EPSILON  # at the bound itself the value is that of the bound
    assert torch.allclose(log_odds(x.detach()).double(), values, rtol=1e-6, atol=1e-6)
    relative = (x.grad.double() - slopes).abs() / slopes
    assert relative[bounded].max() < 2e-7


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-8, -1.0), (-1.0, -1e-8), (-200.0, -0.5)],
)
def test_certain_and_impossible_answers_give_finite_losses_and_gradients(
    chosen: float, rejected: float
) -> None:
    c, r = torch.tensor([chosen], requires_grad=True), torch.tensor([rejected], requires_grad=True)
    policy = logps_of([chosen], [rejected])._replace(chosen_sum=c, rejected_sum=r)
    loss = ORPO(beta=1.0)(policy).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(c.grad).all()
    assert torch.isfinite(r.grad).all()


def test_a_certain_rejected_answer_still_gets_a_gradient_that_lowers_it() -> None:
    rejected = torch.tensor([0.0], requires_grad=True)
    ORPO(beta=1.0)(logps_of([-1.0], [0.0])._replace(rejected_sum=rejected)).loss.backward()
    assert rejected.grad.item() > 1e5


def test_the_gradient_is_the_papers_delta_times_h_with_the_sign_mended() -> None:
    # Eq. 8-10: delta = 1 / (1 + odds(chosen) / odds(rejected)), h = grad c / (1 - p_c) - grad r / (1 - p_r).
    chosen, rejected = torch.tensor([-0.4], requires_grad=True), torch.tensor([-0.9], requires_grad=True)
    output = ORPO(beta=1.0)(logps_of([-0.4], [-0.9])._replace(chosen_sum=chosen, rejected_sum=rejected))
    term = output.terms["odds_ratio_loss"]
    (term.sum / term.step_count).backward()
    p_chosen, p_rejected = math.exp(-0.4), math.exp(-0.9)
    odds = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
    delta = 1 / (1 + odds)
    assert chosen.grad.item() == pytest.approx(-delta / (1 - p_chosen), rel=1e-6)
    assert rejected.grad.item() == pytest.approx(delta / (1 - p_rejected), rel=1e-6)


def test_two_pairs_by_hand() -> None:
    # p = 1/2 has odds 1, p = 1/4 has odds 1/3: ratio 3 one way and 1/3 the other.
    half, quarter = math.log(1 / 2), math.log(1 / 4)
    output = ORPO(beta=0.5)(logps_of([half, quarter], [quarter, half], tokens=([3, 1], [2, 2])))
    nll = (3 * math.log(2) + math.log(4) + 4) / (3 + 1 + 4)
    odds_ratio_loss = (math.log(1 + 1 / 3) + math.log(1 + 3)) / 2
    assert output.loss.item() == pytest.approx(nll + 0.5 * odds_ratio_loss, rel=1e-6)
    means = {name: (mean.sum / mean.count).item() for name, mean in output.metrics.items()}
    assert means["log_odds_ratio"] == pytest.approx(0.0, abs=1e-6)
    assert means["rewards/accuracies"] == 0.5
    assert means["rewards/margins"] == pytest.approx(0.0, abs=1e-7)
    assert means["rewards/chosen"] == pytest.approx(0.5 * (half + quarter) / 2)
    assert means["logps/rejected"] == pytest.approx((half + quarter) / 2)
    assert means["length/longer_is_chosen"] == 0.5  # longer once, shorter once
    assert means["nll/prompt"] == pytest.approx(1.0)
    assert means["nll/completion"] == pytest.approx((3 * math.log(2) + math.log(4)) / 4)


def test_swapping_chosen_and_rejected_flips_the_log_odds_ratio() -> None:
    one = ORPO()(logps_of([-0.3, -2.0], [-1.1, -0.2])).metrics["log_odds_ratio"].sum
    other = ORPO()(logps_of([-1.1, -0.2], [-0.3, -2.0])).metrics["log_odds_ratio"].sum
    assert one.item() == pytest.approx(-other.item())
    assert abs(one.item()) > 0.1


def test_accuracy_is_known_even_where_beta_is_zero() -> None:
    accuracy = ORPO(beta=0.0)(logps_of([-0.3], [-1.1])).metrics["rewards/accuracies"]
    assert (accuracy.sum / accuracy.count).item() == 1.0


PRESETS = {  # name → objective, and the NLL as its authors write it, of lists of token log-probabilities
    "TRL": (
        ORPO(nll_scope="sequence", nll_reduction="token"),
        lambda prompts, answers: -torch.cat([*prompts, *answers]).mean(),
    ),
    "paper": (
        ORPO(nll_scope="sequence", nll_reduction="sequence"),
        lambda prompts, answers: (
            -torch.stack([torch.cat(both).mean() for both in zip(prompts, answers, strict=True)]).mean()
        ),
    ),
    "LLaMA-Factory": (
        ORPO(nll_scope="completion", nll_reduction="sequence"),
        lambda prompts, answers: -torch.stack([answer.mean() for answer in answers]).mean(),
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_nll_of_each_preset_is_what_its_authors_compute(name: str) -> None:
    objective, reference = PRESETS[name]
    torch.manual_seed(0)
    prompts = [-torch.rand(length) for length in (3, 1, 5)]
    answers = [-torch.rand(length) for length in (2, 7, 4)]
    policy = PairLogps(
        chosen_sum=torch.stack([answer.sum() for answer in answers]),
        rejected_sum=torch.full((3,), -1.0),
        prompt_sum=torch.stack([prompt.sum() for prompt in prompts]),
        chosen_tokens=torch.tensor([2.0, 7.0, 4.0]),
        rejected_tokens=torch.ones(3),
        prompt_tokens=torch.tensor([3.0, 1.0, 5.0]),
    )
    term = objective(policy).terms["nll_loss"]
    assert (term.sum / term.step_count).item() == pytest.approx(reference(prompts, answers).item(), rel=1e-6)


def whole_and_parts(objective: ORPO, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return the loss of 12 pairs as one batch, and the sum of that of micro-batches of these sizes."""
    torch.manual_seed(1)
    lengths = torch.randint(1, 20, (3, 12)).float()
    fields = ("chosen_sum", "rejected_sum", "prompt_sum")
    sums = {name: -torch.rand(12) * lengths[row] for row, name in enumerate(fields)}
    counts = dict(zip(("chosen_tokens", "rejected_tokens", "prompt_tokens"), lengths, strict=True))
    totals = Normalisers(torch.tensor(12), lengths[2].sum().long(), lengths[0].sum().long())
    whole = objective(PairLogps(**sums, **counts)).loss
    parts, start = [], 0
    for size in sizes:
        part = {name: value[start : start + size] for name, value in (sums | counts).items()}
        parts.append(objective(PairLogps(**part, normalisers=totals)).loss)
        start += size
    return whole, torch.stack(parts).sum()


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [1] * 12, [7, 5]])
@pytest.mark.parametrize("scope", ["sequence", "completion"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_the_loss_does_not_depend_on_how_the_step_is_split(
    sizes: list[int], scope: str, reduction: str
) -> None:
    whole, parts = whole_and_parts(ORPO(0.3, scope, reduction), sizes)  # type: ignore[arg-type]
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)


def test_an_empty_answer_has_no_weight_and_spoils_nothing() -> None:
    clean = ORPO()(logps_of([-0.5], [-1.0]))
    poisoned = ORPO()(logps_of([-0.5, -0.7], [-1.0, 0.0], tokens=([1, 4], [1, 0])))
    assert poisoned.loss.item() == pytest.approx(clean.loss.item(), rel=1e-6)
    assert poisoned.metrics["pairs/skipped"].sum.item() == 1
    assert poisoned.metrics["rewards/accuracies"].count.item() == 1


def test_a_second_derivative_of_the_log_odds_is_refused_rather_than_wrong() -> None:
    logp = torch.tensor([-0.5, -2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(log_odds(logp).square().sum(), logp, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_saturated_pairs_are_counted() -> None:
    assert ORPO()(logps_of([0.0, -1.0], [-1.0, -2.0])).metrics["pairs/saturated"].sum.item() == 1


@pytest.mark.parametrize("settings", [{"beta": -0.1}, {"beta": math.nan}, {"nll_scope": "prompt"}])
def test_values_that_mean_nothing_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ORPO(**settings)  # type: ignore[arg-type]


def test_the_references_formula_gives_nan_gradients_where_ours_does_not() -> None:
    # Documents why ours is another formula: log(1 - e^x) by torch.where differentiates both branches.
    x = torch.tensor([-1e-8], requires_grad=True)
    where = torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    assert torch.isfinite(where).all()
    where.sum().backward()
    assert not torch.isfinite(x.grad).all()


def test_accuracy_where_the_longer_answer_is_wrong_counts_those_pairs_alone() -> None:
    """Of five pairs three have the longer rejected answer; of these the model prefers the chosen one in two.

    The fourth pair's answers are equally long; the fifth has a longer rejected answer and no chosen one.
    """
    chosen, rejected = [-1.0, -2.0, -0.5, -1.0, -1.0], [-2.0, -1.0, -0.6, -9.0, -9.0]
    policy = logps_of(chosen, rejected, tokens=([3, 3, 2, 4, 0], [5, 7, 9, 4, 6]))
    metrics = ORPO()(policy).metrics
    wrong = metrics["rewards/accuracies_longer_is_wrong"]
    assert (wrong.sum.item(), wrong.count.item()) == (2.0, 3.0)
    assert wrong.pairs is not None
    assert wrong.pairs.sums.tolist() == [1, 0, 1, 0, 0]
    assert wrong.pairs.counts.tolist() == [1, 1, 1, 0, 0]
    overall = metrics["rewards/accuracies"]
    assert (overall.sum.item(), overall.count.item()) == (3.0, 4.0)
