"""What is known of a number that a user gives: the decimal it stands for, and whether it is in its range."""

from fractions import Fraction

import chex
import jax
import numpy as np


def meant(number: float) -> Fraction:
    """Returns the number that was meant: 0.49 itself is not a float."""
    return Fraction(float(number)).limit_denominator(10**9)


def as_scalar(value: chex.Numeric) -> float:
    """Returns a value as a Python float, NaN if it is no concrete scalar."""
    try:
        return float(value) if np.ndim(value) == 0 else np.nan
    except (TypeError, ValueError):
        return np.nan


def check_not_negative(argument: str, value: chex.Numeric) -> None:
    """Raises `ValueError` unless a value is a finite number >= 0; says nothing about the value of a traced one."""
    if not isinstance(value, jax.core.Tracer) and not 0 <= as_scalar(value) < np.inf:
        raise ValueError(f"{argument}={value!r} must be a finite number >= 0, or a traced scalar")
