"""One split of the data, looked at as a whole: the numbers of its part of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from orpo_lightning.data import flags
from orpo_lightning.data.health.distributions import Numbers, describe, share, spread
from orpo_lightning.data.health.findings import EXAMPLES, findings, places_of
from orpo_lightning.data.health.hints import hints
from orpo_lightning.data.health.limits import limit_costs
from orpo_lightning.data.health.overlap import overlaps
from orpo_lightning.data.left_out import BROKEN
from orpo_lightning.data.table import Dropped, PairTable, TableInfo


class SplitFacts(NamedTuple):
    """What is known of one split."""

    table: PairTable
    """The pairs that are used, before any sample of them is drawn."""
    dropped: Mapping[str, Dropped]
    """Rows left out, by reason."""
    read: int
    """Rows read: those of the pairs and those left out."""
    weights: Sequence[float | None]
    """Of each source of the table."""
    is_share: bool = False
    """Whether its sources belong to another split, of which this is a part."""
    whole: PairTable | None = None
    """With the pairs that are left out because they are trained on; None where that is the table."""

    @property
    def infos(self) -> list[TableInfo]:
        """What is known of each source."""
        return [source.info for source in self.table.sources]


class Rules(NamedTuple):
    """The settings that the numbers depend on; as arguments of the data module."""

    max_length: int
    max_prompt_length: int | None = None
    overlong: Any = "drop"
    seed: int = 42

    @classmethod
    def of(cls, data: Any) -> Rules:
        """Return those of a PreferenceDataModule."""
        limits = {key: data.rules[key] for key in ("max_length", "max_prompt_length", "overlong")}
        return cls(**limits, seed=data.seed)


def examine_split(facts: SplitFacts, tokenizer: Any, rules: Rules) -> dict[str, Any]:
    """Return a split's part of the report, without its rendered rows.

    Args:
        facts: what is known of it.
        tokenizer: of `transformers`; names the stop tokens.
        rules: the settings.
    """
    table = facts.table
    lengths, bits, margins = table.lengths.numpy(), table.flags, table.margins
    alike = overlaps(table, bits, rules.seed)
    found = findings(table.keys, bits, margins, alike)
    places = places_of(
        [found], lambda numbers: table.select(torch.tensor(numbers, dtype=torch.int64)).places()
    )
    whole = lengths if facts.is_share else table.whole_lengths
    limits = {key: value for key, value in rules._asdict().items() if key != "seed"}
    part: dict[str, Any] = {
        "sources": _sources(facts),
        "rows": {"read": facts.read, "kept": facts.read - _rows(facts), "left_out": _rows(facts)},
        "pairs": len(table),
        "left_out": _left_out(facts),
        "suspicious": [one.as_report(places) for one in found],
        "lengths": describe_lengths(whole),
        "limits": limit_costs(whole, **limits),
        "answers": cut_answers(bits),
        "longer": longer_wins(lengths),
        "overlap": alike.as_report(),
        "scripts": [] if facts.is_share else _scripts(facts.infos),
        "margins": describe_margins(margins),
        "stop_tokens": stop_tokens(table, tokenizer),
    }
    part["hints"] = hints(part, lengths, margins)
    return part


def describe_lengths(lengths: Numbers) -> dict[str, Any]:
    """Return the histograms of prompt, answers and pair, of (m, 3) tokens before any limit."""
    pair = lengths[:, 0] + np.maximum(lengths[:, 1], lengths[:, 2])
    parts = {"prompt": lengths[:, 0], "chosen": lengths[:, 1], "rejected": lengths[:, 2], "pair": pair}
    return {name: describe(values) for name, values in parts.items()}


def cut_answers(bits: Numbers) -> dict[str, Any]:
    """Return how many answers were cut at the limit, of (n,) flags; by side too."""
    chosen, rejected = (int(np.count_nonzero(bits & bit)) for bit in (flags.CHOSEN_CUT, flags.REJECTED_CUT))
    count = 2 * len(bits)
    return {
        "count": count,
        "cut": chosen + rejected,
        "cut_share": share(chosen + rejected, count),
        "chosen_cut": chosen,
        "rejected_cut": rejected,
    }


def longer_wins(lengths: Numbers) -> dict[str, float]:
    """Return which answer is longer how often, of (n, 3) tokens as they are trained on.

    `longer_wins_accuracy` is how often a judge who only counts tokens would be right; a tie counts one half.
    """
    count = len(lengths)
    chosen = share(int((lengths[:, 1] > lengths[:, 2]).sum()), count)
    rejected = share(int((lengths[:, 1] < lengths[:, 2]).sum()), count)
    equal = share(int((lengths[:, 1] == lengths[:, 2]).sum()), count)
    return {
        "chosen_longer": chosen,
        "equal": equal,
        "rejected_longer": rejected,
        "longer_wins_accuracy": chosen + equal / 2,
    }


def describe_margins(margins: Numbers) -> dict[str, Any] | None:
    """Return what is known of (n,) score margins; None where no row has scores."""
    scored = margins[~np.isnan(margins)]
    if not len(scored):
        return None
    return {
        **spread(scored),
        "rows_with_scores": len(scored),
        "zero": int((scored == 0).sum()),
        "negative": int((scored < 0).sum()),
        "median": round(float(np.median(scored)), 6),
    }


def _rows(facts: SplitFacts) -> int:
    return sum(dropped.rows for dropped in facts.dropped.values())


def _sources(facts: SplitFacts) -> list[dict[str, Any]]:
    described = zip(facts.infos, facts.table.counts(), facts.weights, strict=True)
    return [
        {
            "source": info.source,
            "shape": info.shape,
            "rows": count * info.rows_per_pair if facts.is_share else info.rows,
            "kept": count * info.rows_per_pair,
            "weight": weight,
        }
        for info, count, weight in described
    ]


def _left_out(facts: SplitFacts) -> list[dict[str, Any]]:
    by_rows = sorted(facts.dropped.items(), key=lambda item: -item[1].rows)
    return [
        {
            "reason": reason,
            "rows": rows,
            "share": share(rows, facts.read),
            "broken": reason == BROKEN,
            "examples": first[:EXAMPLES],
        }
        for reason, (rows, first) in by_rows
    ]


def _scripts(infos: Sequence[TableInfo]) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    for info in infos:
        counts.update(info.scripts)
    return [{"script": name, "share": share(n, counts.total())} for name, n in counts.most_common()]


def stop_tokens(table: PairTable, tokenizer: Any) -> list[dict[str, Any]]:
    """Return which tokens end the answers that were not cut, the most frequent first."""
    ends = table.offsets + table.lengths.sum(dim=1)
    lasts = ((ends - table.lengths[:, 2], flags.CHOSEN_CUT), (ends, flags.REJECTED_CUT))
    counts: Counter[int] = Counter()
    for number, source in enumerate(table.sources):
        of_source = table.source_of.numpy() == number
        for behind, cut in lasts:
            whole = of_source & (table.flags & cut == 0)
            counts.update(source.tokens[behind.numpy()[whole] - 1].tolist())
    found = counts.most_common()
    names = tokenizer.convert_ids_to_tokens([token for token, _ in found])
    return [{"token": name, "answers": count} for name, (_, count) in zip(names, found, strict=True)]
