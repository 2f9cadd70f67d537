"""Made-up card payments, the same ones each time. To use your own, let `history` read them: see `read_events` below."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

START = np.datetime64("2024-03-01", "us")
DAYS, CARDS, MERCHANTS, PAYMENTS, BURSTS = 28, 2_000, 150, 42_000, 300
MINUTE, DAY = 60_000_000, 86_400_000_000


def history() -> pa.Table:
    """Every event so far, as the columns of the schema: what the model is trained on. Yours may come from a file:

    from features.events import read_events
    from pipeline import Payment  # here, since pipeline.py imports this file
    return read_events(Path("events.parquet"), Payment)
    """
    rng = np.random.default_rng(7)
    cards = rng.integers(0, CARDS, PAYMENTS)
    daytime = (rng.normal(14, 4, PAYMENTS) % 24 * 60 * MINUTE).astype(np.int64)
    normal = {
        "at": rng.integers(0, DAYS, PAYMENTS) * DAY + daytime,
        "card": cards,
        "merchant": (rng.beta(1, 4, PAYMENTS) * MERCHANTS).astype(int),
        "channel": rng.choice(["chip", "contactless", "online"], PAYMENTS, p=[0.3, 0.4, 0.3]),
        "amount": usual_amounts()[cards] * rng.lognormal(0, 0.6, PAYMENTS),
        "stolen": np.zeros(PAYMENTS, bool),
    }
    payments = pl.concat([pl.DataFrame(normal), bursts(rng, stolen=True), bursts(rng, stolen=False)]).sort("at")
    payments = payments.with_row_index("payment_id").with_columns(pl.lit("payment").alias("kind"))
    later = pl.Series(rng.integers(DAY, 5 * DAY, payments.height))
    chargebacks = payments.with_columns(at=pl.col("at") + later, kind=pl.lit("chargeback")).filter("stolen")
    chargebacks = chargebacks.select("kind", "at", "payment_id", "card")
    events = pl.concat([payments.drop("stolen"), chargebacks], how="diagonal").sort("at", maintain_order=True)
    return columns(events)


def bursts(rng: np.random.Generator, *, stolen: bool) -> pl.DataFrame:
    """Some cards' runs of payments: many small ones online at night where they were stolen, a day's shopping where not."""
    of_run = rng.integers(5, 13, BURSTS) if stolen else rng.integers(3, 7, BURSTS)
    run = np.repeat(np.arange(BURSTS), of_run)
    place = np.arange(len(run)) - np.repeat(np.cumsum(of_run) - of_run, of_run)
    hour = rng.normal(2, 3, BURSTS) % 24 if stolen else rng.normal(15, 2, BURSTS) % 24
    start = rng.integers(0, DAYS, BURSTS) * DAY + (hour * 60 * MINUTE).astype(np.int64)
    apart = rng.integers(MINUTE // 12, (1 if stolen else 8) * MINUTE, BURSTS)
    cards = rng.integers(0, CARDS, BURSTS)[run]
    return pl.DataFrame(
        {
            "at": start[run] + place * apart[run],
            "card": cards,
            "merchant": rng.integers(0, MERCHANTS, BURSTS)[run] if stolen else rng.integers(0, MERCHANTS, len(run)),
            "channel": np.where(rng.random(len(run)) < (0.9 if stolen else 0.4), "online", "chip"),
            "amount": rng.lognormal(2, 0.5, len(run)) if stolen else usual_amounts()[cards] * rng.lognormal(0, 0.6, len(run)),
            "stolen": np.full(len(run), stolen),
        }
    )


def usual_amounts() -> np.ndarray:
    """What each card usually pays."""
    return np.random.default_rng(1).lognormal(3.2, 0.7, CARDS)


def write_profiles(folder: Path) -> dict[str, int]:
    """Writes cards.parquet, which feature_repo/definitions.py reads: what is known of each card before the first event."""
    profiles = pl.DataFrame(
        {
            "card": [f"card-{k:04}" for k in range(CARDS)],
            "usual_amount": usual_amounts().astype(np.float32),
            "event_timestamp": pl.Series(np.full(CARDS, START)).dt.replace_time_zone("UTC"),
        }
    )
    profiles.write_parquet(folder / "cards.parquet")
    return {"cards": profiles.height}


def columns(events: pl.DataFrame) -> pa.Table:
    """The events with the types that the schema says."""
    kind = pl.Series(events["kind"] == "chargeback").cast(pl.Int8)
    return pa.table(
        {
            "kind": pa.DictionaryArray.from_arrays(kind.to_arrow(), ["payment", "chargeback"]),
            "at": pa.array(START.astype(np.int64) + events["at"].to_numpy(), pa.timestamp("us", "UTC")),
            "payment_id": events["payment_id"].cast(pl.Int64).to_arrow(),
            "card": pa.array([f"card-{k:04}" for k in events["card"]]),
            "merchant": pa.array([None if k is None else f"merchant-{k:03}" for k in events["merchant"]]),
            "channel": pa.array(events["channel"].to_list(), pa.string()),
            "amount": events["amount"].round(2).to_arrow(),
        }
    )
