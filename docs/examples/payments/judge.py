"""What a decider finds, by what the payments really were: of each kind of fraud, at one threshold for all three."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from frauds import KINDS

Scores = npt.NDArray[np.float64]
Kinds = npt.NDArray[np.int8]
PRECISION = 0.7


@dataclass(frozen=True)
class Found:
    """Of what is refused, the share that is fraud; of each kind of fraud, and of all, the share that is refused.

    A share of nothing is 0. cases: how many payments of each kind there are.
    """

    name: str
    precision: float
    recall: tuple[float, ...]
    all: float
    cases: tuple[int, ...]

    def line(self) -> str:
        """As a row of the table under `HEADING`."""
        return f"  {self.name:<44}{self.precision:>10.2f}" + "".join(f"{one:>14.2f}" for one in (*self.recall, self.all))


HEADING = f"  {'':<44}{'precision':>10}" + "".join(f"{name:>14}" for name in (*KINDS, "all fraud"))


def found(name: str, refused: npt.NDArray[np.bool_], kinds: Kinds) -> Found:
    """What is found by refusing these of n payments. kinds: 0 for honest, else the place in KINDS plus one."""
    of = [kinds == k + 1 for k in range(len(KINDS))]
    return Found(
        name,
        _share(kinds[refused] > 0),
        tuple(_share(refused[each]) for each in of),
        _share(refused[kinds > 0]),
        tuple(int(each.sum()) for each in of),
    )


def best(name: str, scores: Scores, kinds: Kinds, precision: float = PRECISION) -> Found:
    """What is found at the lowest threshold whose precision is reached, chosen in hindsight, on these very payments.

    scores [n]: NaN is never refused.
    """
    order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    ranked = scores[order]
    precise = np.cumsum(kinds[order] > 0) / np.arange(1, len(order) + 1) >= precision
    ends = np.append(ranked[1:] != ranked[:-1], True) & ~np.isnan(ranked)
    good = np.flatnonzero(precise & ends)
    refused = np.zeros(len(kinds), np.bool_)
    refused[order[: good[-1] + 1 if len(good) else 0]] = True
    return found(name, refused, kinds)


def threshold(scores: Scores, reported: npt.NDArray[np.bool_], precision: float = PRECISION) -> float:
    """The lowest threshold at which this share of what it refuses was reported, infinity where there is none.

    As one fraud in twenty is never reported, the share that is fraud is a little higher: that is the margin.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    precise = np.cumsum(reported[order]) / np.arange(1, len(order) + 1) >= precision
    good = np.flatnonzero(precise & np.append(ranked[1:] != ranked[:-1], True))
    return float(ranked[good[-1]]) if len(good) else float("inf")


def best_rule(frame: pa.Table, names: Sequence[str], kinds: Kinds) -> list[Found]:
    """The best rules "refuse where one number is above (below) a threshold", chosen in hindsight: that which finds most fraud,
    then for each kind that which finds most of it."""
    rules = []
    for name in names:
        values = frame[name].to_numpy().astype(np.float64)
        rules += [best(f"{name} from a threshold on", values, kinds), best(f"{name} below a threshold", -values, kinds)]
    return [max(rules, key=lambda rule: rule.all)] + [max(rules, key=lambda rule: rule.recall[k]) for k in range(len(KINDS))]


def _share(true: npt.NDArray[np.bool_]) -> float:
    return float(true.mean()) if len(true) else 0.0
