"""The flights' stored features by Feast's SDK, as a user of Feast reads them, in the venvs of the peers that have it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SERVICE = "flight_v1"
KEYS = {"route": ("origin", "dest"), "carrier": ("carrier",), "plane": ("tailnum",)}
FEATURES = ("late_share", "mean_arr_delay", "flights")


def one_by_one(repo: Path) -> Callable[[Row], Row]:
    """Reads the online store by `get_online_features` for each row of fields. Gives the features by full name."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repo))
    service = store.get_feature_service(SERVICE)

    def read(row: Row) -> Row:
        keys = {"origin": row["origin"], "dest": row["dest"], "carrier": row["carrier"], "tailnum": row["tailnum"] or ""}
        found = store.get_online_features(service, [keys], full_feature_names=True).to_dict()
        return {name: values[0] for name, values in found.items() if name not in keys}

    return read


def all_at_once(repo: Path) -> Callable[[Row], Row]:
    """Reads the whole online store once, at the start, and each row from memory: as fast as it can be, and never refreshed."""
    import pyarrow.parquet as pq
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repo))
    views = []
    for name, keys in KEYS.items():
        known = pq.read_table(repo / "data" / f"{name}.parquet", columns=list(keys)).group_by(list(keys)).aggregate([])
        entities = {key: known[key].to_pylist() for key in keys}
        references = [f"{name}_history:{feature}" for feature in FEATURES]
        found = store.get_online_features(references, entities, full_feature_names=True).to_dict()
        names = [f"{name}_history__{feature}" for feature in FEATURES]
        rows = zip(*(found[full] for full in names), strict=True)
        table = dict(zip(zip(*(found[key] for key in keys), strict=True), rows, strict=True))
        views.append((keys, table, names))
    none = (None,) * len(FEATURES)

    def read(row: Row) -> Row:
        features: Row = {}
        for keys, table, names in views:
            features.update(zip(names, table.get(tuple([row[key] for key in keys]), none), strict=True))
        return features

    return read
