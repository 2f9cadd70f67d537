"""What a recovery store of many entities takes, and how long it takes to look into it, check, write it anew and export it.

    python -m bench.state                              # a million cards, three aggregates over two hours, to 24 shards
    python -m bench.state --entities 100000 --json out.json

The store is made by the job of bench.snapshots. There are figures only if every card is in what is exported at the end, with as
many payments as it made.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from bench.figures import Figure, WrongError, figure, shown, timed
from bench.show import say
from bench.snapshots import PIPELINE, Paced, job, payments
from kernels.hashing.cpu import hash_column
from ops.state_export import export
from ops.state_store import look
from streams.migrate import migrate
from streams.settings import JobSettings
from streams.sound import sound
from streams.start import store_of

SHARDS = 24
MORE = 20_000


def measured(entities: int, disk: Path | None) -> list[Figure]:
    """Makes the store and does all that. Raises WrongError where a card or a payment is lost on the way."""
    cards, log = payments(entities, MORE)
    other = replace(PIPELINE, shards=SHARDS)
    with tempfile.TemporaryDirectory(prefix="headrace-state-", dir=disk) as folder:
        home = Path(folder)
        say(f"{entities:,} cards pay, {MORE:,} of them again")
        job(home, 0.25, Paced(log, len(log), 1.0))
        settings = JobSettings(home=home)
        looked, found = timed(look, PIPELINE, settings, "job")
        checked, _ = timed(sound, store_of(PIPELINE, settings), PIPELINE.name)
        written, moved = timed(migrate, other, settings, "job")
        exported, rows = timed(export, other, settings, "job", home / "out")
        made = pl.read_parquet(home / "out" / "card.parquet", columns=["entity_hash", "amount_count_2h_by_card"])
    counts = np.bincount(cards, minlength=entities).astype(float)
    truth = pl.DataFrame({"entity_hash": hash_column(pa.array(np.arange(entities))), "count": counts})
    joined = made.join(truth, on="entity_hash")
    wrong = entities - joined.filter(pl.col("count") == pl.col("amount_count_2h_by_card")).height
    if wrong or rows != {"card": entities} or found["entities"] != entities:
        raise WrongError(
            f"expected {entities} cards as they paid, got {rows['card']}, and {wrong} of them are not as they paid"
        )
    size, what = found["bytes"], f"{entities:,} entities"
    return [
        figure("state", f"what counts of a store: {what}", "MB", [size["current"] / 1e6]),
        figure("state", "the same, an entity", "bytes", [size["per_entity"]]),
        figure("state", "its files", "MB", [size["files"] / 1e6]),
        figure("state", f"its files, written anew with {SHARDS} shards", "MB", [moved.nbytes[1] / 1e6]),
        figure("state", "read whole, as before each start", "s", [checked]),
        figure("state", "headrace state", "s", [looked]),
        figure("state", f"headrace state migrate, to {SHARDS} shards", "s", [written]),
        figure("state", "headrace state export", "s", [exported]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.state", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--disk", type=Path, default=None, help="a folder on the disk to write to  [default: /tmp]")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    try:
        figures = measured(options.entities, options.disk)
    except WrongError as error:
        print(f"bench.state: {error}: no figures", file=sys.stderr)
        return 1
    print("\n".join(map(shown, figures)))
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
