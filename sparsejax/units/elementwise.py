"""Elementwise primitives, and what they make of numbers: to know what becomes of a unit that is masked.

A function takes the equation and a float64 array for each operand, NaN where the number is not known.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.units.known import meet
from sparsejax.units.program import Equation

__all__ = ["FUNCTIONS", "OTHERS"]

Function = Callable[..., np.ndarray]


def _of(function: Callable[..., np.ndarray]) -> Function:
    """Returns a function of known numbers that is not known where one of them is not."""

    def lifted(equation: Equation, *numbers: np.ndarray) -> np.ndarray:
        unknown = np.logical_or.reduce(np.broadcast_arrays(*(np.isnan(x) for x in numbers)))
        return np.where(unknown, np.nan, function(*numbers))

    return lifted


def _mul(equation: Equation, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A factor that is not known is taken to be finite.
    zero = ((x == 0) & ~np.isinf(y)) | ((y == 0) & ~np.isinf(x))
    return np.where(zero, 0.0, x * y)


def _div(equation: Equation, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A divisor that is not known is taken not to be 0.
    return np.where((x == 0) & np.isnan(y), 0.0, x / y)


def _select(equation: Equation, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    chosen = [np.where(which == i, case, 0.0) for i, case in enumerate(cases)]
    return np.where(np.isnan(which), meet(np.broadcast_arrays(*cases)), sum(chosen))


def _logical(function: Callable[..., np.ndarray], absorbing: float | None) -> Function:
    """Returns a function of truth values; of integers nothing is known."""
    lifted = _of(lambda *numbers: function(*(x != 0 for x in numbers)).astype(float))

    def of_bools(equation: Equation, *numbers: np.ndarray) -> np.ndarray:
        if equation.outputs[0].dtype != jnp.bool_:
            return np.full(np.broadcast_shapes(*(x.shape for x in numbers)), np.nan)
        decided = np.logical_or.reduce(np.broadcast_arrays(*(x == absorbing for x in numbers)))
        return np.where(decided, np.nan if absorbing is None else absorbing, lifted(equation, *numbers))

    return of_bools


def _convert(equation: Equation, x: np.ndarray) -> np.ndarray:
    dtype = equation.outputs[0].dtype
    if dtype == jnp.bool_:
        return np.where(np.isnan(x), np.nan, x != 0)
    return np.trunc(x) if jnp.issubdtype(dtype, jnp.integer) else x


def _by_power(equation: Equation, x: np.ndarray) -> np.ndarray:
    return _of(lambda x: x ** float(equation.params["y"]))(equation, x)


def _round(equation: Equation, x: np.ndarray) -> np.ndarray:
    if equation.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return np.round(x)
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def _each(function: Callable[[float], float]) -> Function:
    return _of(np.vectorize(function, otypes=[float]))


def _same(equation: Equation, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return x


def _compare(function: Callable[..., np.ndarray]) -> Function:
    return _of(lambda x, y: function(x, y).astype(float))


FUNCTIONS: dict[str, Function] = {
    "mul": _mul,
    "div": _div,
    "select_n": _select,
    "convert_element_type": _convert,
    "integer_pow": _by_power,
    "and": _logical(np.logical_and, 0.0),
    "or": _logical(np.logical_or, 1.0),
    "xor": _logical(np.logical_xor, None),
    "not": _logical(np.logical_not, None),
    **dict.fromkeys(["add", "add_any"], _of(np.add)),
    "sub": _of(np.subtract),
    "rem": _of(np.fmod),
    "max": _of(np.maximum),
    "min": _of(np.minimum),
    "pow": _of(np.power),
    "atan2": _of(np.arctan2),
    "clamp": _of(lambda low, x, high: np.clip(x, low, high)),
    "eq": _compare(np.equal),
    "ne": _compare(np.not_equal),
    "lt": _compare(np.less),
    "le": _compare(np.less_equal),
    "gt": _compare(np.greater),
    "ge": _compare(np.greater_equal),
    "neg": _of(np.negative),
    "sign": _of(np.sign),
    "abs": _of(np.abs),
    "floor": _of(np.floor),
    "ceil": _of(np.ceil),
    "round": _round,
    "is_finite": _of(lambda x: np.isfinite(x).astype(float)),
    "exp": _of(np.exp),
    "exp2": _of(np.exp2),
    "expm1": _of(np.expm1),
    "log": _of(np.log),
    "log1p": _of(np.log1p),
    "log2": _of(np.log2),
    "sqrt": _of(np.sqrt),
    "rsqrt": _of(lambda x: 1 / np.sqrt(x)),
    "cbrt": _of(np.cbrt),
    "square": _of(np.square),
    "one_minus_square": _of(lambda x: 1 - np.square(x)),
    "logistic": _of(lambda x: 1 / (1 + np.exp(-x))),
    "sin": _of(np.sin),
    "cos": _of(np.cos),
    "tan": _of(np.tan),
    "asin": _of(np.arcsin),
    "acos": _of(np.arccos),
    "atan": _of(np.arctan),
    "sinh": _of(np.sinh),
    "cosh": _of(np.cosh),
    "tanh": _of(np.tanh),
    "asinh": _of(np.arcsinh),
    "acosh": _of(np.arccosh),
    "atanh": _of(np.arctanh),
    "erf": _each(math.erf),
    "erfc": _each(math.erfc),
    **dict.fromkeys(["real", "copy", "copy_p", "stop_gradient", "reduce_precision", "name"], _same),
}
"""`{primitive: function}`; operands and results have the same shape, but for axes of length 1, or are scalars."""

OTHERS = (
    "bessel_i0e", "bessel_i1e", "bitcast_convert_type", "clz", "complex", "conj", "digamma", "erf_inv", "igamma",
    "igamma_grad_a", "igammac", "imag", "lgamma", "mulhi", "nextafter", "polygamma", "polynomial", "population_count",
    "regularized_incomplete_beta", "shift_left", "shift_right_arithmetic", "shift_right_logical", "threefry2x32",
    "zeta",
)  # fmt: skip
"""Elementwise primitives of which no numbers are computed."""
