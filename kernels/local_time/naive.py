"""Parts of local time, one time after another: the definition."""

from collections.abc import Sequence


def parts(times: Sequence[int], since: Sequence[int], offsets: Sequence[int], unit: int, shift: int, modulo: int) -> list[int]:
    """((t + offset) // unit + shift) % modulo for each time t.

    since, ascending: from when on the zone has the offset of the same place; a time before all has the first one. Times, since,
    offsets and unit are in the same unit.
    """
    made = []
    for t in times:
        offset = offsets[max(sum(start <= t for start in since) - 1, 0)]
        made.append(((t + offset) // unit + shift) % modulo)
    return made
