"""Feature services with `precompute_online`: one message an entity, which holds the features of all views."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from features.entity_keys import VERSION
from features.feast_value import number
from features.rows import Fetched, Read
from features.views import View
from kernels.feast_values.cpu import NONE

TOGETHER_SECONDS = 1.0


def precomputed_reader(store: Any, service: str, otherwise: Read) -> Read | None:
    """A reader of a service's precomputed messages, if it has them; None for any other service.

    An entity without a message is read as `otherwise` reads it; so is everything while the store fails, and raises.
    """
    from feast.infra.key_encoding_utils import deserialize_entity_key
    from feast.protos.feast.core.PrecomputedFeatureVector_pb2 import PrecomputedFeatureVector

    if not store.get_feature_service(service).precompute_online:
        return None
    kept: dict[str, Any] = {"keys": None, "messages": [], "given": set(), "until": 0.0}

    def messages(view: View, keys: list[bytes]) -> list[Any]:
        """The message of each entity, None where there is none. The views of a service ask for the same entities one after
        the other: they are given the messages that the first of them has fetched, each once."""
        if keys != kept["keys"] or view.name in kept["given"] or time.monotonic() > kept["until"]:
            entities = [deserialize_entity_key(key, VERSION) for key in keys]
            blobs = store.provider.online_store.read_precomputed_vectors(store.config, service, store.config.project, entities)
            found = [PrecomputedFeatureVector.FromString(blob) if blob else None for blob in blobs]
            kept.update(keys=keys, messages=found, given=set(), until=time.monotonic() + TOGETHER_SECONDS)
        kept["given"].add(view.name)
        messages: list[Any] = kept["messages"]
        return messages

    def read(view: View, keys: Sequence[bytes]) -> Fetched:
        keys = list(keys)
        values = np.full((len(view.features), len(keys)), np.nan, np.float32)
        times = np.full(len(keys), NONE, np.int64)
        bare = []
        for row, message in enumerate(messages(view, keys)):
            found = dict(zip(message.feature_names, message.values, strict=True)) if message is not None else {}
            if not found.keys() >= set(view.names):
                bare.append(row)
                continue
            values[:, row] = [number(found[name]) for name in view.names]
            stamps = {each.feature_view_name: each.event_timestamp for each in message.fv_timestamps}
            stamp = stamps.get(view.name)
            if stamp is not None and (stamp.seconds or not np.isnan(values[:, row]).all()):
                times[row] = stamp.ToMicroseconds()
        if bare:
            rest = otherwise(view, [keys[row] for row in bare])
            values[:, bare], times[bare] = rest.values, rest.times
        return Fetched(values, times)

    return read
