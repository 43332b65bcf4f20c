"""A pruned network as the function that computes the same in the least time."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks, tree
from sparsejax._types import Params
from sparsejax.inference.choices import Choices, Layer
from sparsejax.inference.products import Known, Product, convolutions, find, without_unused
from sparsejax.inference.rules import Candidate, Rule, Verdict, fastest
from sparsejax.inference.ways import DENSE, Way, sparse_ways
from sparsejax.units.flattening import flatten
from sparsejax.units.program import Body
from sparsejax.units.replay import Probe, run
from sparsejax.units.resizing import Plan

__all__ = ["Compiled", "compile"]

_SPARSE = "sparse"
_WHOLE = Plan({})

_Chosen = list[tuple[Product, Way | None]]  # `None`: dense


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """Holds a network whose weights are constants: a function of its other arguments, and what was chosen for it.

    Calling it runs it, compiled. It can be called under `jit`, `vmap` and `grad` (by the arguments), and
    `jax.jit(fast.function)` be exported.

    Attributes:
      function: `(*args) -> outputs`, not compiled; arguments of other shapes than it was made for are a `ValueError`.
      report: what was chosen and how long it takes (`Choices`).

    >>> fast = compile(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, jnp.ones((2, 3)))
    >>> fast(jnp.ones((2, 3))).shape, fast.report.choice
    ((2, 3), 'dense')
    """

    function: Callable[..., Any]
    report: Choices

    @functools.cached_property
    def _jitted(self) -> Callable[..., Any]:
        return jax.jit(self.function)

    def __call__(self, *args: Any) -> Any:
        """Returns the outputs of the network."""
        return self._jitted(*args)


def compile(
    fn: Callable[..., Any], params: Params, *args: Any, choose: Rule = fastest, exportable: bool = False
) -> Compiled:
    """Returns the fastest function found that computes `fn(params, *args)`; the parameters are constants of it.

    Every product of something that depends on the arguments with a matrix that does not is a choice: the dense product;
    for each size of blocks of which enough are zero, the blocks that are left (`sparsejax.block_sparse`); CSR, where a
    batch of 16 or more meets 90% zeros on a CPU. Convolutions stay dense, and what a loop slices. Calls, loops and
    branches are looked into; matrices may be computed from parameters in any way (masked, cast, normalised), which is
    then done once. If in the end the whole network is not faster than the dense one, it is the dense one.

    The outputs are equal up to rounding where the inputs of products are finite: what is skipped is not looked at.

    Args:
      fn: `fn(params, *args)` -> any pytree.
      params: its parameters, with zeros in them; any pytree of arrays, not traced.
      *args: examples of its other arguments: arrays of the shapes it will be called with, or `jax.ShapeDtypeStruct`.
      choose: what decides, `(candidates) -> verdict`: `fastest`, which times them on this machine, with
        `functools.partial(fastest, rounds=50)` more carefully; `smallest`, which times nothing; or your own.
      exportable: whether to leave out what `jax.export` cannot serialise, which is CSR.

    Returns:
      A `Compiled`: call it with the other arguments; its `report` prints as a table.

    Raises:
      ValueError: a parameter is traced or has no value; `fn` or `choose` is no function.

    >>> params = {"w": jnp.zeros((64, 64)).at[:8].set(1.0)}
    >>> least = lambda ways: Verdict(min(ways, key=lambda name: ways[name].stored), {})
    >>> fast = compile(lambda p, x: jnp.tanh(x @ p["w"]), params, jnp.ones((4, 64)), choose=least)
    >>> fast.report.layers[0].choice, fast.report.layers[0].stored
    ('blocks 8x64', 0.125)
    """
    _checks.check_function("fn", fn, "call sparsejax.inference.compile(fn, params, *args)")
    _checks.check_function("choose", choose, "pass sparsejax.inference.fastest or smallest")
    _check(params)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    jaxpr, results = jax.make_jaxpr(fn, return_shape=True)(shapes, *args)
    body = flatten(jaxpr)
    with jax.ensure_compile_time_eval():
        known = Known(body, tree.named(params))
        products, notes = find(body, known)
        chosen, layers = _choose(products, choose, exportable)
        notes += _notes(products, convolutions(body, known))
        dense, examples = functools.partial(fn, params), jax.tree.map(_example, args)
        candidates = {DENSE: _candidate(lambda: dense, None, examples)}
        if not any(way for _, way in chosen):
            report = Choices(layers, DENSE, choose(candidates).milliseconds, tuple(notes))
            return Compiled(_checked(dense, args), report)
        sparse = _replaced(body, jax.tree.leaves(params), chosen, jax.tree.structure(results))
        candidates[_SPARSE] = _candidate(lambda: sparse, None, examples)
        times = choose(candidates).milliseconds
    if times and times[DENSE] <= times[_SPARSE]:
        notes.append("the network stays dense: with its layers as above it took longer than the dense one")
        return Compiled(_checked(dense, args), Choices(layers, DENSE, times, tuple(notes)))
    return Compiled(_checked(sparse, args), Choices(layers, _SPARSE, times, tuple(notes)))


def _choose(products: list[Product], choose: Rule, exportable: bool) -> tuple[_Chosen, tuple[Layer, ...]]:
    """Returns the way of each product, and what the report says of it; products that are alike are judged once."""
    verdicts: dict[Any, Verdict] = {}
    chosen, layers = [], []
    for product in products:
        matrix = product.matrix
        ways = sparse_ways(matrix, product.rows)
        ways = {name: way for name, way in ways.items() if way.plain or not exportable}
        key = _key(product, ways)
        if key not in verdicts:
            verdicts[key] = _judge(product, ways, choose)
        choice, milliseconds = verdicts[key]
        way = ways.get(choice)
        sparsity = 1 - np.count_nonzero(matrix) / max(matrix.size, 1)
        stored = 1.0 if way is None else way.stored
        layers.append(Layer(product.leaf, matrix.shape, product.rows, sparsity, choice, stored, milliseconds))
        chosen.append((product, way))
    return chosen, tuple(layers)


def _key(product: Product, ways: Mapping[str, Way]) -> Any:
    params = {name: str(value) for name, value in product.equation.params.items()}
    operands = [(value.shape, value.dtype) for value in product.equation.inputs]
    return str((operands, product.side, params, [(name, way.stored) for name, way in ways.items()]))


def _judge(product: Product, ways: Mapping[str, Way], choose: Rule) -> Verdict:
    if not ways:
        return Verdict(DENSE, {})
    other = product.equation.inputs[1 - product.side]
    example = (_example(jax.ShapeDtypeStruct(other.shape, other.dtype)),)

    def apply(way: Way | None) -> Callable[..., Any]:
        multiplied = product.dense if way is None else product.by(way.make())
        return lambda x: multiplied([x, x])  # the other operand is known

    everything: dict[str, Way | None] = {DENSE: None, **ways}
    return choose({name: _candidate(functools.partial(apply, way), way, example) for name, way in everything.items()})


def _candidate(make: Callable[[], Callable[..., Any]], way: Way | None, args: Any) -> Candidate:
    @functools.cache
    def program() -> Callable[..., Any]:
        return jax.jit(make()).lower(*args).compile()

    stored, plain = (1.0, True) if way is None else (way.stored, way.plain)
    return Candidate(lambda: program()(*args), stored, plain)


def _replaced(body: Body, leaves: list[Any], chosen: _Chosen, results: Any) -> Callable[..., Any]:
    """Returns the function with the products as they were chosen."""
    probes: dict[Any, Probe] = {}
    for product, way in chosen:
        if way is not None or product.computed:
            probes[product.equation] = _probe(product.dense if way is None else product.by(way.make()))
    sides = {product.equation: product.side for product, _ in chosen}
    without_unused(body, {equation: sides[equation] for equation in probes})

    def sparse(*args: Any) -> Any:
        inputs = [jnp.asarray(x) for x in (*leaves, *jax.tree.leaves(args))]
        return jax.tree.unflatten(results, run(body, inputs, _WHOLE, probes))

    return sparse


def _probe(apply: Callable[..., list[Any]]) -> Probe:
    return lambda operands, _, turns: apply(operands)


def _notes(products: list[Product], kernels: Iterable[tuple[str, np.ndarray]]) -> list[str]:
    notes, matrices = [], [(product.leaf, product.matrix) for product in products]
    for leaf, kernel in kernels:
        matrices.append((leaf, kernel))
        if zeros := kernel.size - np.count_nonzero(kernel):
            notes.append(f"{leaf}: stays dense, it is the kernel of a convolution ({zeros / kernel.size:.1%} zeros)")
    for leaf, matrix in matrices:
        if dead := int((~(matrix != 0).any(0)).sum()):
            notes.append(
                f"{leaf}: {dead} of {matrix.shape[1]} outputs have no weights; sparsejax.shrink can cut them out"
            )
    return notes


def _example(leaf: Any) -> Any:
    """Returns an array as it is, and for a shape an array of random floats, or of zeros."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros(leaf.shape, leaf.dtype)
    values = np.random.default_rng(0).standard_normal(math.prod(leaf.shape), np.float32)
    return jnp.asarray(values.reshape(leaf.shape), leaf.dtype)


def _checked(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    """Returns a function that takes only arguments like some others; that is found out while it is traced."""
    expected = _shapes(args)

    def checked(*args: Any) -> Any:
        if (given := _shapes(args)) != expected:
            raise ValueError(
                f"the arguments are {given}, but the network was compiled for {expected}, and what is fastest depends "
                f"on them; call sparsejax.inference.compile with arguments like these too"
            )
        return function(*args)

    return checked


def _shapes(args: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), args)


def _check(params: Params) -> None:
    for name, leaf in tree.named(params).items():
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise ValueError(
                f"leaf {name!r} has no value, it is {leaf}; what is skipped depends on where the zeros are: call "
                f"sparsejax.inference.compile outside jit, grad and vmap, with arrays"
            )
