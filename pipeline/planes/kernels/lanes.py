"""Vector instructions for numba: sums of products of int16 values, two products at a time.

On AVX2 (and on what has it, AVX-512 too) one instruction, vpmaddwd, multiplies 16 pairs of int16
and adds every two of the products to an int32. LLVM does not find it by itself where a weight is
the same for a whole row. Elsewhere the same sums are written as multiplications and additions: the
values are the same bit for bit, integers that never leave an int32.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, register_model

WIDTH = 16  # positions of a row that are loaded at once
HALF = WIDTH // 2

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_SHORTS, _SUMS = ir.VectorType(_I16, WIDTH), ir.VectorType(_I32, HALF)
Code = tuple[Any, Callable[..., Any]]
# kernels call what it makes with other arguments than those below
intrinsic: Callable[[Callable[..., Code]], Any] = _intrinsic


class Vector(types.Type):
    """A register of int16 or int32 values."""

    def __init__(self, name: str, llvm: ir.Type) -> None:
        super().__init__(name=name)
        self.llvm = llvm


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)  # type: ignore[no-untyped-call]


_shorts, _sums = Vector("int16x16", _SHORTS), Vector("int32x8", _SUMS)


@intrinsic
def zeros(_: Any) -> Code:
    """int32x8 of zeros."""
    return _sums(), lambda *_: ir.Constant(_SUMS, [0] * HALF)


@intrinsic
def load(_: Any, row: Any, start: Any) -> Code:
    """int16x16: row[start : start + WIDTH]. row: (J,) int16, contiguous."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_at(context, builder, signature, args[0], args[1], _SHORTS), align=2)

    return _shorts(row, types.intp), generate


@intrinsic
def load_pair(_: Any, weights: Any, start: Any) -> Code:
    """int16x16: weights[start], weights[start + 1], again and again. weights: (M,) int16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair = builder.load(_at(context, builder, signature, args[0], args[1], _I32), align=2)
        first = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), pair, _I32(0))
        return builder.bitcast(_shuffle(builder, first, first, [0] * HALF), _SHORTS)

    return _shorts(weights, types.intp), generate


@intrinsic
def interleave_low(_: Any, one: Any, other: Any) -> Code:
    """int16x16: one[j], other[j] in turn, of the first half of each 8 positions."""
    return _interleave([0, 1, 2, 3, 8, 9, 10, 11])


@intrinsic
def interleave_high(_: Any, one: Any, other: Any) -> Code:
    """The same of the second half of each 8."""
    return _interleave([4, 5, 6, 7, 12, 13, 14, 15])


def _interleave(positions: list[int]) -> Code:
    mask = [place for j in positions for place in (j, j + WIDTH)]

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return _shuffle(builder, args[0], args[1], mask)

    return _shorts(_shorts, _shorts), generate


@intrinsic
def add_products(_: Any, sums: Any, pairs: Any, weights: Any) -> Code:
    """int32x8: sums[i] + pairs[2i]·weights[2i] + pairs[2i + 1]·weights[2i + 1]."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        sums, *factors = args
        products = (_vpmaddwd if _has_avx2(context) else _plainly)(builder, factors)
        return builder.add(sums, products)

    return _sums(_sums, _shorts, _shorts), generate


@intrinsic
def store(_: Any, low: Any, high: Any, row: Any, start: Any) -> Code:
    """row[start : start + WIDTH] = the sums of what the two interleavings gave, in order again.

    row: (J,) int32, contiguous.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low, high, row, start = args
        for half, places in enumerate(([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])):
            at = builder.add(start, start.type(half * HALF))
            target = _at(context, builder, signature, row, at, _SUMS, 2)
            builder.store(_shuffle(builder, low, high, places), target, align=4)
        return context.get_dummy_value()

    return types.void(_sums, _sums, row, types.intp), generate


def _at(
    context: Any, builder: Any, signature: Any, array: Any, index: Any, kind: Any, which: int = 0
) -> Any:
    """Pointer to `kind` at array[index]; the array is argument `which`."""
    data = context.make_array(signature.args[which])(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _shuffle(builder: Any, one: Any, other: Any, places: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, len(places)), places)
    return builder.shuffle_vector(one, other, mask)


def _has_avx2(context: Any) -> bool:
    """Of the processor that is compiled for: NUMBA_CPU_FEATURES may say less than this one has."""
    return "+avx2" in context.codegen().magic_tuple()[2].split(",")


def _vpmaddwd(builder: Any, factors: list[Any]) -> Any:
    kind = ir.FunctionType(_SUMS, [_SHORTS, _SHORTS])
    name, get = "llvm.x86.avx2.pmadd.wd", cgutils.get_or_insert_function
    return builder.call(get(builder.module, kind, name), factors)  # type: ignore[no-untyped-call]


def _plainly(builder: Any, factors: list[Any]) -> Any:
    products = []
    for parity in (0, 1):
        places = list(range(parity, WIDTH, 2))
        wide = [builder.sext(_shuffle(builder, one, one, places), _SUMS) for one in factors]
        products.append(builder.mul(*wide))
    return builder.add(*products)
