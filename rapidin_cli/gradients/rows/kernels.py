"""Loops over stored bytes and bits, compiled by numba: about as fast as the bytes can be read.

Compiled when first imported (two or three seconds), then kept beside this file, or in the user's
cache where that cannot be written. They leave the interpreter to other threads and start none.

A row is multiplied in parts, each of a layer: `weights[i, layers[t]]` counts for part t of row i.
Without weights by layer there is one column of ones. Sums are of float32, over few numbers each.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import float32, int16, int64, types
from numba.extending import intrinsic

BYTES = 16
"""Bytes of bits that are multiplied at once: 128 columns."""
WORTH = np.array([1, 2, 4, 8, 1, 2, 4, 8], np.float32)
"""What each bit of a byte, the lowest first, multiplies a direction's number by."""
# Rows at once: one fills a vector of AVX2 or NEON, two fill one of AVX-512.
_ROWS = 2 if llvmlite.binding.get_host_cpu_features().get("avx512bw") else 1
_LANES = _ROWS * BYTES
_EVEN_AND_ODD = list(range(0, _LANES, 2)), list(range(1, _LANES, 2))
# Sums may be reordered, but what is not finite stays so.
_LOOSE = {"reassoc", "contract", "nsz"}

if numba.config.DISABLE_JIT:
    raise ImportError("numba is not to compile (NUMBA_DISABLE_JIT)")


