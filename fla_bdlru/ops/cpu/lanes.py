"""A vector of 16 float32 lanes as a numba type, and the gate maths written with it.

The CPU kernels put one block (or channel) in one lane. Scalar loops would leave it to LLVM's loop vectoriser whether they
run on vectors; with this type every load, store and operation is a vector instruction by construction, and there is less
to compile. LLVM lowers 16 lanes to what the machine has: one AVX-512 register, two AVX2 or four NEON ones. Of the
fast-math flags only `contract` (fused multiply-add) is used, so NaN and Inf behave.

Arrays are flat (1-D) and offsets count elements. numba has no bfloat16, so its arrays travel as int16; float16 is left to
PyTorch, as CPUs without conversion instructions would need a library call.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload, register_model

LANES = 16

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


class _BFloat(ir.HalfType):
    """LLVM's bfloat16, which llvmlite does not have."""

    null, intrinsic_name = "0.0", "bf16"

    def __str__(self):
        return "bfloat"


_BFloat._create_instance()
_F32S, _BF16S, _I32S, _I16S, _I1S = (ir.VectorType(x, LANES) for x in (_F32, _BFloat(), _I32, _I16, ir.IntType(1)))
# features of the machine that numba compiles for, which NUMBA_CPU_NAME and NUMBA_CPU_FEATURES change
_HAS = {name[1:]: name[0] == "+" for name in cpu_target.target_context.codegen().magic_tuple()[2].split(",") if name}


def _numba_type(name: str, llvm_type: ir.Type) -> types.Type:
    """A numba type whose values are `llvm_type`."""

    def init(self, dmm, fe_type):
        models.PrimitiveModel.__init__(self, dmm, fe_type, llvm_type)

    cls = type(name, (types.Opaque,), {})
    register_model(cls)(type(f"{name}Model", (models.PrimitiveModel,), {"__init__": init}))
    return cls(name)


vec = _numba_type("Vec", _F32S)  # 16 floats
lane_mask = _numba_type("LaneMask", _I1S)  # 16 booleans
vec_array = _numba_type("VecArray", _F32S.as_pointer())  # vectors on the stack; registers where loops unroll


# ---------------------------------------------------------------------------------------------------- arithmetic


def _all(vector_type: ir.VectorType, x: float) -> ir.Constant:
    return ir.Constant(vector_type, [x] * LANES)


def _broadcast(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """A scalar in every lane; a vector as it is."""
    if isinstance(x.type, ir.VectorType):
        return x
    if x.type == ir.DoubleType():
        x = builder.fptrunc(x, _F32)
    undefined = ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined)
    lane0 = builder.insert_element(undefined, x, _I32(0))
    return builder.shuffle_vector(lane0, undefined, _all(_I32S, 0))


def _elementwise(emit, returns=vec):
    """An intrinsic of two vectors (or a vector and a float) from `emit(builder, a, b)`."""

    @intrinsic
    def op(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return emit(builder, *(_broadcast(builder, x) for x in args))

        return returns(*(x if x == vec else types.float64 for x in (a, b))), codegen

    return op


def _bind(symbol, emit, returns=vec) -> None:
    """Gives `vec` a Python operator."""
    op = _elementwise(emit, returns)

    @overload(symbol)
    def impl(a, b):
        if vec in (a, b) and all(x == vec or isinstance(x, types.Number) for x in (a, b)):
            return lambda a, b: op(a, b)


_FMA = ("contract",)
_bind(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=_FMA))
_bind(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=_FMA))
_bind(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=_FMA))
_bind(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
_bind(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), lane_mask)
_bind(operator.lt, lambda builder, a, b: builder.fcmp_ordered("<", a, b), lane_mask)


@intrinsic
def where(typingctx, condition, a, b):
    """`a` in the lanes where `condition` holds, `b` elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(args[0], *(_broadcast(builder, x) for x in args[1:]))

    return vec(lane_mask, *(x if x == vec else types.float64 for x in (a, b))), codegen


@intrinsic
def larger(typingctx, a, b):
    """max(a, b), either where one is NaN; LLVM would blend integers where a and b are made of bits."""

    def codegen(context, builder, signature, args):
        if not _HAS.get("avx512f"):
            return builder.select(builder.fcmp_ordered(">", *args), *args)
        function_type = ir.FunctionType(_F32S, [_F32S, _F32S, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx512.max.ps.512")
        return builder.call(function, [*args, _I32(4)])  # rounding as ever

    return vec(vec, vec), codegen


@intrinsic
def absolute(typingctx, a):
    """|a|, by clearing the sign bit."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32S)
        return builder.bitcast(builder.and_(bits, _all(_I32S, 0x7FFFFFFF)), _F32S)

    return vec(vec), codegen


@intrinsic
def splat(typingctx, a):
    """A float in every lane."""

    def codegen(context, builder, signature, args):
        return _broadcast(builder, args[0])

    return vec(types.float64), codegen


@intrinsic
def across(typingctx, a):
    """The sum of all lanes, as a float."""

    def codegen(context, builder, signature, args):
        function_type = ir.FunctionType(_F32, [_F32, _F32S])
        function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(function, [_F32(0.0), args[0]], fastmath=("reassoc",))

    return types.float32(vec), codegen


