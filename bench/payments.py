"""The state of docs/examples/payments for a million cards: bytes of each shard, and nanoseconds of features an event.

    python -m bench.payments                    # a million cards, two days, eight shards
    python -m bench.payments --cards 100000

The payments are split by the entity's hash, as a job splits them, each shard has a state of its own, and its bytes are those of
its arrays, with the room that they have to grow. Before there is a figure, the features of one shard's last payments are
compared with those that one state for all cards gives.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence

import numpy as np

from bench.figures import WrongError
from bench.machine import machine
from features.expressions import compile_expression, mask
from features.memo import Memo
from features.state import State
from features.streaming import Cut, Cutter
from ops.examples import EXAMPLES

BATCH = 50_000


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.payments", description=__doc__.split("\n")[0])
    parser.add_argument("--cards", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--shards", type=int, default=8)
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(EXAMPLES / "payments"))
    samples, pipeline = importlib.import_module("samples"), importlib.import_module("pipeline").pipeline
    began = time.perf_counter()
    table, _ = samples.world_payments(samples.make_world(1, given.cards), given.days, 0)
    made = time.perf_counter() - began
    print(f"{machine()['cpu']}: {table.num_rows:,} payments of {given.cards:,} cards, made in {made:.1f} s")
    for group in pipeline.groups:
        cutter = Cutter(group, pipeline.columns, pipeline.events.time)
        states, spent = [State(group) for _ in range(given.shards)], 0.0
        whole, last = State(group), np.empty((0, 0))
        for batch in table.to_batches(max_chunksize=BATCH):
            cut = cutter(memo := Memo(batch), mask(compile_expression(pipeline.decide_on, batch.schema), memo))
            parts = split(cut, given.shards)
            started = time.perf_counter()
            outs = [state.update(part) for state, part in zip(states, parts, strict=True)]
            spent += time.perf_counter() - started
            last = whole.update(cut)[:, parts[0].row]
        if not np.array_equal(outs[0], last, equal_nan=True):
            raise WrongError(f"{group.entity}: a shard's features are not those of one state for all")
        sizes = [state.nbytes for state in states]
        entities = sum(state.entities[0] for state in states)
        print(
            f"by {group.entity:10} {len(group.names)} features, {entities:,} entities, {sum(sizes) / 1e6:,.0f} MB: "
            f"{min(sizes) / 1e6:.1f} to {max(sizes) / 1e6:.1f} MB a shard, {sum(sizes) / entities:,.0f} bytes an entity, "
            f"{spent / table.num_rows * 1e9:,.0f} ns an event"
        )


def split(cut: Cut, shards: int) -> list[Cut]:
    """The rows of each shard; `row` is then the place in the whole cut."""
    placed = cut._replace(row=np.arange(len(cut.hash), dtype=np.int32))
    of = cut.hash % np.uint64(shards)
    return [placed.take(np.flatnonzero(of == shard)) for shard in range(shards)]


if __name__ == "__main__":
    main()
