"""A program made from a jaxpr.

Calls that only group equations (`jit`) are inlined, equations whose results nobody uses are left out, and what loops,
branches and the like run becomes a region.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from sparsejax.units.atoms import new_axis
from sparsejax.units.program import Body, Equation, Port, Region, Value, bind
from sparsejax.units.shuffles import shuffle_of

__all__ = ["flatten"]

_INLINED = {"jit", "pjit", "closed_call", "core_call"}
_HIGHEST_ORDER = 2


def flatten(jaxpr: Any, order: int = 0) -> Body:
    """Returns the equations of a jaxpr whose results are used.

    Args:
      jaxpr: open or closed.
      order: how many derivatives have been taken to get there.
    """
    inputs = [_value(var.aval) for var in getattr(jaxpr, "jaxpr", jaxpr).invars]
    equations: list[Equation] = []
    outputs = _inline(jaxpr, inputs, equations)
    equations = _used(_with_shuffles(_used(equations, outputs)), outputs)
    for equation in equations:
        if equation.name in _REGIONS:
            equation.regions = _REGIONS[equation.name](equation, order)
    return Body(inputs, equations, outputs)


def _value(aval: Any, constant: Any = None) -> Value:
    shape = tuple(getattr(aval, "shape", ()))
    return Value(shape, getattr(aval, "dtype", None), tuple(new_axis(size) for size in shape), constant)


def _inline(jaxpr: Any, inputs: list[Value], equations: list[Equation]) -> list[Value]:
    """Appends the equations of a jaxpr, and returns its outputs."""
    consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {var: _value(var.aval, const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom: Any) -> Value:
        return _value(atom.aval, atom.val) if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in _INLINED:
            results = _inline(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"], operands, equations)
        else:
            results = [_value(var.aval) for var in eqn.outvars]
            equation = Equation(eqn.primitive, eqn.params, operands, results, effects=bool(eqn.effects))
            for result in results:
                result.producer = equation
            equations.append(equation)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _with_shuffles(equations: list[Equation]) -> list[Equation]:
    """Puts permutations in the place of the last equations of shuffles."""
    written: list[Equation] = []
    for equation in equations:
        if (found := shuffle_of(equation)) is None:
            written.append(equation)
            continue
        (operand,) = found[0].inputs
        jaxpr = jax.make_jaxpr(found[1])(jax.ShapeDtypeStruct(operand.shape, operand.dtype))
        _inline(jaxpr, [operand], written)
        written[-1].outputs = equation.outputs
        equation.outputs[0].producer = written[-1]
    return written


def _used(equations: list[Equation], outputs: list[Value]) -> list[Equation]:
    needed, kept = set(outputs), []
    for equation in reversed(equations):
        if equation.effects or not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
            kept.append(equation)
    return kept[::-1]


def _ports(count: int, start: int = 0) -> list[Port]:
    return [Port(start + i) for i in range(count)]


def _call(equation: Equation, order: int) -> list[Region]:
    body = flatten(equation.params["jaxpr"], order)
    return [Region(body, _ports(len(equation.inputs)), _ports(len(equation.outputs), len(equation.inputs)))]


def _scan(equation: Equation, order: int) -> list[Region]:
    body, start = flatten(equation.params["jaxpr"], order), len(equation.inputs)
    # What is stacked has one axis less inside. The names of scan's own parameters differ between versions of JAX.
    pairs = zip(equation.inputs, body.inputs, strict=True)
    inputs = [Port(i, len(a.shape) != len(b.shape)) for i, (a, b) in enumerate(pairs)]
    pairs = zip(equation.outputs, body.outputs, strict=True)
    outputs = [Port(start + j, len(a.shape) != len(b.shape)) for j, (a, b) in enumerate(pairs)]
    carried = sum(not port.stacked for port in outputs)
    first = sum(not port.stacked for port in inputs) - carried
    return [Region(body, inputs, outputs, [(j, first + j) for j in range(carried)])]


def _while(equation: Equation, order: int) -> list[Region]:
    params, start = equation.params, len(equation.inputs)
    test, body = params["cond_nconsts"], params["body_nconsts"]
    carried = len(equation.outputs)
    carry = _ports(carried, test + body)
    turn = Region(flatten(params["body_jaxpr"], order), _ports(body, test) + carry, _ports(carried, start))
    turn.carried = [(j, body + j) for j in range(carried)]
    # The test sees what the turn leaves, which has the axes of what the loop begins with.
    return [turn, Region(flatten(params["cond_jaxpr"], order), _ports(test) + _ports(carried, start), [])]


def _cond(equation: Equation, order: int) -> list[Region]:
    start, count = len(equation.inputs), len(equation.outputs)
    bodies = [flatten(branch, order) for branch in equation.params["branches"]]
    return [Region(body, _ports(start - 1, 1), _ports(count, start)) for body in bodies]


def _custom(derivative: Callable[..., Region], equation: Equation, order: int) -> list[Region]:
    """Returns what a function with its own derivative computes, and that derivative.

    The derivative is traced by taking it of the equation, so that the function's own rule is in it. A rule that cannot
    be traced leaves the equation without regions, and so frozen.
    """
    start = len(equation.inputs)
    body = flatten(equation.params["call_jaxpr"], order)
    primal = Region(body, _ports(start), _ports(len(equation.outputs), start))
    if order == _HIGHEST_ORDER:  # a rule may call its own function, and so on
        return [primal]
    floats_in, floats_out = (
        [i for i, value in enumerate(values) if jnp.issubdtype(value.dtype, jnp.inexact)]
        for values in (equation.inputs, equation.outputs)
    )
    try:
        return [primal, derivative(equation, floats_in, floats_out, order + 1)]
    except Exception:  # whatever a user's rule raises
        return []


def _forward_rule(equation: Equation, floats_in: list[int], floats_out: list[int], order: int) -> Region:
    """Returns `(operands, tangents of the float operands) -> tangents of the float results`."""
    start = len(equation.inputs)

    def rule(operands, tangents):
        of_floats = _of_floats(equation, operands, floats_in, floats_out)
        return jax.jvp(of_floats, [operands[i] for i in floats_in], tangents)[1]

    shapes = _shapes(equation.inputs)
    body = flatten(jax.make_jaxpr(rule)(shapes, [shapes[i] for i in floats_in]), order)
    inputs = _ports(start) + [Port(i) for i in floats_in]
    return Region(body, inputs, [Port(start + j) for j in floats_out], derivative=True)


def _backward_rule(equation: Equation, floats_in: list[int], floats_out: list[int], order: int) -> Region:
    """Returns `(operands, cotangents of the float results) -> cotangents of the float operands`."""
    start = len(equation.inputs)

    def rule(operands, cotangents):
        of_floats = _of_floats(equation, operands, floats_in, floats_out)
        return jax.vjp(of_floats, *[operands[i] for i in floats_in])[1](cotangents)

    shapes, results = _shapes(equation.inputs), _shapes(equation.outputs)
    body = flatten(jax.make_jaxpr(rule)(shapes, [results[j] for j in floats_out]), order)
    inputs = _ports(start) + [Port(start + j) for j in floats_out]
    return Region(body, inputs, [Port(i) for i in floats_in], derivative=True)


def _of_floats(equation: Equation, operands: list, floats_in: list[int], floats_out: list[int]) -> Callable:
    """Returns an equation as a function of those operands that have a derivative."""

    def of_floats(*floats):
        given = list(operands)
        for i, x in zip(floats_in, floats, strict=True):
            given[i] = x
        results = bind(equation, given)
        return [results[j] for j in floats_out]

    return of_floats


def _shapes(values: Sequence[Value]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in values]


_REGIONS: dict[str, Callable[[Equation, int], list[Region]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_jvp_call": partial(_custom, _forward_rule),
    "custom_vjp_call": partial(_custom, _backward_rule),
    **dict.fromkeys(["remat2", "remat", "checkpoint"], _call),
}
