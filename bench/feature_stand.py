"""A Feast view for measuring: written by Feast itself, read by its SDK and by us, checked against what was written."""

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.figures import WrongError
from bench.show import say
from features.stored import StoredFeatures
from features.views import load_feast

F32 = npt.NDArray[np.float32]
FEATURES = 10
NOW = pd.Timestamp("2026-01-01", tz="UTC")
NOW_US = NOW.value // 1000
SQLITE = "{type: sqlite, path: data/online.db}"


@dataclass(frozen=True)
class Stand:
    """A Feast repo whose store holds `cards`, with values float32 [entities, FEATURES]."""

    repo: Path
    store: Any
    service: Any
    cards: pa.Array
    values: F32

    def batch(self, which: npt.NDArray[Any]) -> pa.RecordBatch:
        """Events of these cards, by number."""
        return pa.RecordBatch.from_arrays([self.cards.take(pa.array(which))], ["card"])

    def opened(self, **values: Any) -> StoredFeatures:
        """Our features of it, with nothing held."""
        return StoredFeatures(self.repo, "bench", clock=time.time, **values)

    def sdk(self, which: npt.NDArray[Any]) -> dict[str, list[Any]]:
        """What Feast's SDK says of these cards."""
        rows = {"card": self.cards.take(pa.array(which)).to_pylist()}
        found: dict[str, list[Any]] = self.store.get_online_features(self.service, entity_rows=rows).to_dict()
        return found

    def check(self, columns: dict[str, F32], which: npt.NDArray[Any]) -> None:
        """Raises WrongError where ours are not the values that were written."""
        for k in range(FEATURES):
            if not np.array_equal(columns[f"profile__f{k}"], self.values[which, k]):
                raise WrongError(f"f{k}: not the values that were written")

    def check_sdk(self, found: dict[str, list[Any]], which: npt.NDArray[Any]) -> None:
        """Raises WrongError where the SDK's are not."""
        for k in range(FEATURES):
            if not np.array_equal(np.array(found[f"f{k}"], np.float32), self.values[which, k]):
                raise WrongError(f"f{k}: Feast's SDK does not say what was written")


@contextmanager
def stand(online_store: str, entities: int) -> Iterator[Stand]:
    """A repo with an online store that Feast has filled."""
    feast = load_feast()
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32, String

    rng = np.random.default_rng(0)
    values = rng.random((entities, FEATURES), dtype=np.float32)
    names = [f"card-{k:010d}" for k in range(entities)]
    frame = pd.DataFrame({"card": names, **{f"f{k}": values[:, k] for k in range(FEATURES)}, "event_timestamp": NOW})
    with tempfile.TemporaryDirectory() as temporary:
        repo = Path(temporary) / "repo"
        (repo / "data").mkdir(parents=True)
        (repo / "feature_store.yaml").write_text(
            f"project: bench\nprovider: local\nregistry: data/registry.db\nonline_store: {online_store}\n"
            "offline_store: {type: file}\nentity_key_serialization_version: 3\n"
        )
        pq.write_table(pa.Table.from_pandas(frame), repo / "data" / "profile.parquet")
        card = Entity(name="card", join_keys=["card"], value_type=ValueType.STRING)
        view = FeatureView(
            name="profile",
            entities=[card],
            ttl=timedelta(days=365_000),
            schema=[Field(name="card", dtype=String), *(Field(name=f"f{k}", dtype=Float32) for k in range(FEATURES))],
            source=FileSource(name="profile", path="data/profile.parquet", timestamp_field="event_timestamp"),
        )
        store = feast.FeatureStore(repo_path=str(repo))
        with contextlib.redirect_stdout(io.StringIO()):
            store.apply([card, view, FeatureService(name="bench", features=[view])])
        say(f"Feast writes {entities:,} entities")
        for start in range(0, entities, 10_000):
            store.write_to_online_store("profile", frame[start : start + 10_000])
        yield Stand(repo, store, store.get_feature_service("bench"), pa.array(names), values)
