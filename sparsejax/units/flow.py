"""Which equations use a value, which values are the same on both sides of a border, and what parameters make of them.

Calls (a rematerialised part, a function with its own derivative) and scans are looked into: an operand and the input of
the body that it becomes are one value, or the one is a slice of the other, and a result of a call is the output of its
body. While loops and branches are equations like any other.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.units.program import CALLS, Body, Equation, Value, bind

__all__ = ["Flow", "flow"]


@dataclasses.dataclass(eq=False)
class Flow:
    """Holds where the values of a program come from and go to.

    Attributes:
      same: `{value: value on the other side of a border}`, towards the equation that computes it.
      slices: `{value: (array, scan)}` for what a turn of a scan sees of an array that it runs over.
      uses: `{value: (equation, number of the operand)}`, but for calls, and for scans that only pass the value on.
      data: the values that depend on the function's arguments, or on an earlier turn of a scan.
      outputs: the outputs of the program, and of the bodies of scans.
      loops: `{equation: scans around it, the outermost first}`; no equations of while loops and branches.
    """

    same: dict[Value, Value] = dataclasses.field(default_factory=dict)
    slices: dict[Value, tuple[Value, Equation]] = dataclasses.field(default_factory=dict)
    uses: dict[Value, list[tuple[Equation, int]]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    data: set[Value] = dataclasses.field(default_factory=set)
    outputs: set[Value] = dataclasses.field(default_factory=set)
    loops: dict[Equation, tuple[Equation, ...]] = dataclasses.field(default_factory=dict)
    _varies: dict[Value, frozenset[Equation]] = dataclasses.field(default_factory=dict)

    def origin(self, value: Value) -> Value:
        """Returns the value as the equation that computes it knows it."""
        while value in self.same:
            value = self.same[value]
        return value

    def varies(self, value: Value) -> frozenset[Equation]:
        """Returns the scans of which every turn may see another value, for what depends on parameters alone."""
        value = self.origin(value)
        if value not in self._varies:
            outer, own = self.slices.get(value, (None, None))
            sources = [outer] if outer is not None else value.producer.inputs if value.producer is not None else []
            loops = frozenset() if own is None else {own}
            self._varies[value] = loops.union(*map(self.varies, sources))
        return self._varies[value]

    def compute(self, value: Value, known: dict[Value, jax.Array], turns: Mapping[Equation, Any]) -> jax.Array:
        """Returns a value that depends on parameters alone.

        Args:
          value: the value.
          known: the parameters; what is computed on the way is put there.
          turns: the number of the turn, for scans that it varies with.
        """
        value = self.origin(value)
        if value not in known:
            if value in self.slices:
                outer, loop = self.slices[value]
                known[value] = self.compute(outer, known, turns)[turns[loop]]
            elif value.producer is None:
                known[value] = jnp.asarray(value.constant)
            else:
                operands = [self.compute(operand, known, turns) for operand in value.producer.inputs]
                known.update(zip(value.producer.outputs, bind(value.producer, operands), strict=True))
        return known[value]


def flow(body: Body, count: int) -> Flow:
    """Returns how values flow through a program whose inputs from number `count` on are data."""
    found = Flow(data=set(body.inputs[count:]))
    _follow(found, body, ())
    found.outputs.update(map(found.origin, body.outputs))
    return found


def _follow(found: Flow, body: Body, loops: tuple[Equation, ...]) -> None:
    for equation in body.equations:
        found.loops[equation] = loops
        if equation.name in CALLS and equation.regions:
            _through_call(found, equation, loops)
            continue
        passed = _through_scan(found, equation, loops) if equation.name == "scan" else set()
        operands = [found.origin(value) for value in equation.inputs]
        for number, value in enumerate(operands):
            if number not in passed:
                found.uses[value].append((equation, number))
        if not found.data.isdisjoint(operands):
            found.data.update(equation.outputs)


def _through_call(found: Flow, call: Equation, loops: tuple[Equation, ...]) -> None:
    region = call.regions[0]
    for port, inner in zip(region.inputs, region.body.inputs, strict=True):
        found.same[inner] = call.values[port.place]
    _follow(found, region.body, loops)
    for port, inner in zip(region.outputs, region.body.outputs, strict=True):
        found.same[call.values[port.place]] = inner


def _through_scan(found: Flow, scan: Equation, loops: tuple[Equation, ...]) -> set[int]:
    """Returns the numbers of the operands that are the same in every turn, and so are used by the body only."""
    (region,) = scan.regions
    carried, passed = {place for _, place in region.carried}, set()
    for place, (port, inner) in enumerate(zip(region.inputs, region.body.inputs, strict=True)):
        outer = found.origin(scan.inputs[port.place])
        if place in carried:
            found.data.add(inner)
        elif port.stacked:
            found.slices[inner] = outer, scan
            if outer in found.data:
                found.data.add(inner)
        else:
            found.same[inner] = outer
            passed.add(port.place)
    _follow(found, region.body, (*loops, scan))
    found.outputs.update(map(found.origin, region.body.outputs))
    return passed
