"""Our reader of an online store beside Feast's own online_read."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.entity_keys import entity_keys
from features.online import feast_reader, open_reader
from features.views import views

VALUES: dict[str, list[Any]] = {
    "STRING": ["a", "b", "c", "Ulm", "Bonn", "nobody", "ä\x1f;'\"", ""],
    "INT64": [1, 2, 3, -1, 1, 1, 2, 0],
}
MANY: dict[str, list[Any]] = {"STRING": [f"x{k}" for k in range(1500)], "INT64": list(range(10, 1510))}


def same_by_feast(store: Any, service: str) -> None:
    """Every view of a service is read the same, of entities that are there and that are not, many and few."""
    ours, own = open_reader(store, service), feast_reader(store)
    for view in views(store, Path(store.repo_path), service):
        kinds = [kind.name for kind in view.key_types]
        columns = [pa.array([value for value in VALUES[kind] for _ in range(8)] + MANY[kind]) for kind in kinds[:1]]
        columns += [pa.array(VALUES[kind] * 8 + MANY[kind]) for kind in kinds[1:]]
        keys = list(dict.fromkeys(entity_keys(view)(columns)))
        some = 0
        for asked in (keys, keys[:1], [], keys[::-1]):
            found, expected = ours(view, asked), own(view, asked)
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_array_equal(found.times, expected.times)
            some += int(np.isfinite(found.values).any())
        assert some
