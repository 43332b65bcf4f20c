"""Multiply-adds of any function of parameters, read off its traced computation; nothing is executed.

Two things are followed through the program: how many products it forms, and what each value is computed from. A value
has an *origin*: `None` if an input other than the parameters goes into it, else the set of the parameter leaves that do
(none of them for a constant). A product belongs to the leaf its weight operand comes from.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
from jax.extend import core

from sparsejax import _checks, tree
from sparsejax._types import Params

_Origin = frozenset[tuple[str, Fraction]] | None
"""`(leaf name, size)` of the leaves a value is computed from; the size is that of the part a loop or a device sees."""

_Notes = dict[str, None]  # an ordered set
_Flow = tuple[list[_Origin], Counter]  # the origins of the results; products by leaf name, `None` for no leaf

_CONSTANT: _Origin = frozenset()


@dataclasses.dataclass(frozen=True)
class MultiplyAdds:
    """Holds the multiply-adds of one call of a function.

    Attributes:
      by_leaf: `{leaf name: multiply-adds}`, an entry for every leaf; 0 if it takes part in no product.
      unattributed: the products of no one leaf, such as activations with activations.
      notes: sentences on what could not be counted exactly; empty if everything could.

    >>> MultiplyAdds({"kernel": 30, "bias": 0}, unattributed=12).total
    42
    """

    by_leaf: dict[str, int]
    unattributed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The multiply-adds of all leaves and of none."""
        return sum(self.by_leaf.values()) + self.unattributed


def multiply_adds(fn: Callable[..., Any], params: Params, *args: Any) -> MultiplyAdds:
    """Counts the multiply-adds of one call `fn(params, *args)`, a leaf at a time, without executing it.

    Matrix products and convolutions count, as is the custom: `m k n` for an `(m, k) (k, n)` product; for a convolution
    batch x output positions x output channels x kernel size x input channels of a group, where padding counts as
    input but the zeros that a transposed convolution inserts do not (it costs input positions x kernel size).
    Elementwise multiplications (the scale of a norm, a gate) and products that sum over nothing do not count. One
    multiply-add is two FLOPs. A batch of eight costs eight times a batch of one: give one example to count per example.

    A product belongs to the leaf that one operand is computed from, if parameters and constants alone go into that
    operand (reshape, cast, mask, centre, slice in a scan, ...). If several leaves go into it, or parameters into both
    operands, it belongs to the one leaf as large as its operand; leaves that add up to the operand (concatenated
    gates) share it; else it belongs to none. The result of a product is no leaf's (zeros of a leaf are not zeros of
    it), a bool only chooses, and arrays that `fn` closes over are constants: pass data as `args`.

    A scan costs its length, a cond its dearest branch, a while loop one turn, a shard_map the work of all its devices;
    what is computed but not used is counted.

    Args:
      fn: the function; jitted, rematerialised or differentiated functions will do.
      params: its first argument, any pytree; `jax.ShapeDtypeStruct` leaves will do, here and in `args`.
      *args: its other arguments.

    Returns:
      A `MultiplyAdds`; exact Python ints.

    Raises:
      ValueError: `fn` is no function.

    >>> layer = {"kernel": jax.ShapeDtypeStruct((3, 5), "float32")}
    >>> counts = multiply_adds(lambda p, x: x @ p["kernel"], layer, jax.ShapeDtypeStruct((2, 3), "float32"))
    >>> counts.by_leaf, counts.total
    ({'kernel': 30}, 30)
    """
    _checks.check_function("fn", fn, "call multiply_adds(fn, params, *args)")
    sizes = {name: Fraction(math.prod(jax.numpy.shape(leaf))) for name, leaf in tree.named(params).items()}
    (jaxpr,) = core.jaxprs_in_params({"fn": jax.make_jaxpr(fn)(params, *args)})
    inputs: list[_Origin] = [frozenset({leaf}) for leaf in sizes.items()]
    inputs += [None] * (len(jaxpr.invars) - len(inputs))
    notes: _Notes = {}
    _, counts = _walk(jaxpr, inputs, notes)
    by_leaf = {name: int(counts[name]) for name in sizes}
    return MultiplyAdds(by_leaf, _total(counts) - sum(by_leaf.values()), tuple(notes))


