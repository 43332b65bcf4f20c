"""What is known of a number that a user gives: the decimal it stands for, and whether it is in its range."""

import numbers
from fractions import Fraction

import chex
import jax
import numpy as np


def meant(number: float) -> Fraction:
    """Returns the number that was meant: 0.49 itself is not a float."""
    return Fraction(float(number)).limit_denominator(10**9)


def as_scalar(value: chex.Numeric) -> float:
    """Returns a value as a Python float, NaN if it is no concrete scalar; text is none, whatever it says."""
    try:
        return float(value) if np.ndim(value) == 0 and not isinstance(value, str | bytes) else np.nan
    except (TypeError, ValueError):
        return np.nan


def check_not_negative(argument: str, value: chex.Numeric) -> None:
    """Raises `ValueError` unless a value is a finite number >= 0; says nothing about the value of a traced one."""
    if not isinstance(value, jax.core.Tracer) and not 0 <= as_scalar(value) < np.inf:
        raise ValueError(f"{argument}={value!r} must be a finite number >= 0, or a traced scalar")


def check_not_negative_if_known(argument: str, value: chex.Numeric) -> None:
    """Raises `ValueError` if a number of Python's or NumPy's is not >= 0; says nothing about any array."""
    if isinstance(value, str | numbers.Real) and not as_scalar(value) >= 0:
        raise ValueError(f"{argument}={value!r:.80} must be a number >= 0: below 0 nothing at all would be pruned")


def check_share(argument: str, value: chex.Numeric) -> None:
    """Raises `ValueError` unless a value is a number in [0, 1]; says nothing about the value of a traced one."""
    if not isinstance(value, jax.core.Tracer) and not 0 <= as_scalar(value) <= 1:
        raise ValueError(f"{argument}={value!r:.80} must be a number in [0, 1], or a traced scalar; for 30% pass 0.3")
