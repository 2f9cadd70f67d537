"""A writer's schema as a program for the kernel: what to read, what to skip, in the order of the bytes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kernels.avro import cpu
from kernels.avro.naive import MICROS, MOST_DEPTH, Path, is_empty
from kernels.avro.writer import Type
from kernels.flat_json import Field

MOST_CODE = 50_000
SOURCES = {"int": cpu.INT, "long": cpu.LONG, "float": cpu.FLOAT, "double": cpu.DOUBLE, "boolean": cpu.BOOLEAN}
Wanted = list[tuple[Path, int]]
"""Names that are still to go, and the field that they lead to."""


class Code:
    """The programs of all schemas that were met, one after the other.

    rows: instructions of four numbers; kernels/avro/cpu.py says which. aux: tables that they point into. symbols: texts of
    enums, each as its place and length in aux and its bytes here.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = tuple(fields)
        self._kinds = next((field.values for field in fields if field.type == "kind"), ())
        self._rows: list[tuple[int, int, int, int]] = []
        self._aux: list[int] = []
        self._entries: list[int] = []
        self.symbols = bytearray()

    def add(self, writer: Type) -> int:
        """Adds the program of a schema and returns its number. A schema that is too much for the kernel has one that leaves
        every message."""
        at, aux = len(self._rows), len(self._aux)
        self._limit = at + MOST_CODE
        try:
            self._emit(writer, [(field.steps, f) for f, field in enumerate(self._fields)], (), 0, 0)
        except OverflowError:
            del self._rows[at:], self._aux[aux:]
            self._put(cpu.LEAVE)
        self._put(cpu.END)
        self._entries.append(at)
        return len(self._entries) - 1

    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """rows int64 [n, 4], aux int32, and where each program begins int32 [programs]."""
        rows = np.array(self._rows, np.int64).reshape(-1, 4)
        return rows, np.array(self._aux, np.int32), np.array(self._entries, np.int32)

    def _put(self, op: int, a: int = 0, b: int = 0, c: int = 0) -> int:
        if len(self._rows) >= self._limit:
            raise OverflowError
        self._rows.append((op, a, b, c))
        return len(self._rows) - 1

    def _patch(self, at: int) -> None:
        """The instruction jumps to here."""
        op, _, b, c = self._rows[at]
        self._rows[at] = op, len(self._rows), b, c

    def _emit(self, type: Type, wanted: Wanted, above: tuple[Type, ...], depth: int, loops: int) -> None:
        """depth: types around this one; loops: arrays and maps around it; above: records around it."""
        if depth > MOST_DEPTH:
            self._put(cpu.LEAVE)
            return
        if type.kind == "record":
            if type in above or any(not path for path, _ in wanted):
                self._put(cpu.LEAVE)
                return
            for name, part in zip(type.names, type.parts, strict=True):
                inside = [(path[1:], f) for path, f in wanted if path[0] == name]
                self._emit(part, inside, (*above, type), depth + 1, loops)
        elif type.kind == "union":
            self._union(type, wanted, above, depth, loops)
        elif type.kind == "null":
            return
        elif any(path for path, _ in wanted):
            self._put(cpu.LEAVE)
        elif not wanted:
            self._skip(type, above, depth, loops)
        else:
            for place, (_, f) in enumerate(wanted):
                if len(wanted) > 1:
                    self._put(cpu.BACK if place else cpu.KEEP)
                self._read(type, f)

    def _union(self, type: Type, wanted: Wanted, above: tuple[Type, ...], depth: int, loops: int) -> None:
        table = len(self._aux)
        self._aux += [0] * len(type.parts)
        self._put(cpu.UNION, table, len(type.parts))
        jumps = []
        for branch, part in enumerate(type.parts):
            self._aux[table + branch] = len(self._rows)
            self._emit(part, wanted, above, depth + 1, loops)
            if branch < len(type.parts) - 1:
                jumps.append(self._put(cpu.JUMP))
        for at in jumps:
            self._patch(at)

    def _skip(self, type: Type, above: tuple[Type, ...], depth: int, loops: int) -> None:
        match type.kind:
            case "int" | "long" | "boolean":
                self._put(cpu.SKIP, SOURCES[type.kind])
            case "enum":
                self._put(cpu.SKIP_ENUM, len(type.symbols))
            case "float" | "double" | "fixed":
                self._put(cpu.SKIP_BYTES, {"float": 4, "double": 8}.get(type.kind, type.size))
            case "string" | "bytes":
                self._put(cpu.SKIP_SIZED)
            case _:
                if loops == cpu.MOST_LOOPS:
                    self._put(cpu.LEAVE)
                    return
                empty = type.kind == "array" and is_empty(type.parts[0])
                at = self._put(cpu.BLOCKS, 0, loops, int(empty))
                if not empty:
                    if type.kind == "map":
                        self._put(cpu.SKIP_SIZED)
                    self._emit(type.parts[0], [], above, depth + 1, loops + 1)
                    self._put(cpu.LOOP, at, loops)
                self._patch(at)

    def _read(self, type: Type, f: int) -> None:
        field, kind, logical = self._fields[f], type.kind, type.logical
        if field.type == "number" and kind in SOURCES:
            self._put(cpu.NUMBER, f, SOURCES[kind])
        elif field.type == "number" and kind in ("bytes", "fixed") and logical == "decimal" and type.scale <= 22:
            self._put(cpu.DECIMAL, f, type.size if kind == "fixed" else -1, type.scale)
        elif field.type == "integer" and kind in ("int", "long", "boolean"):
            self._put(cpu.INTEGER, f, SOURCES[kind])
        elif field.type == "time" and (kind, logical) == ("int", "date"):
            self._put(cpu.TIME, f, MICROS["date"])
        elif field.type == "time" and kind == "long" and logical in ("timestamp-micros", "timestamp-millis", "timestamp-nanos"):
            self._put(cpu.TIME, f, MICROS.get(logical, -1000))
        elif field.type in ("text", "kind") and kind == "enum":
            self._put(cpu.ENUM_KIND if field.type == "kind" else cpu.ENUM_TEXT, f, self._enum(type, field), len(type.symbols))
        elif field.type in ("text", "kind") and kind in ("string", "bytes", "fixed") and logical != "decimal":
            self._put(cpu.TEXT_KIND if field.type == "kind" else cpu.TEXT, f, type.size if kind == "fixed" else -1)
        elif field.type == "vector" and not field.as_text and kind == "array" and type.parts[0].kind in NUMBERS:
            self._put(cpu.VECTOR, f, SOURCES[type.parts[0].kind])
        else:
            self._put(cpu.LEAVE)

    def _enum(self, type: Type, field: Field) -> int:
        """A table in aux: the place of each symbol among the kinds, or its start and length in `symbols`."""
        table = len(self._aux)
        for symbol in type.symbols:
            if field.type == "kind":
                self._aux.append(self._kinds.index(symbol) if symbol in self._kinds else -1)
            else:
                text = symbol.encode()
                self._aux += [len(self.symbols), len(text)]
                self.symbols += text
        return table


NUMBERS = ("int", "long", "float", "double")
