"""What a shadow, a version that scores what the champion has decided on, would have done otherwise.

A folder beside the versions is all that the parts share: workers put batches into it (streams/shadowing.py), a process of its
own takes and scores them (ops/model_shadow.py) and writes down how they compare. Nobody waits for another: where the process
does not keep up, batches are left out and counted.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.files import write_whole
from models.policy import Coded

F32 = npt.NDArray[np.float32]
EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SUFFIX, READY, COMPARED = ".arrow", "ready", "compared.json"
STALE_SECONDS = 10.0
CHAMPION, SCORE = b"champion", "_score"


def shadow_folder(models: Path, pipeline: str) -> Path:
    """What the parts share for a pipeline."""
    return models / f"{pipeline}.shadow"


@dataclass
class Compared:
    """How the scores of two versions compare, over the same events.

    asked: what the shadow was given; rows: scored by both; failed: by the champion alone; dropped: of batches that could not be
    compared at all, trouble: why not, the last time. difference, absolute: sums of the shadow's score minus the champion's, and
    without its sign; largest: of these. within: how many differ by at most EDGES, the last one: by more. decided: of those
    scored by both, how many had which decision of the champion's and of the shadow's. seconds: of the shadow's calls. refused:
    why it does not score. looked_at: when this was written, seconds since 1970.
    """

    champion: int
    shadow: int
    asked: int = 0
    rows: int = 0
    failed: int = 0
    dropped: int = 0
    trouble: str = ""
    difference: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0
    within: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    decided: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: float = 0.0
    refused: str = ""
    looked_at: float = 0.0

    def add(self, champion: F32, shadow: F32, decisions: tuple[Coded, Coded] | None, seconds: float) -> None:
        """Scores [n] of both, NaN where one gave none, the decisions [n] that a policy makes of each, if there is one, and how
        long the shadow took."""
        both = np.isfinite(champion) & np.isfinite(shadow)
        self.asked += len(shadow)
        self.failed += int(np.count_nonzero(~np.isfinite(shadow) & np.isfinite(champion)))
        self.seconds += seconds
        difference = shadow[both].astype(np.float64) - champion[both]
        size = np.abs(difference)
        self.rows += len(size)
        self.difference += float(difference.sum())
        self.absolute += float(size.sum())
        self.largest = max(self.largest, float(size.max(initial=0.0)))
        counts = np.bincount(np.searchsorted(EDGES, size), minlength=len(EDGES) + 1)
        self.within = [before + int(now) for before, now in zip(self.within, counts, strict=True)]
        if decisions is not None:
            ours, theirs = decisions
            pairs, counts = np.unique(np.stack([ours.codes[both], theirs.codes[both]]), axis=1, return_counts=True)
            for (one, other), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
                row = self.decided.setdefault(str(ours.values[one]), {})
                row[str(theirs.values[other])] = row.get(str(theirs.values[other]), 0) + count

    @property
    def agreement(self) -> float | None:
        """The share of the same decisions; None where nothing was decided."""
        every = sum(sum(row.values()) for row in self.decided.values())
        return sum(row.get(name, 0) for name, row in self.decided.items()) / every if every else None

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        rows = max(1, self.rows)
        return asdict(self) | {
            "heard_of": self.heard_of,
            "agreement": self.agreement,
            "mean_difference": self.difference / rows,
            "mean_absolute_difference": self.absolute / rows,
            "microseconds_a_row": 1e6 * self.seconds / max(1, self.asked),
        }

    @property
    def heard_of(self) -> bool:
        """Whether it was written within the last STALE_SECONDS."""
        return time.time() - self.looked_at < STALE_SECONDS

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all. Raises OSError."""
        self.looked_at = time.time()
        write_whole(folder / COMPARED, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Compared | None":
        """What `write` wrote, None where nothing is."""
        try:
            said: Mapping[str, Any] = json.loads((folder / COMPARED).read_text(encoding="utf-8"))
            return cls(**said)
        except (OSError, TypeError, ValueError):
            return None


def lines(model: str, compared: Compared) -> list[str]:
    """For people."""
    one, told = compared, compared.as_dict()
    if one.refused:
        return [f"{model}: version {one.shadow} as a shadow is refused: {one.refused}"]
    if not one.champion:
        return [f"{model}: version {one.shadow} is ready as a shadow, and has been given nothing yet"]
    made = [f"{model}: version {one.shadow} as a shadow of version {one.champion}: {one.rows:,} events scored by both"]
    if not one.heard_of:
        made.append(f"  as of {datetime.fromtimestamp(one.looked_at, UTC):%Y-%m-%d %H:%M:%S} UTC: it does not run any more")
    if one.dropped:
        made.append(f"  {one.dropped:,} in batches that it could not compare: {one.trouble}")
    if one.failed:
        made.append(f"  {one.failed:,} that the shadow gave no score")
    if not one.rows:
        return made
    made.append(
        f"  score: {told['mean_difference']:+.4f} in the mean, {told['mean_absolute_difference']:.4f} without sign, "
        f"{one.largest:.4f} at most"
    )
    upto = np.cumsum(one.within)
    made.append("  within " + ", ".join(f"{edge:g}: {100 * n / one.rows:.1f}%" for edge, n in zip(EDGES, upto, strict=False)))
    if one.agreement is not None:
        made.append(f"  decisions: {100 * one.agreement:.2f}% the same")
        for ours, row in sorted(one.decided.items()):
            others = ", ".join(f"{name} {count:,}" for name, count in sorted(row.items()))
            made.append(f"    {ours} by the champion: by the shadow {others}")
    made.append(f"  {told['microseconds_a_row']:.1f} us a row, in its own process")
    return made
