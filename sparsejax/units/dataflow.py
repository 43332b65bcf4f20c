"""Facts about values, carried forward through a program, through branches, and round loops until they stay."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from sparsejax.units.program import Body, Equation, Region, Value

__all__ = ["Analysis", "forward"]

Fact = TypeVar("Fact")


class Analysis(Protocol[Fact]):
    """What is to be known of values, and what equations make of it."""

    def constant(self, value: Value) -> Fact:
        """Returns what is known of a constant."""

    def results(self, equation: Equation, operands: Sequence[Fact]) -> list[Fact]:
        """Returns what is known of the results of an equation without regions."""

    def meet(self, first: Fact, second: Fact) -> Fact:
        """Returns what is true of both."""

    def shift(self, fact: Fact, by: int) -> Fact:
        """Returns what is known of an array with one leading axis more (`by=1`), or less (`by=-1`)."""

    def same(self, first: Fact, second: Fact) -> bool:
        """Returns whether two facts say the same."""


def forward(body: Body, inputs: Sequence[Fact], analysis: Analysis[Fact]) -> list[Fact]:
    """Returns what is known of a body's outputs.

    Args:
      body: the equations.
      inputs: what is known of its inputs.
      analysis: what equations make of it; its `results` sees every equation, those of loops several times.
    """
    known = dict(zip(body.inputs, inputs, strict=True))

    def read(value: Value) -> Fact:
        return known[value] if value in known else analysis.constant(value)

    for equation in body.equations:
        operands = [read(value) for value in equation.inputs]
        step = _through_regions if equation.regions else _through
        known.update(zip(equation.outputs, step(equation, operands, analysis), strict=True))
    return [read(value) for value in body.outputs]


def _through(equation: Equation, operands: list[Fact], analysis: Analysis[Fact]) -> list[Fact]:
    return analysis.results(equation, operands)


def _through_regions(equation: Equation, operands: list[Fact], analysis: Analysis[Fact]) -> list[Fact]:
    results: dict[int, Fact] = {}
    for region in equation.regions:
        if region.derivative:
            continue
        known = operands + list(results.values())
        facts = [analysis.shift(known[p.place], -1) if p.stacked else known[p.place] for p in region.inputs]
        found = _until_it_stays(region, facts, analysis)
        for port, fact in zip(region.outputs, found, strict=False):
            place = port.place - len(operands)
            fact = analysis.shift(fact, 1) if port.stacked else fact
            results[place] = analysis.meet(results[place], fact) if place in results else fact
    return list(results.values())


def _until_it_stays(region: Region, facts: list[Fact], analysis: Analysis[Fact]) -> list[Fact]:
    while True:
        found = forward(region.body, facts, analysis)
        stays = True
        for output, place in region.carried:
            both = analysis.meet(facts[place], found[output])
            stays &= analysis.same(both, facts[place])
            facts[place] = found[output] = both
        if stays:
            return found
