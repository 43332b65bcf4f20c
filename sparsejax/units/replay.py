"""A program run again, on arrays from which units are gone.

Every equation is applied to what is left of its operands (`sparsejax.units.resizing`). Loops, branches, rematerialised
parts and functions with their own derivative are made anew from the equations of their regions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.units.program import CALLS, Body, Equation, Region, Value, bind, equations_of
from sparsejax.units.resizing import Plan
from sparsejax.units.rules import rule_of

__all__ = ["Probes", "run"]

Probes = Mapping[Equation, Callable[[list[Any]], list[Any]]]
"""`{equation: operands -> operands}`, called with an equation's operands before it is applied."""


def run(body: Body, inputs: Sequence[Any], plan: Plan, probes: Probes | None = None) -> list[Any]:
    """Returns the outputs of a body.

    Args:
      body: the equations.
      inputs: arrays, of the shapes that `plan` leaves.
      plan: which positions stay.
      probes: what to put in the place of operands. Calls that hold an equation with a probe become part of the
        program around them, and lose their own derivative; in loops and branches a probe must leak nothing.
    """
    known = dict(zip(body.inputs, inputs, strict=True))
    probes = probes or {}

    def read(value: Value) -> Any:
        return known[value] if value in known else _constant(value, plan)

    for equation in body.equations:
        operands = [read(value) for value in equation.inputs]
        if equation in probes:
            operands = probes[equation](operands)
        if plan.is_whole(equation) and not (equation.regions and probes):
            results = bind(equation, operands)
        elif equation.name in CALLS and equation.regions and _has_probe(equation, probes):
            results = run(equation.regions[0].body, operands, plan, probes)
        elif equation.regions:
            results = _REPLAYS[equation.name](equation, operands, plan, probes)
        else:
            results = rule_of(equation).resize(equation, operands, plan)
        known.update(zip(equation.outputs, results, strict=True))
    return [read(value) for value in body.outputs]


def _has_probe(equation: Equation, probes: Probes) -> bool:
    return any(inner in probes for inner in equations_of(equation.regions[0].body))


def _constant(value: Value, plan: Plan) -> Any:
    cut = all(plan.stays(axis) is None for axis in value.axes)
    if cut or isinstance(value.constant, jax.core.Tracer):
        return plan.cut(value.constant, value)
    return plan.cut(np.asarray(value.constant), value)


def _function(region: Region, plan: Plan, probes: Probes) -> Callable[..., list[Any]]:
    return lambda *inputs: run(region.body, inputs, plan, probes)


def _scan(equation: Equation, operands: list[Any], plan: Plan, probes: Probes) -> list[Any]:
    (region,) = equation.regions
    stacked = [port.stacked for port in region.inputs]
    constants = len(operands) - sum(stacked) - len(region.carried)
    consts, init = operands[:constants], operands[constants : constants + len(region.carried)]

    def turn(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        results = run(region.body, [*consts, *carry, *slices], plan, probes)
        return results[: len(init)], results[len(init) :]

    settings = {
        name: equation.params[name]
        for name in ("length", "reverse", "unroll", "_split_transpose")
        if name in equation.params
    }
    carry, stacked_results = jax.lax.scan(turn, init, operands[constants + len(init) :], **settings)
    return [*carry, *stacked_results]


def _while(equation: Equation, operands: list[Any], plan: Plan, probes: Probes) -> list[Any]:
    turn, test = equation.regions
    for_test, for_turn = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    test_consts, consts, init = (
        operands[:for_test], operands[for_test : for_test + for_turn], operands[for_test + for_turn :],
    )  # fmt: skip
    return jax.lax.while_loop(
        lambda carry: run(test.body, [*test_consts, *carry], plan, probes)[0],
        lambda carry: run(turn.body, [*consts, *carry], plan, probes),
        init,
    )


def _cond(equation: Equation, operands: list[Any], plan: Plan, probes: Probes) -> list[Any]:
    index, *operands = operands
    branches = [_function(region, plan, probes) for region in equation.regions]
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


def _remat(equation: Equation, operands: list[Any], plan: Plan, probes: Probes) -> list[Any]:
    settings = {name: equation.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(_function(equation.regions[0], plan, probes), **settings)(*operands)


def _custom_jvp(equation: Equation, operands: list[Any], plan: Plan, probes: Probes) -> list[Any]:
    primal, *derivative = equation.regions
    function = _function(primal, plan, probes)
    if not derivative:
        return function(*operands)
    function = jax.custom_jvp(function)
    tangents_of = _function(derivative[0], plan, {})

    @function.defjvp
    def rule(operands, tangents):
        given = [tangents[port.place] for port in derivative[0].inputs[len(operands) :]]
        results = function(*operands)
        found = iter(tangents_of(*operands, *given))
        return results, [next(found) if _has_tangent(x) else np.zeros(jnp.shape(x), jax.dtypes.float0) for x in results]

    return function(*operands)


def _custom_vjp(equation: Equation, operands: list[Any], plan: Plan, probes: Probes) -> list[Any]:
    primal, *derivative = equation.regions
    function = _function(primal, plan, probes)
    if not derivative:
        return function(*operands)
    function = jax.custom_vjp(function)
    cotangents_of = _function(derivative[0], plan, {})
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


_REPLAYS: dict[str, Callable[[Equation, list[Any], Plan, Probes], list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    **dict.fromkeys(["remat2", "remat", "checkpoint"], _remat),
}
