"""The events of the example: payments of made-up worlds, what was reported of them later, and what is known of their cards."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from frauds import frauds, lookalikes
from world import CATEGORIES, DAY, Array, Payments, World, honest, make_world

START = np.datetime64("2024-03-01", "us")
LATE_DAYS = (1, 30)
WRONG = 0.05
CHANNELS, EVENTS = ("shop", "online"), ("payment", "report")
CURRENCIES = ("EUR", "USD", "GBP", "JPY")


@dataclass(frozen=True)
class Size:
    """How much is made: cards and days to learn from, cards of another world and days to choose the threshold on, and, a month
    later, cards of a third world and days to decide. A reference profile takes 14 whole days to learn from."""

    cards: int = 38_000
    days: int = 16
    validation_cards: int = 20_000
    validation_days: int = 10
    held_out_cards: int = 25_000
    held_out_days: int = 10
    seed: int = 1
    validation_seed: int = 2
    held_out_seed: int = 5

    @property
    def trained_on(self) -> np.datetime64:
        """When the model is made: when the last report on the days to learn from may have come."""
        return START + np.timedelta64(self.days + LATE_DAYS[1], "D")


def history(size: Size) -> pa.Table:
    """Payments and reports up to when the model is made, and the held-out payments after it; nobody has reported those yet."""
    return pa.concat_tables([with_reports(size.seed, size.cards, size.days), held_out(size)]).unify_dictionaries()


def validation(size: Size) -> pa.Table:
    """Payments and reports of a world that nothing is learned from: the threshold is chosen on it."""
    return with_reports(size.validation_seed, size.validation_cards, size.validation_days)


def with_reports(seed: int, cards: int, days: int) -> pa.Table:
    """What is paid in a world from START on, and what is reported of it, in order of time."""
    past, kinds = world_payments(make_world(seed, cards), days, 0)
    return in_order(past, reported(past, kinds, seed)).unify_dictionaries()


def held_out(size: Size) -> pa.Table:
    """The payments that are decided, in order of time."""
    return _held_out(size)[0]


def truth(size: Size) -> tuple[Array, Array]:
    """What the held-out payments really are: ids int64 [n], rising, and kinds int8 [n]: 0 for honest, else the place in KINDS
    plus one."""
    table, kinds = _held_out(size)
    return table["payment_id"].to_numpy(), kinds


@cache
def _held_out(size: Size) -> tuple[pa.Table, Array]:
    later = int((size.trained_on - START).astype(np.int64))
    return world_payments(make_world(size.held_out_seed, size.held_out_cards), size.held_out_days, later)


def world_payments(world: World, days: int, later: int) -> tuple[pa.Table, Array]:
    """The payments of a world in order of time, and the kind of each. later: microseconds from START to its first day."""
    base = honest(world, days)
    parts = [base, *lookalikes(world, days)]
    parts += frauds(world, base, sum(len(part["at"]) for part in parts), days)
    made: Payments = {name: np.concatenate([part[name] for part in parts]) for name in base}
    inside = (made["at"] >= 0) & (made["at"] < days * DAY)
    order = np.flatnonzero(inside)[np.argsort(made["at"][inside], kind="stable")]
    made = {name: column[order] for name, column in made.items()}
    return columns(world, made, later), made["kind"]


def columns(world: World, made: Payments, later: int) -> pa.Table:
    """The events as the columns of the schema."""
    n, card, merchant = len(made["at"]), made["card"], made["merchant"]
    home, place = world.home_place[:, card], world.merchant_place[:, merchant]
    ids = np.arange(n, dtype=np.int64) + world.seed * 1_000_000_000
    return pa.table(
        {
            "kind": _words(np.zeros(n, np.int8), EVENTS),
            "at": _times(made["at"] + later),
            "payment_id": pa.array(ids),
            "card": _names(f"c{world.seed}-", world.cards).take(pa.array(card)),
            "home_lat": pa.array(home[0].round(3)),
            "home_lon": pa.array(home[1].round(3)),
            "merchant": _names(f"m{world.seed}-", world.merchants).take(pa.array(merchant)),
            "category": pa.array(CATEGORIES).take(pa.array(world.category[merchant])),
            "lat": pa.array(place[0].round(3)),
            "lon": pa.array(place[1].round(3)),
            "channel": pa.array(CHANNELS).take(pa.array(made["online"].astype(np.int8))),
            "amount": pa.array(made["amount"].clip(0.01).round(2)),
            "currency": pa.array(CURRENCIES).take(pa.array(world.home[card] % len(CURRENCIES))),
        }
    )


def reported(table: pa.Table, kinds: Array, seed: int) -> pa.Table:
    """Reports of fraud, 1 to 30 days after the payment, with the columns of the schema. One fraud in twenty is never reported,
    and one report in twenty is of an honest payment."""
    rng = np.random.default_rng([seed, 5])
    found = np.flatnonzero((kinds > 0) & (rng.random(len(kinds)) >= WRONG))
    mistaken = rng.choice(np.flatnonzero(kinds == 0), round(len(found) * WRONG / (1 - WRONG)), replace=False)
    rows = np.concatenate([found, mistaken])
    at = table["at"].to_numpy().astype(np.int64)[rows] - START.astype(np.int64)
    late = (rng.uniform(*LATE_DAYS, len(rows)) * DAY).astype(np.int64)
    taken = table.take(pa.array(rows))
    filled = {
        "kind": _words(np.ones(len(rows), np.int8), EVENTS),
        "at": _times(at + late),
        "payment_id": taken["payment_id"],
        "card": taken["card"],
    }
    nulls = {field.name: pa.nulls(len(rows), field.type) for field in table.schema}
    return pa.table(nulls | filled, table.schema)


def profiles(size: Size) -> Callable[[Path], dict[str, int]]:
    """What writes cards.parquet, which feature_repo/definitions.py reads: what the bank knows of each card of all worlds."""
    worlds = [
        (size.seed, size.cards, START),
        (size.validation_seed, size.validation_cards, START),
        (size.held_out_seed, size.held_out_cards, size.trained_on),
    ]

    def write(folder: Path) -> dict[str, int]:
        known = pl.concat(profiles_of(make_world(seed, cards), when) for seed, cards, when in worlds)
        known.write_parquet(folder / "cards.parquet")
        return {"cards": known.height}

    return write


def profiles_of(world: World, when: np.datetime64) -> pl.DataFrame:
    """What is known of the cards of a world, an hour before `when`."""
    rng = np.random.default_rng([world.seed, 6])
    known = world.usual * rng.lognormal(0, 0.15, world.cards)
    return pl.DataFrame(
        {
            "card": pl.Series(_names(f"c{world.seed}-", world.cards)),
            "typical_amount": known.astype(np.float32),
            "payments_a_day": world.rate.astype(np.float32),
            "age_days": world.since_days.astype(np.float32),
            "event_timestamp": pl.Series(np.full(world.cards, when - np.timedelta64(1, "h"))).dt.replace_time_zone("UTC"),
        }
    )


def in_order(*tables: pa.Table) -> pa.Table:
    """The rows of tables of one schema, by time."""
    both = pa.concat_tables(tables)
    return both.take(pa.array(np.argsort(both["at"].to_numpy(), kind="stable")))


def _names(prefix: str, count: int) -> pa.Array:
    return pa.array([f"{prefix}{k:07}" for k in range(count)], pa.string())


def _times(micros: Array) -> pa.Array:
    return pa.array(START.astype(np.int64) + micros).cast(pa.timestamp("us", "UTC"))


def _words(codes: Array, words: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), list(words))
