"""What a run's figures are said to mean: each fault by its name, and nothing of a run that is well."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from orpo_lightning.observing.evidence import of_correlation, of_difference, of_mean, of_share
from orpo_lightning.observing.finding import (
    DISPLACEMENT,
    DIVERGING,
    LEARNING,
    LENGTH_ONLY,
    NOT_LEARNING,
    REVERSED,
)
from orpo_lightning.observing.findings import findings
from tests.run_folder import Row, curve, curves, noisy, pairs


def kinds(rows: list[Row], of_pairs: Row | None) -> list[str]:
    return [found.kind for found in findings(rows, of_pairs)]


def instead(name: str, values: list[Any]) -> list[Row]:
    """Return the lines of a run that learns, one quantity replaced."""
    rest = [{key: value for key, value in row.items() if key != name} for row in curves()]
    return [*rest, *curve(name, values)]


def test_a_run_that_learns_is_said_to_learn_and_nothing_else() -> None:
    (found,) = findings(curves(), pairs())
    assert found.kind == LEARNING
    # The figures are those of the pairs: computed here another way.
    now = float((pairs()["chosen"] > pairs()["rejected"]).mean())
    before = float((pairs()["base_chosen"] > pairs()["base_rejected"]).mean())
    assert f"accuracy {before:.3f} → {now:.3f}" in found.sentence


def test_without_pairs_the_logged_validations_say_it() -> None:
    (found,) = findings(curves(), None)
    assert found.kind == LEARNING
    assert "0.600 → 0.930 since the first validation" in found.sentence


def test_of_nothing_nothing_is_said() -> None:
    assert findings([], None) == []
    assert findings([{"step": 1, "train/loss": 2.0}], None) == []


def test_runs_in_which_nothing_happens_raise_no_alarm() -> None:
    said = []
    for seed in range(60):
        still = []
        for name, level in (("loss", 2.0), ("rewards/accuracies", 0.5), ("rewards/margins", 0.0)):
            still += curve(f"train/{name}", noisy(level, level, noise=0.1, seed=seed))
        said += kinds(still, pairs(base=(0.0, 0.5), moved=(0.0, 0.0), seed=seed))
    assert said.count(NOT_LEARNING) >= 57  # one in a hundred may rise by chance
    assert set(said) <= {NOT_LEARNING, LEARNING}


def test_reversed_labels_are_found_by_held_out_pairs_going_the_other_way() -> None:
    (found,) = findings(curves(), pairs(base=(0.2, 0.5), moved=(-0.4, 0.4)))
    assert found.kind == REVERSED
    assert "opposite answers" in found.sentence


def without_base(content: Row) -> Row:
    """Return pairs of a run that trains all weights, or begins with PiSSA or LoftQ."""
    for name in ("base_chosen", "base_rejected"):
        content[name] = np.full_like(content[name], np.nan)
    return content


def validated(*accuracies: float, half: float = 0.05) -> list[Row]:
    """Return the lines of a run that learns its training pairs, with these held-out accuracies."""
    rows = [{k: v for k, v in row.items() if not k.startswith("val")} for row in curves()]
    for index, value in enumerate(accuracies):
        ends = {"val_ci_low/rewards/accuracies": value - half, "val_ci_high/rewards/accuracies": value + half}
        rows.append({"step": 25 * (index + 1), "val/rewards/accuracies": value, **ends})
    return rows


def test_where_the_base_is_gone_the_first_validation_is_what_held_out_pairs_are_compared_with() -> None:
    (found,) = findings(validated(0.70, 0.60, 0.45), without_base(pairs()))
    assert found.kind == NOT_LEARNING
    assert "held-out accuracy 0.700 → 0.450 since the first validation" in found.sentence
    assert "worse than before" in found.sentence
    assert kinds(validated(0.60, 0.20), without_base(pairs())) == [REVERSED]
    (found,) = findings(validated(0.60, 0.93), without_base(pairs()))
    assert found.kind == LEARNING
    assert "0.600 → 0.930 since the first validation" in found.sentence
    (found,) = findings(validated(0.93, 0.93), without_base(pairs()))
    assert found.kind == NOT_LEARNING
    assert "what was learned before that validation is not seen here" in found.sentence


def test_a_single_validation_without_a_base_is_told_and_more_are_advised() -> None:
    content = without_base(pairs())
    (found,) = findings(validated(0.8), content)
    now = float((content["chosen"] > content["rejected"]).mean())
    assert f"held-out accuracy is {now:.3f}" in found.sentence
    assert "no pairs held out" not in found.sentence
    assert "trainer.val_check_interval" in found.advice


def test_pairs_of_one_prompt_count_as_one_draw_in_logged_validations_too() -> None:
    one_each = without_base(pairs(moved=(0.0, 0.0), noise=0.0))
    # Twenty prompts, of each the same pair ten times.
    as_ten = {
        key: np.repeat(value[:20], 10, 0) if np.ndim(value) and len(value) == 200 else value
        for key, value in one_each.items()
    }
    rows = validated(0.70, 0.50)
    assert "worse than before" in findings(rows, one_each)[0].sentence
    assert "no more than chance" in findings(rows, as_ten)[0].sentence


def test_reversed_labels_are_found_in_logged_validations_alone() -> None:
    rows = [{k: v for k, v in row.items() if not k.startswith("val")} for row in curves()]
    for step, accuracy in ((25, 0.5), (100, 0.1)):
        ends = {
            "val_ci_low/rewards/accuracies": accuracy - 0.05,
            "val_ci_high/rewards/accuracies": accuracy + 0.05,
        }
        rows.append({"step": step, "val/rewards/accuracies": accuracy, **ends})
    assert kinds(rows, None) == [REVERSED]


def test_accuracy_that_falls_a_little_by_overfitting_is_not_called_reversed() -> None:
    few = pairs(base=(0.6, 0.3), moved=(-0.02, 0.0), noise=0.3)
    assert REVERSED not in kinds(curves(), few)


@pytest.mark.parametrize("last", ["NaN", "Infinity"])
def test_a_loss_that_is_not_finite_is_diverging(last: str) -> None:
    (found,) = findings(instead("train/loss", [*noisy(3, 1, 19), last]), pairs())
    assert found.kind == DIVERGING
    assert "not finite, first at step 100" in found.sentence


def test_one_odd_value_on_the_way_is_not() -> None:
    values: list[Any] = [*noisy(3, 1, 10), "NaN", *noisy(1.1, 1, 9)]
    assert kinds(instead("train/loss", values), pairs()) == [LEARNING]


@pytest.mark.parametrize("last_is_odd", [False, True])
def test_a_step_left_out_once_an_epoch_is_not_a_run_that_diverges(last_is_odd: bool) -> None:
    values: list[Any] = noisy(3, 1.2, 20)
    odd = (5, 12, 19) if last_is_odd else (4, 11, 18)
    for place in odd:
        values[place] = "NaN"
    skipped = curve("train/skipped_steps", [sum(place >= one for one in odd) for place in range(20)])
    assert kinds([*instead("train/loss", values), *skipped], pairs()) == [LEARNING]


def test_a_run_whose_last_steps_were_left_out_is_diverging() -> None:
    values: list[Any] = [*noisy(3, 1, 199), "NaN"]
    skipped = curve("train/skipped_steps", [*[0.0] * 199, 4])
    (found,) = findings([*instead("train/loss", values), *skipped], pairs())
    assert found.kind == DIVERGING


def test_a_held_out_loss_that_is_not_finite_at_the_end_is_diverging_and_on_the_way_it_is_not() -> None:
    for values, expected in (([2.0, "NaN", "NaN", 1.4], LEARNING), ([2.0, 1.9, 1.8, "NaN"], DIVERGING)):
        rows = [row for row in curves() if "val/loss" not in row]
        assert kinds([*rows, *curve("val/loss", values, every=25)], pairs())[0] == expected


def test_a_loss_that_goes_up_and_stays_is_diverging() -> None:
    up = [*noisy(3, 1.5, 8), *noisy(1.5, 6, 12)]
    (found,) = findings(instead("train/loss", up), pairs())
    assert found.kind == DIVERGING
    assert "went up" in found.sentence
    assert kinds(instead("train/loss", noisy(3, 7)), pairs()) == [DIVERGING]


def test_a_loss_that_levels_off_with_a_bump_is_not() -> None:
    for seed in range(30):
        bump = [*noisy(3, 1.2, 14, seed=seed), *noisy(1.35, 1.3, 6, noise=0.05, seed=seed)]
        assert DIVERGING not in kinds(instead("train/loss", bump), pairs())


def test_chosen_answers_that_are_unlearned_are_diverging() -> None:
    (found,) = findings(curves(), pairs(moved=(-2.0, -3.0)))
    assert found.kind == DIVERGING
    assert "unlearns" in found.sentence


def test_steps_without_a_finite_gradient_are_diverging_at_the_end_but_not_at_the_start() -> None:
    to_the_end = curve("train/skipped_steps", [0, 0, 0, 2, 6], every=20)
    at_the_start = curve("train/skipped_steps", [7, 7, 7, 7, 8], every=20)
    assert kinds([*curves(), *to_the_end], pairs()) == [DIVERGING]
    assert kinds([*curves(), *at_the_start], pairs()) == [LEARNING]


def with_lengths(content: Row, longer_wins: float, longer_is_chosen: float = 0.5) -> Row:
    """Return pairs whose margins now follow length with this probability, whatever the labels."""
    dice = random.Random(3)
    for index in range(len(content["chosen"])):
        is_chosen = dice.random() < longer_is_chosen
        long_short = (dice.randint(30, 60), dice.randint(5, 25))
        content["tokens_chosen"][index], content["tokens_rejected"][index] = (
            long_short if is_chosen else long_short[::-1]
        )
        sign = 1 if is_chosen == (dice.random() < longer_wins) else -1
        size = abs(dice.gauss(0.3, 0.1)) + 0.01
        content["chosen"][index] = -2 + sign * size / 2
        content["rejected"][index] = -2 - sign * size / 2
    return content


@pytest.mark.parametrize(("wins", "which"), [(0.95, "longer"), (0.05, "shorter")])
def test_accuracy_that_follows_length_is_named_with_both_accuracies(wins: float, which: str) -> None:
    found = findings(curves(), with_lengths(pairs(), wins))[0]
    assert found.kind == LENGTH_ONLY
    assert f"the model prefers the {which} answer." in found.sentence


def test_a_liking_for_length_that_the_base_had_is_said_to_be_the_bases() -> None:
    content = with_lengths(pairs(), 0.95)
    content["base_chosen"], content["base_rejected"] = content["chosen"].copy(), content["rejected"].copy()
    found = findings(curves(), content)[0]
    assert found.kind == LENGTH_ONLY
    assert "as the base model did" in found.sentence


def by_lengths(of_longer: tuple[int, int, int], of_shorter: tuple[int, int, int]) -> Row:
    """Return pairs of 150 whose chosen answer is the longer one and 150 whose is the shorter one.

    Args:
        of_longer: how many are right before and after, only after, only before.
        of_shorter: the same of the others.
    """
    content = pairs(300)
    before, after = [], []
    for both, gained, lost in (of_longer, of_shorter):
        neither = 150 - both - gained - lost
        before += [1] * both + [-1] * gained + [1] * lost + [-1] * neither
        after += [1] * both + [1] * gained + [-1] * lost + [-1] * neither
    for prefix, signs in (("base_", before), ("", after)):
        content[f"{prefix}chosen"] = -2 + 0.15 * np.array(signs, np.float32)
        content[f"{prefix}rejected"] = -2 - 0.15 * np.array(signs, np.float32)
    content["tokens_chosen"] = np.array([40] * 150 + [10] * 150, np.int32)
    content["tokens_rejected"] = np.array([10] * 150 + [40] * 150, np.int32)
    return content


def test_a_liking_for_length_of_the_bases_is_a_remark_where_the_run_improves_on_it() -> None:
    (found,) = findings(curves(), by_lengths((85, 28, 5), (36, 21, 9)))
    assert found.kind == LEARNING
    assert "accuracy is 0.753" in found.sentence
    assert "0.380" in found.sentence
    assert "prefers the longer answer, as the base model did" in found.sentence
    assert "Balance the lengths" in found.advice
    # The same end, but the shorter answers have lost what the longer ones gained.
    assert kinds(curves(), by_lengths((63, 50, 0), (37, 20, 60)))[0] == LENGTH_ONLY


def test_accuracy_that_is_high_for_both_lengths_is_no_liking_for_length() -> None:
    assert kinds(curves(), pairs(base=(0.0, 0.3), moved=(0.3, -0.6))) == [LEARNING]


def test_margins_that_grow_with_length_are_named_where_the_longer_answer_is_always_chosen() -> None:
    content = with_lengths(pairs(), 1.0, longer_is_chosen=1.0)
    by = np.log(content["tokens_chosen"] / content["tokens_rejected"])
    content["chosen"] = (content["base_chosen"] + 0.5 * by).astype(np.float32)
    content["rejected"] = content["base_rejected"]
    found = findings(curves(), content)[0]
    assert found.kind == LENGTH_ONLY
    assert "in 200 of 200 held-out pairs" in found.sentence
    content["chosen"] = content["base_chosen"] + np.float32(0.5)
    assert LENGTH_ONLY not in kinds(curves(), content)


def test_answers_that_both_lose_likelihood_are_displaced_and_may_be_learned_from_all_the_same() -> None:
    found = findings(curves(), pairs(moved=(-0.1, -0.4)))
    assert [one.kind for one in found] == [DISPLACEMENT, LEARNING]
    assert "fluency is being paid for" in found[0].sentence
    assert kinds(curves(), pairs(moved=(-0.001, -0.4), noise=0.001)) == [LEARNING]


def test_a_margin_that_moves_less_than_anybody_would_see_is_not_called_learned() -> None:
    assert kinds(curves(), pairs(moved=(1e-5, 0.0), noise=1e-6)) == [NOT_LEARNING]


def test_a_run_that_only_knows_its_training_pairs_by_heart_is_told_so() -> None:
    (found,) = findings(curves(), pairs(moved=(0.0, 0.0)))
    assert found.kind == NOT_LEARNING
    assert "no more than chance, while training accuracy rose" in found.sentence
    (found,) = findings(curves(), pairs(base=(0.3, 0.1), moved=(-0.03, 0.03), noise=0.01))
    assert "worse than before, while" in found.sentence


def test_pairs_of_one_prompt_count_as_one_draw() -> None:
    # 200 pairs of 4 prompts: of so few prompts nothing is certain.
    assert kinds([], pairs(a_prompt=50)) == []
    wide, narrow = (of_mean([0.0, 1.0] * 100, [i // each for i in range(200)], 0.99) for each in (20, 1))
    assert narrow is not None
    assert wide is not None
    assert narrow.mean == wide.mean


def test_values_that_are_not_finite_are_left_out_of_the_pairs() -> None:
    content = pairs()
    content["chosen"][:5] = np.nan
    content["base_chosen"][:] = np.nan
    found = findings(validated(), content)
    assert [one.kind for one in found] == [LEARNING]
    assert "training accuracy rose" in found[0].sentence  # nothing to compare the held-out ones with


def test_intervals_are_those_of_the_books() -> None:
    # Student: mean 4, four degrees of freedom.
    values = [1.0, 2.0, 4.0, 9.0, 4.0]
    mean = of_mean(values, range(5), 0.95)
    half = 2.776 * math.sqrt(sum((v - 4) ** 2 for v in values) / 4 / 5)
    assert mean == pytest.approx((4, 4 - half, 4 + half), abs=0.05)
    # Newcombe (1998), method 3: 15 of 148.
    share = of_share([1.0] * 15 + [0.0] * 133, range(148), 0.95)
    assert share == pytest.approx((15 / 148, 0.0624, 0.1605), abs=1e-3)
    assert of_share([1.0] * 20, range(20), 0.95) == pytest.approx((1.0, 0.8389, 1.0), abs=1e-3)
    # Welch: variances of the means 0.0434 and 0.00417, 4.75 degrees of freedom, t 2.614.
    difference = of_difference([5.1, 4.9, 5.6, 5.8, 6.0], [4.0, 4.2, 4.1, 3.9], 0.95)
    assert difference == pytest.approx((1.43, 0.860, 2.000), abs=0.005)
    # Fisher: r = 0.5 of 28 has 0.156 to 0.737.
    xs = [math.cos(i) for i in range(28)]
    assert of_correlation(xs, xs, 0.95).low > 0.99  # type: ignore[union-attr]
    assert of_correlation(xs, [1.0] * 28, 0.95) is None
