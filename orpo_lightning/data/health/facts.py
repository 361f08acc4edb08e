"""From the splits that a run opened to the facts that are looked at."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from orpo_lightning.data.checks import ASKED_FOR
from orpo_lightning.data.health.distributions import share
from orpo_lightning.data.health.split import SplitFacts
from orpo_lightning.data.preparation import Preparation, Split
from orpo_lightning.data.table import Dropped, PairTable, TableInfo


def gather(
    preparation: Preparation, splits: Collection[Split] = ("train", "validation", "test")
) -> dict[str, SplitFacts]:
    """Open splits and return what is known of each that is there.

    The whole of a split, not the sample that validation may draw. Pairs of validation and test that are
    trained on are left out, as `fit`, `validate` and `test` do.

    Args:
        preparation: of the data module.
        splits: which to open.
    """
    found: dict[str, SplitFacts | None] = {}
    if "train" in splits:
        found["train"] = _of_train(preparation)
    if "validation" in splits:
        found["validation"] = _of_validation(preparation)
    if "test" in splits:
        found["test"] = _untrained(preparation, "test", preparation.test())
    return {name: facts for name, facts in found.items() if facts is not None}


def fault_share(facts: SplitFacts) -> float:
    """Return the largest share of a source's rows that `data.max_dropped` counts as faulty."""
    if facts.is_share:
        return 0.0
    return max((_fault_share(info) for info in facts.infos), default=0.0)


def _fault_share(info: TableInfo) -> float:
    faults = sum(dropped.rows for reason, dropped in info.dropped.items() if reason not in ASKED_FOR)
    return share(faults, info.rows)


def _of_train(preparation: Preparation) -> SplitFacts | None:
    table = preparation.train
    if table is None:
        return None
    facts = _with_sources(preparation, "train", table)
    held_out = preparation.held_out
    # What is held out is accounted for where it is used; what is left out of the source, here.
    return facts if held_out is None else facts._replace(read=facts.read - rows_of(held_out))


def _of_validation(preparation: Preparation) -> SplitFacts | None:
    held_out = preparation.held_out
    if held_out is not None:
        return SplitFacts(held_out, {}, rows_of(held_out), preparation.weights("train"), is_share=True)
    pairs = preparation.validation()
    return _untrained(preparation, "validation", None if pairs is None else pairs.whole)


def _untrained(preparation: Preparation, split: Split, table: PairTable | None) -> SplitFacts | None:
    if table is None:
        return None
    return _with_sources(preparation, split, table)._replace(whole=preparation.usable(split))


def _with_sources(preparation: Preparation, split: Split, table: PairTable) -> SplitFacts:
    infos = [source.info for source in table.sources]
    dropped = merged([*(info.dropped for info in infos), preparation.removed(split)])
    return SplitFacts(table, dropped, sum(info.rows for info in infos), preparation.weights(split))


def merged(parts: Iterable[Mapping[str, Dropped]]) -> dict[str, Dropped]:
    """Add up what several sources left out, by reason."""
    together: dict[str, Dropped] = {}
    for part in parts:
        for reason, (rows, first) in part.items():
            before = together.get(reason, Dropped(0, []))
            together[reason] = Dropped(before.rows + rows, (before.first + first)[:5])
    return together


def rows_of(table: PairTable) -> int:
    """Return how many rows the pairs of a table were made from."""
    of_sources = zip(table.counts(), table.sources, strict=True)
    return sum(count * source.info.rows_per_pair for count, source in of_sources)