def effective(multiply_adds: int, nonzeros: int, size: int) -> int:
    """Returns the multiply-adds of a leaf that remain when its zeros are skipped.

    `multiply_adds * nonzeros / size`, rounded to the nearest integer; exact where every entry is used equally often,
    as in dense layers and convolutions.

    Args:
      multiply_adds: the leaf's multiply-adds when dense.
      nonzeros: how many of its entries are not zero.
      size: how many entries it has.

    Returns:
      A Python int.

    >>> effective(288_000, nonzeros=125, size=500)
    72000
    """
    return (2 * multiply_adds * nonzeros + size) // (2 * size) if size else 0


def _walk(jaxpr: core.Jaxpr, inputs: Sequence[_Origin], notes: _Notes) -> _Flow:
    known = dict.fromkeys(jaxpr.constvars, _CONSTANT) | dict(zip(jaxpr.invars, inputs, strict=True))
    counts: Counter = Counter()

    def origin(atom) -> _Origin:
        return _CONSTANT if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        rule = _RULES.get(eqn.primitive.name, _other)
        results, products = rule(eqn, [origin(atom) for atom in eqn.invars], notes)
        known.update(zip(eqn.outvars, results, strict=True))
        counts.update(products)
    return [origin(atom) for atom in jaxpr.outvars], counts