@intrinsic
def power_of_two(typingctx, a):
    """2^k for a = 1.5 * 2^23 + k, whose low bits are k; 0 for k = -127."""

    def codegen(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], _I32S), _all(_I32S, 23))
        return builder.bitcast(builder.add(bits, _all(_I32S, 127 << 23)), _F32S)

    return vec(vec), codegen


# -------------------------------------------------------------------------------------------------------- memory


@intrinsic
def lanes_below(typingctx, n):
    """A mask of the first n lanes; `None` (all lanes, no mask) for `None`."""
    if n == types.none:
        return types.none(n), lambda context, builder, signature, args: context.get_dummy_value()

    def codegen(context, builder, signature, args):
        count = _broadcast(builder, builder.trunc(args[0], _I32))
        return builder.icmp_signed("<", ir.Constant(_I32S, list(range(LANES))), count)

    return lane_mask(types.int64), codegen


_STORED_AS = {types.float32: _F32S, types.int16: _I16S}


def _address(context, builder, array_type, array, offset):
    """The address of `array[offset]` as a pointer to 16 elements, and the alignment that is certain."""
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [offset])
    return builder.bitcast(pointer, _STORED_AS[array_type.dtype].as_pointer()), array_type.dtype.bitwidth // 8


def _masked(builder, name, stored, returns, args):
    """Calls `llvm.masked.load` or `llvm.masked.store` for 16 elements stored as `stored`."""
    name = f"llvm.masked.{name}.v{LANES}{'f32' if stored == _F32S else 'i16'}.p0"
    function_type = ir.FunctionType(returns, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


@intrinsic
def load(typingctx, array, offset, mask):
    """16 elements from `array[offset]` as float32; lanes outside the mask are not read and give 0."""

    def codegen(context, builder, signature, args):
        pointer, align = _address(context, builder, array, *args[:2])
        stored = _STORED_AS[array.dtype]
        if mask == types.none:
            x = builder.load(pointer, align=align)
        else:
            x = _masked(builder, "load", stored, stored, [pointer, _I32(align), args[2], ir.Constant(stored, None)])
        if stored == _I16S:
            return builder.bitcast(builder.shl(builder.zext(x, _I32S), _all(_I32S, 16)), _F32S)
        return x

    return vec(array, types.int64, mask), codegen


def _to_bfloat16(builder, x):
    """Rounds to nearest, ties to even; NaN stays NaN. A machine's own instruction flushes what is below the normal range."""
    if _HAS.get("avx512bf16"):
        return builder.bitcast(builder.fptrunc(x, _BF16S), _I16S)
    bits = builder.bitcast(x, _I32S)
    odd = builder.and_(builder.lshr(bits, _all(_I32S, 16)), _all(_I32S, 1))
    rounded = builder.add(bits, builder.add(odd, _all(_I32S, 0x7FFF)))
    rounded = builder.select(builder.fcmp_unordered("uno", x, x), _all(_I32S, 0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, _all(_I32S, 16)), _I16S)


@intrinsic
def store(typingctx, array, offset, value, mask):
    """Writes 16 floats to `array[offset]` in the array's type; lanes outside the mask are left alone. Nothing for `None`."""
    if array == types.none:
        return types.void(array, types.int64, vec, mask), lambda context, builder, signature, args: context.get_dummy_value()

    def codegen(context, builder, signature, args):
        pointer, align = _address(context, builder, array, *args[:2])
        stored, x = _STORED_AS[array.dtype], args[2]
        if stored == _I16S:
            x = _to_bfloat16(builder, x)
        if mask == types.none:
            builder.store(x, pointer, align=align)
        else:
            _masked(builder, "store", stored, ir.VoidType(), [x, pointer, _I32(align), args[3]])

    return types.void(array, types.int64, vec, mask), codegen


def _prefetch(write: int):
    @intrinsic
    def prefetch(typingctx, array, offset):
        def codegen(context, builder, signature, args):
            pointer = builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]])
            pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
            function_type = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
            function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
            builder.call(function, [pointer, _I32(write), _I32(3), _I32(1)])  # near, data

        return types.void(array, types.int64), codegen

    return prefetch


# a hint that array[offset] will be read (written) soon; any offset is safe
prefetch_read, prefetch_write = _prefetch(0), _prefetch(1)


@intrinsic(prefer_literal=True)
def stack(typingctx, n):
    """Room for n vectors (n known at compile time) on the stack."""
    size = n.literal_value

    def codegen(context, builder, signature, args):
        block = cgutils.alloca_once(builder, ir.ArrayType(_F32S, size))
        return builder.bitcast(block, _F32S.as_pointer())

    return vec_array(n), codegen


@intrinsic
def get(typingctx, vectors, i):
    """`vectors[i]` of a `stack` array."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.gep(args[0], [args[1]]))

    return vec(vec_array, types.int64), codegen


@intrinsic
def put(typingctx, vectors, i, value):
    """`vectors[i] = value` of a `stack` array."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], builder.gep(args[0], [args[1]]))

    return types.void(vec_array, types.int64, vec), codegen
