"""Which equations use a value, and which values are the same on both sides of a call's border.

A call (a rematerialised part, a function with its own derivative) is looked into: an operand and the input of the body
that it becomes are one value, and so are a result and the output of the body that it comes from. Loops and branches are
equations like any other.
"""

import dataclasses
from collections import defaultdict

from sparsejax.units.program import CALLS, Body, Equation, Value, reached_once

__all__ = ["Flow", "flow"]


@dataclasses.dataclass(eq=False)
class Flow:
    """Holds where the values of a program come from and go to.

    Attributes:
      same: `{value: value on the other side of a call's border}`, towards the equation that computes it.
      uses: `{value: (equation, number of the operand)}`, but for equations that are calls.
      data: the values that depend on the function's arguments.
    """

    same: dict[Value, Value]
    uses: dict[Value, list[tuple[Equation, int]]]
    data: set[Value]

    def origin(self, value: Value) -> Value:
        """Returns the value as the equation that computes it knows it."""
        while value in self.same:
            value = self.same[value]
        return value


def flow(body: Body, count: int) -> Flow:
    """Returns how values flow through a program whose inputs from number `count` on are data."""
    found = Flow({}, defaultdict(list), set())
    equations = list(reached_once(body))
    calls = [equation for equation in equations if equation.name in CALLS and equation.regions]
    for call in calls:
        region = call.regions[0]
        for port, inner in zip(region.inputs, region.body.inputs, strict=True):
            found.same[inner] = call.inputs[port.place]
        for port, inner in zip(region.outputs, region.body.outputs, strict=True):
            found.same[call.values[port.place]] = inner
    found.data.update(body.inputs[count:])
    for equation in equations:
        if equation in set(calls):
            continue
        operands = [found.origin(value) for value in equation.inputs]
        for number, value in enumerate(operands):
            found.uses[value].append((equation, number))
        if not found.data.isdisjoint(operands):
            found.data.update(equation.outputs)
    return found