def _compiled(*signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for these arguments; keep the code if there is a place for it."""
    how = {"nogil": True, "fastmath": _LOOSE, "error_model": "numpy"}

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(types.void(*signature), cache=True, **how)(function)
        except Exception:  # A full disk, no folder that can be written, a file cut short.
            return numba.njit(types.void(*signature), **how)(function)

    return compiled


def _matrix(dtype: Any) -> Any:
    return types.Array(dtype, 2, "C")


@numba.njit(nogil=True, fastmath=_LOOSE)  # type: ignore[untyped-decorator]
def _dots(a: Any, b: Any, c: Any, d: Any, direction: Any) -> Any:
    """Four rows at once, which read the direction once."""
    of_a = of_b = of_c = of_d = np.float32(0)
    for k in range(len(direction)):
        value = direction[k]
        of_a += np.float32(a[k]) * value
        of_b += np.float32(b[k]) * value
        of_c += np.float32(c[k]) * value
        of_d += np.float32(d[k]) * value
    return of_a, of_b, of_c, of_d


@_compiled(
    _matrix(types.int8), float32[::1], int64[::1], int64[::1], _matrix(float32), float32[::1]
)
def multiply_bytes(
    rows: Any, direction: Any, ends: Any, layers: Any, weights: Any, into: Any
) -> None:
    """Multiply rows of int8 numbers with a direction.

    Args:
        rows: (n, K) int8.
        direction: (K,) float32.
        ends: (T + 1,) int64: part t has the columns from ends[t] to ends[t + 1].
        layers: (T,) int64, the column of weights that counts for each part.
        weights: (n, L) float32.
        into: (n,) float32, overwritten.
    """
    last = len(rows) - 1
    for i in range(0, len(rows), 4):
        # The last row again where there are no four.
        j, k, m = min(i + 1, last), min(i + 2, last), min(i + 3, last)
        of_i = of_j = of_k = of_m = np.float32(0)
        for t in range(len(layers)):
            start, stop = ends[t], ends[t + 1]
            a, b, c, d = _dots(
                rows[i, start:stop],
                rows[j, start:stop],
                rows[k, start:stop],
                rows[m, start:stop],
                direction[start:stop],
            )
            of_i += weights[i, layers[t]] * a
            of_j += weights[j, layers[t]] * b
            of_k += weights[k, layers[t]] * c
            of_m += weights[m, layers[t]] * d
        into[i], into[j], into[k], into[m] = of_i, of_j, of_k, of_m


@intrinsic  # type: ignore[untyped-decorator]
def _add_chosen(
    _: Any, rows: Any, pair: Any, start: Any, numbers: Any, t: Any, scales: Any, sums: Any
) -> Any:
    """Add the products of two rows' bytes with one part of a direction: vector code.

    LLVM makes no good one of a loop over bits. For part t, which starts at byte `start`, of the
    rows `pair`, which count `scales`; sums is (2, BYTES / 2) float32. Where _ROWS is 1 only the
    first of each two counts. The other arguments are those of `multiply_bits`.
    """

    def code(context: Any, build: Any, signature: Any, values: Any) -> Any:
        kinds = signature.args
        rows, numbers, sums = (
            context.make_array(kinds[n])(context, build, values[n]) for n in (0, 3, 6)
        )
        start, part, width = values[2], values[4], build.extract_value(rows.shape, 1)
        bytes_of_rows, scales = [], []
        for n in range(_ROWS):
            row, scale = (build.extract_value(values[m], n) for m in (1, 5))
            at = build.gep(rows.data, [build.add(build.mul(row, width), start)])
            bytes_of_rows.append(_load(build, at, ir.IntType(8), BYTES))
            scales.append(_spread(build, scale))
        short, whole = (ir.VectorType(ir.IntType(n), _LANES) for n in (16, 32))
        low = build.zext(_joined(build, bytes_of_rows), short)
        high = build.lshr(low, short([4] * _LANES))
        first = build.gep(numbers.data, [build.mul(part, part.type(8 * BYTES))])
        halves = [ir.VectorType(ir.IntType(32), _LANES // 2)(order) for order in _EVEN_AND_ODD]
        total = halves[0].type([0] * (_LANES // 2))
        for bit in range(8):
            ours = _load(build, build.gep(first, [part.type(bit * BYTES)]), ir.IntType(16), BYTES)
            alone = build.and_(high if bit > 3 else low, short([int(WORTH[bit])] * _LANES))
            # LLVM has one instruction for these products and the sums of each two.
            ours = build.sext(_joined(build, [ours] * _ROWS), whole)
            products = build.mul(build.sext(alone, whole), ours)
            even, odd = (build.shuffle_vector(products, products, order) for order in halves)
            total = build.add(total, build.add(even, odd))
        floats = build.sitofp(total, ir.VectorType(ir.FloatType(), _LANES // 2))
        more = build.fmul(floats, _joined(build, scales), flags=["contract"])
        place = build.bitcast(sums.data, more.type.as_pointer())
        known = build.load(place, align=4)
        build.store(build.fadd(known, more, flags=["contract"]), place, align=4)
        return context.get_dummy_value()

    return types.void(rows, pair, start, numbers, t, scales, sums), code


def _load(build: Any, address: Any, element: Any, count: int) -> Any:
    """A vector of numbers that lie side by side."""
    place = ir.VectorType(element, count).as_pointer()
    return build.load(build.bitcast(address, place), align=1)


def _spread(build: Any, value: Any) -> Any:
    """A vector of BYTES / 2 times the same number."""
    nothing = ir.Constant(ir.VectorType(value.type, BYTES // 2), ir.Undefined)
    first = build.insert_element(nothing, value, ir.IntType(32)(0))
    order = ir.VectorType(ir.IntType(32), BYTES // 2)([0] * (BYTES // 2))
    return build.shuffle_vector(first, first, order)


def _joined(build: Any, parts: list[Any]) -> Any:
    """One vector of those of each row."""
    if len(parts) == 1:
        return parts[0]
    count = 2 * parts[0].type.count
    order = ir.VectorType(ir.IntType(32), count)(list(range(count)))
    return build.shuffle_vector(*parts, order)


@_compiled(
    _matrix(types.uint8),
    types.Array(int16, 3, "C"),
    int64[::1],
    int64[::1],
    float32[::1],
    _matrix(float32),
    float32[::1],
)
def multiply_bits(
    rows: Any, numbers: Any, starts: Any, layers: Any, steps: Any, weights: Any, into: Any
) -> None:
    """Sum the numbers of a direction whose bits are set in rows.

    Args:
        rows: (n, B) uint8, B at least BYTES.
        numbers: (T, 8, BYTES) int16: numbers[t, b, i] belongs to bit b, 0 the lowest, of the
            i-th byte of part t, and counts WORTH[b] times.
        starts: (T,) int64, the first byte of each part; at most B - BYTES.
        layers: (T,) int64, the column of weights that counts for each part.
        steps: (T,) float32, what numbers of each part count.
        weights: (n, L) float32.
        into: (n,) float32, overwritten.
    """
    sums = np.empty((2, BYTES // 2), np.float32)
    last = len(rows) - 1
    for i in range(0, len(rows), _ROWS):
        j = min(i + _ROWS - 1, last)
        sums[:] = 0
        for t in range(len(starts)):
            of_i, of_j = weights[i, layers[t]] * steps[t], weights[j, layers[t]] * steps[t]
            _add_chosen(rows, (i, j), starts[t], numbers, t, (of_i, of_j), sums)
        into[i] = sums[0].sum()
        if j > i:
            into[j] = sums[1].sum()
