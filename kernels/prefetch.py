"""Asks the processor to bring memory that is wanted soon, so that many misses are waited for at a time and not one by one."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WRITE, KEEP, DATA = 1, 3, 1


@intrinsic
def prefetch(typing: Any, array: Any, row: Any) -> Any:
    """prefetch(array, row): the cache line where a row of an array begins. A hint: any row may be named, nothing is read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, held.strides)[0]
        offset = builder.mul(context.cast(builder, arguments[1], signature.args[1], types.intp), stride)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.gep(builder.bitcast(held.data, byte), [offset])
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(instruction, [address, *(number(value) for value in (WRITE, KEEP, DATA))])
        return context.get_dummy_value()

    return types.void(array, row), generate
