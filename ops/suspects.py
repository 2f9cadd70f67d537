"""What may have killed a job, narrowed from death to death to one message.

A job resumes at its last durable epoch, so what killed it once comes again. What was in work in two lives, one after the other,
is suspected; from then on it is read in pieces (streams/trail.py), of which the one that kills is cut again. A message that has
killed twice all alone is found.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.files import write_whole
from streams.trail import Ranges

PIECES = 16
ALONE = 2


@dataclass(frozen=True)
class Search:
    """ranges: what is suspected. piece: messages to read at a time; 0: it has killed only once, and is read as ever. deaths:
    how many it has cost. alone: how many times the one message that is left has killed by itself."""

    ranges: Ranges
    piece: int = 0
    deaths: int = 1
    alone: int = 0


@dataclass(frozen=True)
class Found:
    """A message that killed the job `deaths` times, in the end alone."""

    partition: int
    offset: int
    deaths: int


def after(search: Search | None, worked: Ranges) -> tuple[Search | None, Found | None]:
    """The search after a death while `worked` was in work (nothing: it says nothing), and the message that it has found."""
    if not worked:
        return search, None
    common = overlap(search.ranges, worked) if search else {}
    if search is None or not common:
        return Search(worked), None
    size = sum(until - first for first, until in common.values())
    deaths = search.deaths + 1
    if size > 1:
        return Search(common, -(-size // PIECES), deaths), None
    alone = search.alone + (search.piece == 1 and worked == common)
    if alone < ALONE:
        return Search(common, 1, deaths, alone), None
    ((partition, (offset, _)),) = common.items()
    return None, Found(partition, offset, deaths)


def overlap(a: Ranges, b: Ranges) -> Ranges:
    """What is in both."""
    both = {each: (max(a[each][0], b[each][0]), min(a[each][1], b[each][1])) for each in a if each in b}
    return {partition: (first, until) for partition, (first, until) in both.items() if until > first}


@dataclass
class Kept:
    """What is known of a job's deaths, kept in a file, so that a search goes on where it was when the machine stops."""

    file: Path
    search: Search | None = None
    aside: dict[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> "Kept":
        """What `save` wrote, or nothing. Raises ValueError for anything else."""
        try:
            said: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return cls(file)
        except ValueError as error:
            raise ValueError(f"{file}: expected what is known of deaths, got no JSON ({error}): delete it") from None
        search = said["search"]
        if search is not None:
            ranges = {int(partition): (first, until) for partition, (first, until) in search["ranges"].items()}
            search = Search(**search | {"ranges": ranges})
        return cls(file, search, {(partition, offset): seen for partition, offset, seen in said["aside"]})

    def save(self) -> None:
        """Writes it, whole or not at all."""
        aside = [[*place, seen] for place, seen in self.aside.items()]
        write_whole(self.file, json.dumps({"search": asdict(self.search) if self.search else None, "aside": aside}))
