"""A small language for conditions and derived columns, evaluated on whole columns.

It is Python's own syntax, cut down: `and or not` (three-valued, as in SQL), comparisons (chained ones too),
`in ("a", "b")`, `is None`, `+ - * /`, numbers, strings, and the functions of FUNCTIONS. An expression is compiled once
against the columns it will see, so that a wrong name or type is found when the pipeline is made.
"""

import ast
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Evaluate = Callable[[pa.RecordBatch], Any]

COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: lambda a, b: pc.divide(_double(a), _double(b)),
}


def _double(value: Any) -> Any:
    return pc.cast(value, pa.float64()) if isinstance(value, pa.Array | pa.Scalar) else float(value)


def _local(times: Any, zone: Any) -> Any:
    return pc.cast(times, pa.timestamp("us", zone))


def _minute_of_day(times: Any, zone: Any) -> Any:
    local = _local(times, zone)
    return pc.add(pc.multiply(pc.hour(local), 60), pc.minute(local))


FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "hour": (2, lambda times, zone: pc.hour(_local(times, zone))),
    "minute_of_day": (2, _minute_of_day),
    "weekday": (2, lambda times, zone: pc.day_of_week(_local(times, zone))),
    "log1p": (1, lambda x: pc.log1p(_double(x))),
    "abs": (1, pc.abs),
    "min": (2, lambda a, b: pc.min_element_wise(a, b, skip_nulls=False)),
    "max": (2, lambda a, b: pc.max_element_wise(a, b, skip_nulls=False)),
    "coalesce": (2, pc.coalesce),
}


@dataclass(frozen=True)
class Expression:
    """A compiled expression: called with a record batch of n rows, it returns an Arrow array [n] of `type`."""

    text: str
    names: frozenset[str]
    type: pa.DataType
    _evaluate: Evaluate

    def __call__(self, batch: pa.RecordBatch) -> pa.Array:
        result = self._evaluate(batch)
        if isinstance(result, pa.Array):
            return result
        return pa.repeat(result if isinstance(result, pa.Scalar) else pa.scalar(result), batch.num_rows)


def mask(expression: Expression, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """A condition's result as bool [n], where null counts as false."""
    result = expression(batch)
    if result.null_count:
        result = pc.fill_null(result, False)
    return result.to_numpy(zero_copy_only=False)


def compile_expression(text: str, columns: pa.Schema) -> Expression:
    """Compiles an expression over `columns`.

    Raises ValueError, naming the expression and the place in it, for wrong syntax, an unknown column or function, or types that
    do not go together.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"expression {text!r}: {error.msg} at character {error.offset}") from None
    compiler = _Compiler(text, columns)
    evaluate = compiler.node(tree)
    empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in columns], schema=columns)
    try:
        result = evaluate(empty)
    except (pa.ArrowException, TypeError, ValueError) as error:
        kinds = ", ".join(f"{name} {columns.field(name).type}" for name in sorted(compiler.names))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"expression {text!r}: {reason} ({kinds})") from None
    kind = result.type if isinstance(result, pa.Array | pa.Scalar) else pa.scalar(result).type
    return Expression(text, frozenset(compiler.names), kind, evaluate)


class _Compiler:
    def __init__(self, text: str, columns: pa.Schema) -> None:
        self.text = text
        self.columns = columns
        self.names: set[str] = set()

    def refuse(self, node: ast.AST, reason: str) -> ValueError:
        return ValueError(f"expression {self.text!r}: {reason} at character {getattr(node, 'col_offset', 0) + 1}")

    def node(self, node: ast.expr) -> Evaluate:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return lambda batch: value
            case ast.Name(id=name):
                return self.column(node, name)
            case ast.BoolOp(op=op, values=values):
                join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
                return self.fold(join, [self.node(value) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.apply(pc.invert, operand)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return lambda batch: -value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.apply(pc.negate, operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return self.apply(ARITHMETIC[type(op)], left, right)
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                pairs = [self.compare(a, op, b) for a, op, b in zip(sides, ops, others, strict=False)]
                return self.fold(pc.and_kleene, pairs)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(node, name, args)
        raise self.refuse(node, f"cannot use {ast.unparse(node)!r} here")

    def column(self, node: ast.expr, name: str) -> Evaluate:
        if name not in self.columns.names:
            close = difflib.get_close_matches(name, self.columns.names, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(self.columns.names)}"
            raise self.refuse(node, f"no column {name}: {hint}")
        self.names.add(name)
        return lambda batch: batch[name]

    def apply(self, function: Callable[..., Any], *nodes: ast.expr) -> Evaluate:
        parts = [self.node(node) for node in nodes]
        if len(parts) == 1:
            only = parts[0]
            return lambda batch: function(only(batch))
        first, second = parts
        return lambda batch: function(first(batch), second(batch))

    def fold(self, join: Callable[[Any, Any], Any], parts: list[Evaluate]) -> Evaluate:
        if len(parts) == 1:
            return parts[0]

        def evaluate(batch: pa.RecordBatch) -> Any:
            result = parts[0](batch)
            for part in parts[1:]:
                result = join(result, part(batch))
            return result

        return evaluate

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Evaluate:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self.refuse(right, "`is` takes None only")
            value = self.node(left)
            test = pc.is_null if isinstance(op, ast.Is) else pc.is_valid
            return lambda batch: test(value(batch))
        if isinstance(op, ast.In | ast.NotIn):
            return self.member(left, right, isinstance(op, ast.NotIn))
        if type(op) not in COMPARE:
            raise self.refuse(left, f"cannot use {ast.unparse(op)!r} here")
        first, second, function = self.node(left), self.node(right), COMPARE[type(op)]

        def evaluate(batch: pa.RecordBatch) -> Any:
            a, b = first(batch), second(batch)
            if isinstance(a, pa.DictionaryArray) and not isinstance(b, pa.Array):
                return function(a.dictionary, b).take(a.indices)
            if isinstance(b, pa.DictionaryArray) and not isinstance(a, pa.Array):
                return function(a, b.dictionary).take(b.indices)
            return function(_plain(a), _plain(b))

        return evaluate

    def member(self, left: ast.expr, right: ast.expr, inverted: bool) -> Evaluate:
        if not isinstance(right, ast.Tuple | ast.List) or not all(isinstance(item, ast.Constant) for item in right.elts):
            raise self.refuse(right, "`in` takes a list of values")
        value = self.node(left)
        members = pa.array([item.value for item in right.elts if isinstance(item, ast.Constant)])

        def evaluate(batch: pa.RecordBatch) -> Any:
            column = _plain(value(batch))
            found = pc.is_in(column, value_set=members.cast(column.type))
            found = pc.if_else(pc.is_valid(column), found, pa.scalar(None, pa.bool_()))
            return pc.invert(found) if inverted else found

        return evaluate

    def call(self, node: ast.expr, name: str, args: list[ast.expr]) -> Evaluate:
        if name not in FUNCTIONS:
            raise self.refuse(node, f"no function {name}: expected one of {', '.join(FUNCTIONS)}")
        count, function = FUNCTIONS[name]
        if len(args) != count:
            raise self.refuse(node, f"{name} takes {count} values, got {len(args)}")
        return self.apply(function, *args)


def _plain(value: Any) -> Any:
    return value.dictionary_decode() if isinstance(value, pa.DictionaryArray) else value
