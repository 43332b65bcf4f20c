"""The table of primitives: how axes hang together, what becomes of masked units, and how to run it on smaller arrays.

What is not in the table, and runs no body that can be looked into, is unknown: all that it touches is frozen.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from sparsejax.units import indexing, layouts, movements, resizing, transfers
from sparsejax.units.elementwise import FUNCTIONS, OTHERS
from sparsejax.units.patterns import Pattern
from sparsejax.units.program import Equation
from sparsejax.units.resizing import Resize
from sparsejax.units.transfers import Transfer

__all__ = ["Rule", "rule_of"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the analysis must know of a primitive.

    Attributes:
      pattern: equation -> how the axes of operands and results hang together.
      transfer: what is known of results where units are masked.
      resize: applies it to smaller arrays.
    """

    pattern: Callable[[Equation], Pattern]
    transfer: Transfer = transfers.nothing
    resize: Resize = resizing.as_it_is


def rule_of(equation: Equation) -> Rule:
    """Returns the rule of an equation's primitive, which freezes what it touches if there is none."""
    return RULES.get(equation.name) or Rule(partial(layouts.frozen, f"unknown primitive {equation.name}"))


def _axes(params: dict) -> tuple[int, ...]:
    return params["axes"]


def _axis(params: dict) -> int:
    return params["axis"]


def _reduction(identity: float, stays: Callable[[np.ndarray], np.ndarray]) -> Rule:
    return Rule(partial(layouts.reduction, _axes, None), transfers.reduction(identity, stays))


def _zero(x: np.ndarray) -> np.ndarray:
    return x == 0


def _any(x: np.ndarray) -> np.ndarray:
    return ~np.isnan(x)


def _frozen(reason: str) -> Rule:
    return Rule(partial(layouts.frozen, reason))


_moved_from_first = transfers.moved(0)
_accumulated = partial(layouts.along, _axis, None)
_scattered = Rule(indexing.scatter, transfers.zeros_stay(0, 2))
_random_key = _frozen("a random key")

RULES: dict[str, Rule] = {
    **{name: Rule(layouts.elementwise, transfers.elementwise(function)) for name, function in FUNCTIONS.items()},
    **dict.fromkeys(OTHERS, Rule(layouts.elementwise, transfers.unknown)),
    "sharding_constraint": Rule(layouts.elementwise, transfers.elementwise(FUNCTIONS["copy"]), resizing.constrained),
    **dict.fromkeys(["optimization_barrier", "device_put"], Rule(layouts.each, transfers.one_by_one)),
    "dot_general": Rule(layouts.dot, transfers.product),
    "conv_general_dilated": Rule(layouts.convolution, transfers.product, resizing.convolution),
    "reduce_sum": _reduction(0.0, _zero),
    "reduce_prod": _reduction(1.0, lambda x: (x == 0) | (x == 1)),
    "reduce_max": _reduction(-np.inf, _any),
    "reduce_min": _reduction(np.inf, _any),
    "reduce_and": _reduction(1.0, _any),
    "reduce_or": _reduction(0.0, _any),
    **dict.fromkeys(
        ["argmax", "argmin"], Rule(partial(layouts.reduction, _axes, "its positions are what is computed"))
    ),
    "cumsum": Rule(_accumulated, transfers.accumulation(0.0)),
    "cumprod": Rule(_accumulated, transfers.accumulation(1.0)),
    "cummax": Rule(_accumulated, transfers.accumulation(-np.inf)),
    "cummin": Rule(_accumulated, transfers.accumulation(np.inf)),
    "cumlogsumexp": Rule(_accumulated, transfers.accumulation(-np.inf)),
    "sort": Rule(partial(layouts.along, lambda params: params["dimension"], "it is sorted")),
    "top_k": Rule(partial(layouts.last_axes, lambda _: 1, "it is sorted")),
    "fft": Rule(partial(layouts.last_axes, lambda params: len(params["fft_lengths"]), "a Fourier transform mixes it")),
    "reduce_window_sum": Rule(layouts.window, transfers.zeros_stay(0)),
    **dict.fromkeys(["reduce_window_max", "reduce_window_min"], Rule(layouts.window, _moved_from_first)),
    **dict.fromkeys(["reduce_window", "select_and_gather_add"], Rule(layouts.window)),
    **dict.fromkeys(
        ["select_and_scatter_add", "select_and_scatter"], Rule(layouts.window_back, transfers.zeros_stay(0))
    ),
    "broadcast_in_dim": Rule(movements.broadcast, _moved_from_first, resizing.broadcast),
    "reshape": Rule(movements.reshape, _moved_from_first, resizing.reshape),
    "squeeze": Rule(movements.squeeze, _moved_from_first),
    "transpose": Rule(movements.transpose, _moved_from_first),
    "tile": Rule(movements.tile, _moved_from_first, resizing.tile),
    "stack": Rule(movements.stack, transfers.moved()),
    "unstack": Rule(movements.unstack, _moved_from_first),
    "slice": Rule(indexing.slices, _moved_from_first, resizing.slices),
    "rev": Rule(indexing.reversal, _moved_from_first),
    "pad": Rule(movements.pad, transfers.moved(), resizing.pad),
    "concatenate": Rule(movements.concatenation, transfers.moved()),
    "split": Rule(movements.split, _moved_from_first, resizing.split),
    "dynamic_slice": Rule(indexing.dynamic_slice, _moved_from_first, resizing.dynamic_slice),
    "dynamic_update_slice": Rule(indexing.dynamic_update, transfers.moved(0, 1)),
    "gather": Rule(indexing.gather, _moved_from_first, resizing.gather),
    **dict.fromkeys(["scatter", "scatter-add", "scatter-sub", "scatter_add"], _scattered),
    **dict.fromkeys(["scatter-mul", "scatter-min", "scatter-max"], Rule(indexing.scatter)),
    **dict.fromkeys(
        ["iota", "random_bits", "rng_uniform", "platform_index", "axis_index", "empty", "empty2"],
        Rule(layouts.generated, transfers.nothing, resizing.generated),
    ),
    **dict.fromkeys(
        ["random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split", "random_clone"], _random_key
    ),
}
"""`{primitive: rule}`, by name: not all of them are public objects of JAX."""
