"""What an argument must be: checks whose errors name it, show its value, and say what to pass instead."""

import operator
from typing import Any


def check_kind(argument: str, value: Any, kind: type, way_out: str) -> None:
    """Raises `ValueError` unless a value is of a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{argument}={value!r:.80} is {type(value).__name__}, not {kind.__name__}; {way_out}")


def check_function(argument: str, value: Any, way_out: str) -> None:
    """Raises `ValueError` unless a value can be called."""
    if not callable(value):
        raise ValueError(f"{argument}={value!r:.80} is {type(value).__name__}, not a function; {way_out}")


def check_optimizer(argument: str, value: Any) -> None:
    """Raises `ValueError` unless a value has the two functions of an optax transformation."""
    if not all(callable(getattr(value, part, None)) for part in ("init", "update")):
        raise ValueError(
            f"{argument}={value!r:.80} is {type(value).__name__}, not an optimizer; pass an optax transformation, such "
            f"as what optax.adam(1e-3) returns"
        )


def check_integer(argument: str, value: Any, least: int, way_out: str) -> None:
    """Raises `ValueError` unless a value is an integer that is large enough."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{argument}={value!r:.80} must be an integer >= {least}; {way_out}")
