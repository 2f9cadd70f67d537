"""A Feast repo of payments for tests: views with entities of one and of two columns, and one that cannot be used."""

import contextlib
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.views import load_feast

SQLITE = "{type: sqlite, path: data/online.db}"
DAY = datetime(2024, 1, 10, tzinfo=UTC)
CARDS = {
    "card": ["a", "a", "b", "c"],
    "mean": [1.5, 2.5, 0.1, None],
    "count": [1, 2, 3, 4],
    "unused": [0.0, 0.0, 0.0, 0.0],
    "event_timestamp": [DAY - timedelta(days=3), DAY, DAY - timedelta(days=1), DAY],
}
PLACES = {
    "shop_id": [1, 1, 2],
    "city": ["Ulm", "Bonn", "Ulm"],
    "rate": [0.25, 0.5, 0.75],
    "open": [True, False, True],
    "event_timestamp": [DAY, DAY, DAY - timedelta(days=400)],
}
NAMES = ("card_history__mean", "card_history__count", "place__rate", "place__open")


def definitions() -> list[Any]:
    """What a repo's .py files define."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Bool, Float32, Float64, Int64, String

    def source(name: str) -> Any:
        return FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp")

    def fields(**types: Any) -> list[Any]:
        return [Field(name=name, dtype=dtype) for name, dtype in types.items()]

    card = Entity(name="card", join_keys=["card"], value_type=ValueType.STRING)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
    city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)
    cards = fields(card=String, mean=Float32, count=Int64, unused=Float64)
    places = fields(shop_id=Int64, city=String, rate=Float64, open=Bool)
    of_cards = source("cards")
    card_history = FeatureView(name="card_history", entities=[card], ttl=timedelta(days=2), schema=cards, source=of_cards)
    place = FeatureView(name="place", entities=[shop, city], ttl=timedelta(0), schema=places, source=source("places"))
    words = FeatureView(name="words", entities=[card], schema=fields(card=String, word=String), source=source("words"))
    limits = fields(card=String, unused=Float64)
    limit = FeatureView(name="limit", entities=[card], ttl=timedelta(0), schema=limits, source=of_cards)
    services = [
        FeatureService(name="pay_v1", features=[card_history[["mean", "count"]], place]),
        FeatureService(name="card_v1", features=[card_history[["mean", "count"]]]),
        FeatureService(name="ready_v1", features=[card_history[["count", "mean"]], limit], precompute_online=True),
        FeatureService(name="worded", features=[words]),
    ]
    return [card, shop, city, card_history, place, words, limit, *services]


def make_repo(folder: Path, online_store: str = SQLITE) -> Path:
    """Writes the repo, applies it, and materialises all that there is."""
    feast = load_feast()
    (folder / "data").mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(
        f"project: pay\nprovider: local\nregistry: data/registry.db\nonline_store: {online_store}\n"
        "offline_store: {type: file}\nentity_key_serialization_version: 3\n"
    )
    pq.write_table(pa.table(CARDS), folder / "data" / "cards.parquet")
    pq.write_table(pa.table(PLACES), folder / "data" / "places.parquet")
    pq.write_table(pa.table({"card": ["a"], "word": ["x"], "event_timestamp": [DAY]}), folder / "data" / "words.parquet")
    store = feast.FeatureStore(repo_path=str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        store.apply(definitions())
        store.materialize(DAY - timedelta(days=500), DAY + timedelta(days=1))
    return folder
