"""What is pushed to Feast of a decided batch: streaming features as the events saw them."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from features.memo import microseconds
from features.pushing import Pushing, Values
from features.spec import Push, Window
from features.streaming import Group
from streams.decide import Deciding, Work


def taker(push: Push, group: Group, deciding: Deciding, pushing: Pushing) -> Callable[[Work], None]:
    """What hands a batch's values over. Left out are events without an entity, and windows that are not full yet: in Feast
    nobody could tell."""
    spans = {
        f"warming:{each.over if isinstance(each, Window) else each.within}_by_{group.entity}"
        for each in group.features
        if set(each.names) & set(push.features)
    }
    at = deciding.names.time
    warming = np.int64(sum(1 << k for k, name in enumerate(deciding.flags) if name in spans))

    def take(work: Work) -> None:
        entity = work.batch.column(group.entity)
        if pa.types.is_dictionary(entity.type):
            entity = entity.dictionary_decode()
        values = np.array([work.computed[name] for name in push.features])
        found = Values(entity, values, microseconds(work.batch.column(at)))
        left_out = (work.flags & warming) != 0
        if entity.null_count or left_out.any():
            rows = np.flatnonzero(entity.is_valid().to_numpy(zero_copy_only=False) & ~left_out)
            if not len(rows):
                return
            found = found.rows(rows)
        pushing.take(found)

    return take
