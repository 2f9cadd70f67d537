"""A small language for conditions and derived columns, evaluated on whole columns.

It is Python's own syntax, cut down: `and or not` (three-valued, as in SQL), comparisons (chained ones too), `in ("a", "b")`,
`is None`, `+ - * /`, numbers, strings, and the functions of FUNCTIONS and TIMES. `kilometres(lat, lon, lat, lon)` is the
distance of two places in degrees, null where there is no such latitude. Every node is tried on an empty batch when it is
compiled, so that a wrong name or type is found, with its place, when the pipeline is made.
"""

import ast
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.memo import Memo
from kernels.local_time.cpu import parts


class HasColumns(Protocol):
    """A record batch, or what gives some columns as numpy arrays."""

    def column(self, name: str) -> Any: ...


class HasRows(HasColumns, Protocol):
    """A record batch, or what gives the columns of one."""

    @property
    def num_rows(self) -> int: ...


Evaluate = Callable[[Any], Any]


Quick = Callable[[HasColumns], "npt.NDArray[np.bool_] | None"]

BOOL, DOUBLE = pa.bool_(), pa.float64()
MICROSECONDS = pa.timestamp("us", "UTC")
MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
NOTHING = pa.scalar(None, BOOL)
EARTH_DIAMETER_KM = 12_742.0
QUICK_TYPES = (DOUBLE, pa.float32(), pa.int64())

COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("==", pc.equal),
    ast.NotEq: ("!=", pc.not_equal),
    ast.Lt: ("<", pc.less),
    ast.LtE: ("<=", pc.less_equal),
    ast.Gt: (">", pc.greater),
    ast.GtE: (">=", pc.greater_equal),
}
QUICK: dict[type[ast.cmpop], Callable[[Any, Any], Any] | None] = {
    ast.Eq: np.equal,
    ast.NotEq: None,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
ARITHMETIC: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", pc.add),
    ast.Sub: ("-", pc.subtract),
    ast.Mult: ("*", pc.multiply),
    ast.Div: ("/", lambda a, b: pc.divide(_double(a), _double(b))),
}
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "log1p": (1, lambda x: pc.log1p(_double(x))),
    "abs": (1, pc.abs),
    "min": (2, lambda a, b: pc.min_element_wise(a, b, skip_nulls=False)),
    "max": (2, lambda a, b: pc.max_element_wise(a, b, skip_nulls=False)),
    "coalesce": (2, pc.coalesce),
    "kilometres": (4, lambda *places: _kilometres(*places)),
}
TIMES: dict[str, tuple[int, int, int]] = {"hour": (HOUR, 0, 24), "minute_of_day": (MINUTE, 0, 1440), "weekday": (DAY, 3, 7)}
"""Functions of a time and a time zone: unit, shift, modulo as in kernels/local_time; weekday counts from Monday, 0."""


@dataclass(frozen=True)
class Expression:
    """A compiled expression: called with a record batch of n rows, it returns an Arrow array [n] of `type`."""

    text: str
    names: frozenset[str]
    type: pa.DataType
    _evaluate: Evaluate
    quick: Quick | None = None

    def __call__(self, batch: HasRows) -> pa.Array:
        result = self._evaluate(batch)
        return result if isinstance(result, pa.Array) else pa.repeat(result, batch.num_rows)


def mask(expression: Expression, batch: pa.RecordBatch | Memo) -> npt.NDArray[np.bool_]:
    """A condition's result as bool [n], where null counts as false. Raises ValueError for what is not a condition."""
    if isinstance(batch, Memo):
        return batch.once((expression.text, "true"), lambda: _true(expression, batch))
    return _true(expression, batch)


def _true(expression: Expression, batch: pa.RecordBatch | Memo) -> npt.NDArray[np.bool_]:
    if expression.type != BOOL:
        raise ValueError(f"expression {expression.text!r}: expected a condition, got {expression.type}")
    if expression.quick is not None and (quick := expression.quick(batch)) is not None:
        return quick
    result = expression(batch)
    if result.null_count:
        result = pc.fill_null(result, False)
    return result.to_numpy(zero_copy_only=False)


def compile_expression(text: str, columns: pa.Schema) -> Expression:
    """Compiles an expression over `columns`.

    Raises ValueError, naming the expression and the place in it, for wrong syntax, an unknown column or function, or types that
    do not go together.
    """
    source = text.strip()
    try:
        tree = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"expression {source!r}: {error.msg} at character {error.offset or len(source) + 1}") from None
    compiler = _Compiler(source, columns)
    node = compiler.node(tree)
    return Expression(source, frozenset(compiler.names), node.type, node.evaluate, node.quick)


