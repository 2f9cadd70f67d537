"""What features cost: each part alone, its results checked first, beside its naive twin and what one would take instead.

python -m bench.features [--part windows snapshot backfill warm cold assemble outage avro] [--turns 5] [--json FILE]

Needs nothing but the machine: Feast's stores and a redis-server are made here. The whole takes about four minutes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import features_avro, features_stored, windows
from bench.figures import Figure, WrongError, shown
from bench.show import made, say, write

PARTS: dict[str, Callable[[argparse.Namespace], list[Figure]]] = {
    "windows": windows.windows,
    "snapshot": windows.snapshot,
    "backfill": windows.backfill,
    "warm": features_stored.warm,
    "cold": features_stored.cold,
    "assemble": features_stored.assembling,
    "outage": features_stored.outage,
    "avro": features_avro.avro,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.features", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="  [default: all]")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--entities", type=int, default=1_000_000, help="of the windows  [default: 1,000,000]")
    parser.add_argument("--events", type=int, default=4_000_000, help="of the windows' stream  [default: 4,000,000]")
    parser.add_argument("--rows", type=int, default=4096, help="events in a batch  [default: 4,096]")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    figures: list[Figure] = []
    for part in options.part:
        say(part)
        try:
            figures += PARTS[part](options)
        except WrongError as error:
            print(f"bench.features: {part}: {error}: no figures", file=sys.stderr)
            return 1
    print("\n".join(map(shown, figures)))
    write(_result(options, figures), options.json)
    return 0


def _result(options: argparse.Namespace, figures: Sequence[Figure]) -> dict[str, Any]:
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "part")}
    return made("features", {"name": "features"}, settings) | {"figures": list(figures)}


if __name__ == "__main__":
    sys.exit(main())
