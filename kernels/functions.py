"""Scalar functions that several kernels share, accurate to float32; the interpreter runs them."""

import triton
import triton.language as tl
from triton import knobs

# Two faults of the interpreter with bfloat16 are avoided: it multiplies the bit patterns of tiles
# (in float32 their products are exact), and it truncates where a GPU rounds to nearest.
_INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Returns x in dtype, rounded to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def product(a, b, total):
    """Returns total + a b in float32; float32 operands are not rounded to TF32."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def hyperbolic_tangent(x):
    """Returns tanh in float32 to a few units in the last place, by its series near 0."""
    square = x * x
    series = x * (
        1.0
        + square
        * (
            -0.3333333333333333
            + square
            * (
                0.13333333333333333
                + square * (-0.05396825396825397 + square * 0.021869488536155203)
            )
        )
    )
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -far, far))


@triton.jit
def activation(x, NAME: tl.constexpr):
    if NAME == "silu":
        return x / (1.0 + tl.exp(-x))
    elif NAME == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "tanh":
        return hyperbolic_tangent(x)
    else:
        return x


@triton.jit
def activation_slope(x, NAME: tl.constexpr):
    if NAME == "silu":
        chance = 1.0 / (1.0 + tl.exp(-x))
        return chance * (1.0 + x * (1.0 - chance))
    elif NAME == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    elif NAME == "tanh":
        value = hyperbolic_tangent(x)
        return 1.0 - value * value
    else:
        return x * 0.0 + 1.0
