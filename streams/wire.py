"""What crosses between processes or goes into a snapshot: Arrow IPC bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def to_ipc(batch: pa.RecordBatch) -> bytes:
    """A record batch with its schema, and nothing of what it is a slice of."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def from_ipc(data: bytes) -> pa.RecordBatch:
    """The record batch of `to_ipc`."""
    return pa.ipc.open_stream(data).read_next_batch()


def arrays_to_ipc(arrays: Sequence[npt.NDArray[Any]]) -> bytes:
    """Arrays [n] and [k, n] of one n, each row a column, named by the array's place and dimensions."""
    columns: dict[str, pa.Array] = {}
    for place, array in enumerate(arrays):
        if array.ndim == 1:
            columns[f"{place}"] = pa.array(array)
        else:
            columns |= {f"{place}.{k}": pa.array(row) for k, row in enumerate(array)}
    shape = {"rows": str(arrays[0].shape[-1]), "arrays": " ".join(f"{array.ndim}{array.dtype.str}" for array in arrays)}
    return to_ipc(pa.record_batch(columns).replace_schema_metadata(shape))


def arrays_from_ipc(data: bytes) -> list[npt.NDArray[Any]]:
    """The arrays of `arrays_to_ipc`."""
    batch = from_ipc(data)
    arrays = []
    for place, kind in enumerate(batch.schema.metadata[b"arrays"].decode().split(" ")):
        if kind[0] == "1":
            arrays.append(batch[f"{place}"].to_numpy())
        else:
            names = [name for name in batch.schema.names if name.startswith(f"{place}.")]
            rows = [batch[name].to_numpy() for name in names]
            arrays.append(np.array(rows, np.dtype(kind[1:])).reshape(len(rows), batch.num_rows))
    return arrays
