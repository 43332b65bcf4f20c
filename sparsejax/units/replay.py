"""A program run again, on arrays from which units are gone.

Every equation is applied to what is left of its operands (`sparsejax.units.resizing`). Loops, branches, rematerialised
parts and functions with their own derivative are made anew from the equations of their regions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.units.program import CALLS, Body, Equation, Region, Value, bind, equations_of
from sparsejax.units.resizing import Plan
from sparsejax.units.rules import rule_of

__all__ = ["Apply", "Probe", "Probes", "run"]

Apply = Callable[[Sequence[Any]], list[Any]]
"""What applies an equation: `operands -> results`."""

Probe = Callable[[Sequence[Any], Apply, tuple[Any, ...]], list[Any]]
"""`(operands, apply, numbers of the turns of the scans around) -> results`, called in the place of an equation."""

Probes = Mapping[Equation, Probe]

_Again = Callable[..., list[Any]]
"""`(body, inputs, *number of a turn) -> outputs`."""


def run(
    body: Body, inputs: Sequence[Any], plan: Plan, probes: Probes | None = None, turns: tuple[Any, ...] = ()
) -> list[Any]:
    """Returns the outputs of a body.

    Args:
      body: the equations.
      inputs: arrays, of the shapes that `plan` leaves.
      plan: which positions stay.
      probes: what to do in the place of equations. Calls that hold an equation with a probe become part of the
        program around them, and lose their own derivative; in loops and branches a probe must leak nothing.
      turns: the numbers of the turns of the scans around the body.
    """
    known = dict(zip(body.inputs, inputs, strict=True))
    probes = probes or {}

    def read(value: Value) -> Any:
        return known[value] if value in known else _constant(value, plan)

    def again(body: Body, inputs: Sequence[Any], *turn: Any) -> list[Any]:
        return run(body, inputs, plan, probes, (*turns, *turn))

    for equation in body.equations:
        operands = [read(value) for value in equation.inputs]
        apply = partial(_apply, equation, plan, _has_probe(equation, probes), again)
        results = probes[equation](operands, apply, turns) if equation in probes else apply(operands)
        known.update(zip(equation.outputs, results, strict=True))
    return [read(value) for value in body.outputs]


def _has_probe(equation: Equation, probes: Probes) -> bool:
    return bool(probes) and any(inner in probes for one in equation.regions for inner in equations_of(one.body))


def _apply(equation: Equation, plan: Plan, probed: bool, again: _Again, operands: Sequence[Any]) -> list[Any]:
    if plan.is_whole(equation) and not probed:
        return bind(equation, operands)
    if not equation.regions:
        return rule_of(equation).resize(equation, operands, plan)
    if probed and equation.name in CALLS:
        return again(equation.regions[0].body, operands)
    return _REPLAYS[equation.name](equation, list(operands), again)


def _constant(value: Value, plan: Plan) -> Any:
    cut = all(plan.stays(axis) is None for axis in value.axes)
    if cut or isinstance(value.constant, jax.core.Tracer):
        return plan.cut(value.constant, value)
    return plan.cut(np.asarray(value.constant), value)


def _function(region: Region, again: _Again) -> Callable[..., list[Any]]:
    return lambda *inputs: again(region.body, inputs)


def _scan(equation: Equation, operands: list[Any], again: _Again) -> list[Any]:
    (region,) = equation.regions
    stacked = [port.stacked for port in region.inputs]
    constants = len(operands) - sum(stacked) - len(region.carried)
    consts, init = operands[:constants], operands[constants : constants + len(region.carried)]

    def turn(carry: list[Any], own: tuple[Any, list[Any]]) -> tuple[list[Any], list[Any]]:
        number, slices = own
        results = again(region.body, [*consts, *carry, *slices], number)
        return results[: len(init)], results[len(init) :]

    settings = {
        name: equation.params[name]
        for name in ("length", "reverse", "unroll", "_split_transpose")
        if name in equation.params
    }
    own = jnp.arange(equation.params["length"]), operands[constants + len(init) :]
    carry, stacked_results = jax.lax.scan(turn, init, own, **settings)
    return [*carry, *stacked_results]


def _while(equation: Equation, operands: list[Any], again: _Again) -> list[Any]:
    turn, test = equation.regions
    for_test, for_turn = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    test_consts, consts, init = (
        operands[:for_test], operands[for_test : for_test + for_turn], operands[for_test + for_turn :],
    )  # fmt: skip
    return jax.lax.while_loop(
        lambda carry: again(test.body, [*test_consts, *carry])[0],
        lambda carry: again(turn.body, [*consts, *carry]),
        init,
    )


def _cond(equation: Equation, operands: list[Any], again: _Again) -> list[Any]:
    index, *operands = operands
    branches = [_function(region, again) for region in equation.regions]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return jax.lax.switch(index, branches, *operands)
    default, by_platform = None, {}
    for names, branch in zip(platforms, branches, strict=True):
        if names is None:
            default = branch
        else:
            by_platform |= dict.fromkeys(names, branch)
    return jax.lax.platform_dependent(*operands, default=default, **by_platform)


def _remat(equation: Equation, operands: list[Any], again: _Again) -> list[Any]:
    settings = {name: equation.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(_function(equation.regions[0], again), **settings)(*operands)


def _custom_jvp(equation: Equation, operands: list[Any], again: _Again) -> list[Any]:
    primal, *derivative = equation.regions
    function = _function(primal, again)
    if not derivative:
        return function(*operands)
    function = jax.custom_jvp(function)
    tangents_of = _function(derivative[0], again)

    @function.defjvp
    def rule(operands, tangents):
        given = [tangents[port.place] for port in derivative[0].inputs[len(operands) :]]
        results = function(*operands)
        found = iter(tangents_of(*operands, *given))
        return results, [next(found) if _has_tangent(x) else np.zeros(jnp.shape(x), jax.dtypes.float0) for x in results]

    return function(*operands)


def _custom_vjp(equation: Equation, operands: list[Any], again: _Again) -> list[Any]:
    primal, *derivative = equation.regions
    function = _function(primal, again)
    if not derivative:
        return function(*operands)
    function = jax.custom_vjp(function)
    cotangents_of = _function(derivative[0], again)
    start = len(operands)

    def backward(operands, cotangents):
        given = [cotangents[port.place - start] for port in derivative[0].inputs[start:]]
        found = iter(cotangents_of(*operands, *given))
        return tuple(next(found) if _has_tangent(x) else None for x in operands)

    # What the rule would save is computed again from the operands, which XLA does not do twice.
    function.defvjp(lambda *operands: (function(*operands), operands), backward)
    return function(*operands)


def _has_tangent(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


_REPLAYS: dict[str, Callable[[Equation, list[Any], _Again], list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    **dict.fromkeys(["remat2", "remat", "checkpoint"], _remat),
}