@dataclass(frozen=True)
class _Node:
    """Part of an expression. `constant` is its value where it has one, `name` that of a column; `evaluate` returns an array, or
    a scalar; `quick`, of a condition, returns where it is true, at a tenth of the cost for a few rows, or None where it cannot.
    """

    evaluate: Evaluate
    type: pa.DataType
    constant: pa.Scalar | None = None
    name: str = ""
    quick: Quick | None = None


class _Compiler:
    def __init__(self, text: str, columns: pa.Schema) -> None:
        self.text = text
        self.columns = columns
        self.empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in columns], schema=columns)
        self.names: set[str] = set()

    def refuse(self, node: ast.AST, reason: str) -> ValueError:
        column = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        return ValueError(f"expression {self.text!r}: {reason} at character {column + 1}")

    def tried(self, node: ast.expr, name: str, evaluate: Evaluate, parts: Sequence[_Node]) -> _Node:
        try:
            result = evaluate(self.empty)
        except (pa.ArrowException, TypeError, ValueError):
            kinds = " and ".join(str(part.type) for part in parts)
            raise self.refuse(node, f"{name} does not take {kinds}") from None
        return _Node(evaluate, result.type)

    def node(self, node: ast.expr) -> _Node:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return self.constant(node, value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return self.constant(node, -value)
            case ast.Constant(value=None):
                raise self.refuse(node, "None stands only after `is` or `is not`")
            case ast.Name(id=name):
                return self.column(node, name)
            case ast.BoolOp(op=op, values=values):
                name, join = ("and", pc.and_kleene) if isinstance(op, ast.And) else ("or", pc.or_kleene)
                return self.fold(node, name, join, [self.node(value) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.apply(node, "not", pc.invert, [self.node(operand)])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.apply(node, "-", pc.negate, [self.node(operand)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return self.apply(node, *ARITHMETIC[type(op)], _alike([self.node(left), self.node(right)]))
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                pairs = [self.compare(node, a, op, b) for a, op, b in zip(sides, ops, others, strict=False)]
                return self.fold(node, "and", pc.and_kleene, pairs)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(node, name, args)
        raise self.refuse(node, f"cannot use {ast.unparse(node)!r} here")

    def constant(self, node: ast.expr, value: bool | int | float | str) -> _Node:
        try:
            scalar = pa.scalar(value)
        except (OverflowError, pa.ArrowException):
            raise self.refuse(node, f"{value} does not fit 64 bits") from None
        return _constant(scalar)

    def column(self, node: ast.expr, name: str) -> _Node:
        if name not in self.columns.names:
            close = difflib.get_close_matches(name, self.columns.names, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(self.columns.names)}"
            raise self.refuse(node, f"no column {name} ({hint})")
        self.names.add(name)
        return _Node(lambda batch: batch.column(name), self.columns.field(name).type, name=name)

    def apply(self, node: ast.expr, name: str, function: Callable[..., Any], parts: Sequence[_Node]) -> _Node:
        if len(parts) == 1:
            only = parts[0].evaluate
            return self.tried(node, name, lambda batch: function(only(batch)), parts)
        if len(parts) > 2:
            return self.tried(node, name, lambda batch: function(*(part.evaluate(batch) for part in parts)), parts)
        first, second = (part.evaluate for part in parts)
        return self.tried(node, name, lambda batch: function(first(batch), second(batch)), parts)

    def fold(self, node: ast.expr, name: str, join: Callable[[Any, Any], Any], parts: list[_Node]) -> _Node:
        result = parts[0]
        for part in parts[1:]:
            result = self.apply(node, name, join, [result, part])
        quicks = [part.quick for part in parts if part.quick is not None]
        if len(quicks) < len(parts):
            return result
        return replace(result, quick=_joined(quicks, np.logical_and if name == "and" else np.logical_or))

    def compare(self, node: ast.expr, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Node:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self.refuse(right, "`is` takes None only")
            test = (lambda x: pc.is_null(x, nan_is_null=True)) if isinstance(op, ast.Is) else _known
            return self.apply(node, "is", test, [self.node(left)])
        if isinstance(op, ast.In | ast.NotIn):
            return self.member(node, left, right, isinstance(op, ast.NotIn))
        if type(op) not in COMPARE:
            raise self.refuse(left, f"cannot use {ast.unparse(node)!r} here")
        name, function = COMPARE[type(op)]
        sides = [self.node(left), self.node(right)]
        if not any(pa.types.is_dictionary(side.type) for side in sides):
            made = self.apply(node, name, function, _alike(sides))
            return replace(made, quick=_of_numbers(QUICK[type(op)], *sides))

        def by_code(a: Any, b: Any) -> Any:
            if isinstance(a, pa.DictionaryArray) and isinstance(b, pa.Scalar):
                return function(a.dictionary, b).take(a.indices)
            if isinstance(b, pa.DictionaryArray) and isinstance(a, pa.Scalar):
                return function(a, b.dictionary).take(b.indices)
            return function(_plain(a), _plain(b))

        return replace(self.apply(node, name, by_code, sides), quick=_of_codes(function, *sides))

    def member(self, node: ast.expr, left: ast.expr, right: ast.expr, inverted: bool) -> _Node:
        if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
            raise self.refuse(right, '`in` takes a list of values, as in ("a", "b")')
        items = [self.node(item).constant for item in right.elts]
        if any(item is None for item in items):
            raise self.refuse(right, "`in` takes values, not columns")
        value = self.node(left)
        plain = value.type.value_type if pa.types.is_dictionary(value.type) else value.type
        try:
            members = pa.array([item.as_py() for item in items if item is not None]).cast(plain)
        except (pa.ArrowException, TypeError):
            raise self.refuse(right, f"`in` expects values of type {plain}") from None
        options, is_in = pc.SetLookupOptions(members), pc.get_function("is_in")

        def among(column: Any) -> Any:
            if isinstance(column, pa.DictionaryArray):
                found = is_in.call([column.dictionary], options).take(column.indices)
            else:
                found = is_in.call([column], options)
                found = found if column.null_count == 0 else pc.if_else(column.is_valid(), found, NOTHING)
            return pc.invert(found) if inverted else found

        return self.apply(node, "in", among, [value])

    def call(self, node: ast.expr, name: str, args: list[ast.expr]) -> _Node:
        known = [*FUNCTIONS, *TIMES]
        if name not in known:
            raise self.refuse(node, f"no function {name} (expected one of {', '.join(known)})")
        count, function = FUNCTIONS.get(name, (2, None))
        if len(args) != count:
            raise self.refuse(node, f"{name} takes {count} values, got {len(args)}")
        if function is None:
            return self.local(node, name, *args)
        return self.apply(node, name, function, _alike([self.node(arg) for arg in args]))

    def local(self, node: ast.expr, name: str, when: ast.expr, where: ast.expr) -> _Node:
        time, zone = self.node(when), self.node(where).constant
        if not pa.types.is_timestamp(time.type):
            raise self.refuse(when, f"{name} takes a time, got {time.type}")
        if zone is None or not pa.types.is_string(zone.type):
            raise self.refuse(where, f'{name} takes a time zone such as "Europe/Vienna"')
        try:
            ZoneInfo(zone.as_py())
        except (ZoneInfoNotFoundError, ValueError):
            raise self.refuse(where, f"{name}: no time zone {zone.as_py()}") from None
        part, changes = TIMES[name], offsets(zone.as_py())
        return self.apply(node, name, lambda times: _of_time(part, times, *changes), [time])


def _joined(quicks: Sequence[Quick], join: Callable[[Any, Any], Any]) -> Quick:
    """Where all (or any) of the conditions are true; three-valued logic agrees with that."""

    def quick(batch: HasColumns) -> npt.NDArray[np.bool_] | None:
        result = None
        for one in quicks:
            true = one(batch)
            if true is None:
                return None
            result = true if result is None else join(result, true)
        return result

    return quick


def _of_numbers(compare: Callable[[Any, Any], Any] | None, left: _Node, right: _Node) -> Quick | None:
    """A column of float64 or int64 beside a number. A null float is a NaN here, which compares as false, as null does."""
    constant = right.constant
    if (
        compare is None
        or not left.name
        or constant is None
        or left.type not in (DOUBLE, pa.float32(), pa.int64())
        or not _number(right.type)
    ):
        return None
    name, value = left.name, constant.as_py()

    def quick(batch: HasColumns) -> npt.NDArray[np.bool_] | None:
        column = batch.column(name)
        if isinstance(column, np.ndarray):
            return compare(column, value)
        if column.null_count and column.type == pa.int64():
            return None
        return compare(column.to_numpy(zero_copy_only=False), value)

    return quick


def _of_codes(compare: Callable[[Any, Any], Any], left: _Node, right: _Node) -> Quick | None:
    """A column of codes beside a text: the text is looked up once for each dictionary, not for each row."""
    if not left.name or right.constant is None:
        return None
    name, value = left.name, right.constant
    last: tuple[pa.Array, npt.NDArray[np.bool_]] = pa.array([], pa.string()), np.empty(0, np.bool_)

    def quick(batch: HasColumns) -> npt.NDArray[np.bool_] | None:
        nonlocal last
        column = batch.column(name)
        if column.null_count or column.dictionary.null_count:
            return None
        words, true = last
        if not column.dictionary.equals(words):
            true = compare(column.dictionary, value).to_numpy(zero_copy_only=False)
            last = column.dictionary, true
        return true[column.indices.to_numpy()]

    return quick


def _constant(scalar: pa.Scalar) -> _Node:
    return _Node(lambda batch: scalar, scalar.type, scalar)


def _alike(parts: Sequence[_Node]) -> list[_Node]:
    """Constants are given the type of the column they meet where that loses nothing but float precision: no cast per call."""
    kinds = [part.type for part in parts if part.constant is None]
    if len(kinds) != 1 or not _number(kinds[0]):
        return list(parts)
    return [_cast(part, kinds[0]) for part in parts]


def _cast(part: _Node, kind: pa.DataType) -> _Node:
    if part.constant is None or not _number(part.type) or (pa.types.is_floating(part.type) and pa.types.is_integer(kind)):
        return part
    try:
        return _constant(pa.scalar(part.constant.as_py(), kind))
    except (OverflowError, pa.ArrowException):
        return part


def _number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _double(value: Any) -> Any:
    return value if value.type == DOUBLE else value.cast(DOUBLE)


def _kilometres(*places: Any) -> Any:
    lat, lon, other_lat, other_lon = (_degrees(each) for each in places)
    degrees = np.radians(lat), np.radians(other_lat)
    with np.errstate(invalid="ignore"):
        half = np.sin((degrees[1] - degrees[0]) / 2) ** 2
        half = half + np.cos(degrees[0]) * np.cos(degrees[1]) * np.sin(np.radians(other_lon - lon) / 2) ** 2
        far = EARTH_DIAMETER_KM * np.arcsin(np.sqrt(np.minimum(half, 1.0)))
        far = np.where((np.abs(lat) <= 90) & (np.abs(other_lat) <= 90), far, np.nan)
    return pa.array(far, from_pandas=True) if far.ndim else pa.scalar(None if np.isnan(far) else float(far), DOUBLE)


def _degrees(value: Any) -> npt.NDArray[np.float64]:
    if isinstance(value, pa.Scalar):
        return np.array(np.nan if value.as_py() is None else value.as_py(), np.float64)
    return np.asarray(_double(value).to_numpy(zero_copy_only=False))


def _known(value: Any) -> Any:
    return pc.invert(pc.is_null(value, nan_is_null=True))


def _plain(value: Any) -> Any:
    return value.dictionary_decode() if isinstance(value, pa.DictionaryArray) else value


@cache
def offsets(zone: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """When a zone's offset from UTC changes and what it is then, microseconds i64 [c], to the minute, from 1900 to 2262.
    Arrow knows no summer time after 2037.

    A table of some hundred changes, looked up, costs a third of a conversion of each time.
    """
    wanted = pa.timestamp("us", zone)

    def at(micros: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        local = pc.local_timestamp(pa.array(micros).cast(pa.timestamp("us", "UTC")).cast(wanted))
        return local.cast(pa.int64()).to_numpy() - micros

    days = np.arange(-25_567, 106_650) * DAY
    of_day = at(days)
    changed = np.flatnonzero(np.diff(of_day))
    minutes = (days[changed][:, None] + np.arange(0, 1441) * MINUTE).ravel()
    of_minute = at(minutes)
    inside = np.flatnonzero((np.diff(of_minute) != 0) & (np.diff(minutes) == MINUTE))
    return np.append(days[:1], minutes[inside + 1]), np.append(of_day[:1], of_minute[inside + 1])


def _of_time(
    part: tuple[int, int, int],
    times: pa.Array,
    since: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
) -> pa.Array:
    """A part of local times; times in microseconds, before 1900 with the offset of 1900."""
    if isinstance(times, pa.Scalar):
        return _of_time(part, pa.array([times.as_py()], times.type), since, offset)[0]
    filled = times.cast(MICROSECONDS) if times.type.unit != "us" else times
    micros = (filled if times.null_count == 0 else filled.fill_null(0)).view(pa.int64()).to_numpy()
    micros.flags.writeable = False  # as Arrow's mostly are: else Numba compiles for each kind
    out = np.empty(len(micros), np.int64)
    parts(micros, since, offset, *part, out)
    return pa.array(out, mask=None if times.null_count == 0 else times.is_null().to_numpy(zero_copy_only=False))