def _other(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    bodies = list(core.jaxprs_in_params(eqn.params))
    if len(bodies) == 1 and len(bodies[0].invars) == len(eqn.invars):  # a call: jit, remat, custom_jvp, custom_vjp
        return _call(bodies[0], eqn, eqn.invars, origins, notes)
    # A bool (a mask, the sign of an auxiliary) says which values pass, not what they are, unless it comes from data.
    chooses = [getattr(atom.aval, "dtype", None) == jax.numpy.bool_ for atom in eqn.invars]
    values = [origin for origin, choice in zip(origins, chooses, strict=True) if origin is None or not choice]
    everything = _union(origins if bodies else values)
    counts: Counter = Counter()
    for body in bodies:
        counts.update(_walk(body, [everything] * len(body.invars), notes)[1])
    if total := _total(counts):
        notes[f"{eqn.primitive.name}: its {total:,} multiply-adds are those of running each part once"] = None
    return [everything] * len(eqn.outvars), counts


def _select(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    return [_union(origins[1:])], Counter()  # the first operand only chooses, even where it is drawn from data


def _each(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    return origins, Counter()


def _product(count: Callable[[core.JaxprEqn], int], eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    operands = [(origin, _size(atom)) for origin, atom in zip(origins[:2], eqn.invars[:2], strict=True)]
    return [None if None in origins else _CONSTANT], _attributed(count(eqn), operands)


def _dot(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    if not contracted:  # einsum writes an elementwise multiplication so
        return [_union(origins)], Counter()
    depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return _product(lambda eqn: _size(eqn.outvars[0]) * depth, eqn, origins, notes)


def _ragged_dot(eqn: core.JaxprEqn) -> int:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    shared = {*contracted, *batch, *numbers.rhs_group_dimensions}
    lhs, rhs = (atom.aval.shape for atom in eqn.invars[:2])
    return math.prod(lhs) * math.prod(length for axis, length in enumerate(rhs) if axis not in shared)


def _conv(eqn: core.JaxprEqn) -> int:
    numbers = eqn.params["dimension_numbers"]
    lhs, kernel, out = (atom.aval.shape for atom in (*eqn.invars, *eqn.outvars))
    count = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    for (i, k, o), dilation in zip(axes, eqn.params["lhs_dilation"], strict=True):
        # In a dilated input an element meets each tap once; the gradient of such a convolution swaps taps and outputs.
        count *= out[o] * kernel[k] if dilation == 1 else lhs[i] * min(kernel[k], out[o])
    return count


def _scan(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    (body,) = core.jaxprs_in_params(eqn.params)
    # What is stacked has one axis less inside. The names of scan's own parameters differ between versions of JAX.
    stacked = sum(a.aval.ndim != b.aval.ndim for a, b in zip(eqn.invars, body.invars, strict=True))
    carried = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, body.outvars, strict=True))
    inputs = [_resized(*parts) for parts in zip(origins, eqn.invars, body.invars, strict=True)]
    results, counts = _loop(body, inputs, len(inputs) - stacked - carried, carried, notes)
    results = [_resized(*parts) for parts in zip(results, body.outvars, eqn.outvars, strict=True)]
    return results, _times(counts, eqn.params["length"])


def _while(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    at_test, at_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    test, body = core.jaxprs_in_params(eqn.params)
    for_test, inputs = origins[:at_test], origins[at_test:]
    results, counts = _loop(body, inputs, at_body, len(inputs) - at_body, notes)
    counts += _walk(test, for_test + results, notes)[1]
    if total := _total(counts):
        notes[f"while: its {total:,} multiply-adds are those of one turn; how many it takes is unknown"] = None
    return results, counts


def _loop(body: core.Jaxpr, inputs: list[_Origin], start: int, carried: int, notes: _Notes) -> _Flow:
    # What is carried may come from more and more as the loop turns. Each turn adds a leaf or ends it.
    while True:
        results, counts = _walk(body, inputs, notes)
        before = inputs[start : start + carried]
        carry = [_grown(*parts) for parts in zip(before, results[:carried], strict=True)]
        if carry == before:
            return carry + results[carried:], counts
        inputs = inputs[:start] + carry + inputs[start + carried :]


def _cond(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    branches = core.jaxprs_in_params(eqn.params)
    flows = [_call(branch, eqn, eqn.invars[1:], origins[1:], notes) for branch in branches]
    costs = [_total(counts) for _, counts in flows]
    if min(costs) < max(costs):
        notes[f"cond: its branches cost {costs} multiply-adds; the dearest is counted"] = None
    results = [_union(column) for column in zip(*(results for results, _ in flows), strict=True)]
    return results, flows[costs.index(max(costs))][1]


def _shard_map(eqn: core.JaxprEqn, origins: list[_Origin], notes: _Notes) -> _Flow:
    (body,) = core.jaxprs_in_params(eqn.params)
    results, counts = _call(body, eqn, eqn.invars, origins, notes)
    (axes,) = (value for name, value in eqn.params.items() if name.endswith("manual_axes"))  # JAX renamed it
    devices = math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
    return results, _times(counts, devices)


def _call(body: core.Jaxpr, eqn: core.JaxprEqn, operands: Sequence, origins: Sequence[_Origin], notes: _Notes) -> _Flow:
    inputs = [_resized(*parts) for parts in zip(origins, operands, body.invars, strict=True)]
    results, counts = _walk(body, inputs, notes)
    return [_resized(*parts) for parts in zip(results, body.outvars, eqn.outvars, strict=True)], counts


def _attributed(count: int, operands: list[tuple[_Origin, int]]) -> Counter:
    weights = [(origin, size) for origin, size in operands if origin]
    if len(weights) == 1:
        origin, size = weights[0]
        if len(names := {name for name, _ in origin}) == 1:
            return Counter({names.pop(): count})
        if size and sum(own for _, own in origin) == size:  # concatenated or stacked
            return Counter({name: count * own / size for name, own in origin})
    fitting = {name for origin, size in weights for name, own in origin if own == size}
    return Counter({fitting.pop() if len(fitting) == 1 else None: count})


def _union(origins: Iterable[_Origin]) -> _Origin:
    origins = list(origins)
    return None if None in origins else _CONSTANT.union(*origins)


def _grown(before: _Origin, after: _Origin) -> _Origin:
    # A leaf keeps its first size, or a carry that is stacked and unstacked would grow for ever.
    if before is None or after is None:
        return None
    names = {name for name, _ in before}
    return before | {leaf for leaf in after if leaf[0] not in names}


def _resized(origin: _Origin, outside: Any, inside: Any) -> _Origin:
    if not origin or _size(outside) == _size(inside) or not _size(outside):
        return origin
    return frozenset((name, size * _size(inside) / _size(outside)) for name, size in origin)


def _size(atom: Any) -> int:
    return math.prod(getattr(atom.aval, "shape", ()))


def _total(counts: Counter) -> int:
    return int(counts.total())  # leaves that share a product may have fractions, all together never


def _times(counts: Counter, times: int) -> Counter:
    return Counter({leaf: count * times for leaf, count in counts.items()})


# By name: not all of these primitives are public objects of JAX.
_RULES: dict[str, Callable[[core.JaxprEqn, list[_Origin], _Notes], _Flow]] = {
    "dot_general": _dot,
    "ragged_dot_general": partial(_product, _ragged_dot),
    "conv_general_dilated": partial(_product, _conv),
    "select_n": _select,
    "optimization_barrier": _each,
    "device_put": _each,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
