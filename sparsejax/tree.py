"""Leaves by name: what a leaf is called, which leaves a method may touch, and how to put new ones in their place."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax._types import Params, Where

Sampler = Callable[[chex.PRNGKey, tuple[int, ...], Any], jax.Array]
"""`(key, shape, dtype) -> random array`, as those of `jax.random`."""


def named(tree: Params) -> dict[str, Any]:
    """Returns the leaves of a tree by name, in the tree's own order.

    A name is the path of keys, attributes and positions joined by `/`; a bare array has the name `""`.

    Args:
      tree: any pytree.

    Returns:
      `{name: leaf}`, in the order of `jax.tree.leaves(tree)`.

    Raises:
      ValueError: two leaves have the same name.

    >>> list(named({"Dense_0": {"kernel": 1.0, "bias": 2.0}, "stack": [3.0]}))
    ['Dense_0/bias', 'Dense_0/kernel', 'stack/0']
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"two leaves of the tree are both called {name!r}; rename a key that contains '/'")
        leaves[name] = leaf
    return leaves


def select(params: Params, where: Where = None) -> tuple[str, ...]:
    """Returns the names of the leaves that may be pruned; never none of them.

    Args:
      params: the tree of parameters; `jax.ShapeDtypeStruct` leaves will do.
      where: `None` for every float leaf of rank >= 2, a regular expression searched in the leaf's name, or a
        predicate `(name, leaf) -> bool`.

    Returns:
      The names, in the order of the leaves.

    Raises:
      ValueError: nothing is selected, the expression is not valid, a selected leaf is empty or not of a float type, or
        any leaf is no array.

    >>> params = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> select(params), select(params, "bias$")
    (('Dense_0/kernel',), ('Dense_0/bias',))
    """
    leaves = named(params)
    for name, leaf in leaves.items():
        _check_array(name, leaf)
    matches = _matcher(where)
    chosen = tuple(name for name, leaf in leaves.items() if matches(name, leaf))
    if not chosen:
        reason = "no float leaf has rank >= 2" if where is None else f"where={where!r} matches no leaf"
        raise ValueError(f"{reason}; the leaves that could be selected are {_floats(leaves)}")
    for name in chosen:
        check_prunable(name, leaves[name], "exclude it with `where`")
    return chosen


def replace(params: Params, leaves: Mapping[str, Any]) -> Params:
    """Returns the tree with some of its leaves replaced, by name.

    Args:
      params: any pytree.
      leaves: `{name: new leaf}`; names as `named` gives them.

    Returns:
      A tree of the same structure; the leaves that are not named are passed on as they are.

    Raises:
      ValueError: a name is not in the tree.

    >>> replace({"a": 1, "b": [2, 3]}, {"b/1": 30})
    {'a': 1, 'b': [2, 30]}
    """
    old = named(params)
    check_names(leaves, params, "leaves")
    return jax.tree.unflatten(jax.tree.structure(params), [leaves.get(name, leaf) for name, leaf in old.items()])


def draw(key: chex.PRNGKey, shapes: Mapping[str, Any], sampler: Sampler = jax.random.normal) -> dict[str, jax.Array]:
    """Returns random arrays for a flat dict of shapes, all cut from one draw, which compiles once.

    Args:
      key: a PRNG key.
      shapes: `{name: array or jax.ShapeDtypeStruct}`, float dtypes; the values of arrays are not read.
      sampler: `(key, shape, dtype) -> array`, independent entries.

    Returns:
      `{name: array}` of the shapes and dtypes; drawn in the widest of the dtypes.

    Raises:
      ValueError: there is nothing to draw, or `key` is no PRNG key.

    >>> drawn = draw(jax.random.key(0), {"a": jnp.ones((2, 3)), "b": jnp.ones(4)})
    >>> {name: array.shape for name, array in drawn.items()}
    {'a': (2, 3), 'b': (4,)}
    """
    _check_key(key)
    sizes = [math.prod(jnp.shape(leaf)) for leaf in shapes.values()]
    if not sum(sizes):
        raise ValueError(f"shapes={dict(shapes)} has no entries, so there is nothing to draw")
    dtypes = [jnp.result_type(leaf) for leaf in shapes.values()]
    drawn = sampler(key, (sum(sizes),), functools.reduce(jnp.promote_types, dtypes))
    parts = jnp.split(drawn, np.cumsum(sizes)[:-1])
    named_parts = zip(shapes.items(), parts, dtypes, strict=True)
    return {name: part.reshape(jnp.shape(leaf)).astype(dtype) for (name, leaf), part, dtype in named_parts}


def check_names(entries: Mapping[str, Any], params: Params, argument: str) -> None:
    """Raises unless every key of a flat dict is the name of a leaf.

    Args:
      entries: a dict keyed by leaf name.
      params: the tree it belongs to.
      argument: what the caller calls the dict, for the message.

    Raises:
      ValueError: it names the entry that has no leaf, and the leaves there are.

    >>> check_names({"a": 0.5}, {"a": jnp.ones(3)}, "bounds")
    """
    known = named(params)
    for name in entries:
        if name not in known:
            raise ValueError(
                f"{argument} has an entry {name!r} that is not a leaf of params; the leaves are {list(known)}. "
                f"Make {argument} from these params, or rename the entry"
            )


def check_structure(tree: Any, params: Params, argument: str) -> None:
    """Raises unless a tree has exactly the structure of the parameters.

    Args:
      tree: the tree to check.
      params: the tree whose structure it must have.
      argument: what the caller calls the tree, for the message.

    Raises:
      ValueError: it names the first leaf that one of the two lacks.

    >>> check_structure({"a": True}, {"a": jnp.ones(3)}, "mask")
    """
    if jax.tree.structure(tree) == jax.tree.structure(params):
        return
    has, wants = named(tree), named(params)
    missing = [name for name in wants if name not in has]
    extra = [name for name in has if name not in wants]
    difference = f"it lacks {missing[:3]}" if missing else f"it adds {extra[:3]}" if extra else "the containers differ"
    raise ValueError(
        f"{argument} must have the structure of params, {jax.tree.structure(params)!s:.300}, but {difference}; "
        f"build it with jax.tree.map over params (no None: an untouched leaf of a mask is jnp.asarray(True))"
    )


def check_like(tree: Any, params: Params, argument: str) -> None:
    """Raises unless a tree has exactly the structure and the shapes of the parameters.

    Args:
      tree: the tree to check; arrays, scalars, or `jax.ShapeDtypeStruct`.
      params: the tree that it must be like.
      argument: what the caller calls the tree, for the message.

    Raises:
      ValueError: it names the first leaf that one of the two lacks, or that has another shape.

    >>> check_like({"a": jnp.zeros(3)}, {"a": jnp.ones(3)}, "grads")
    """
    check_structure(tree, params, argument)
    expected = named(params)
    for name, leaf in named(tree).items():
        if jnp.shape(leaf) != jnp.shape(expected[name]):
            raise ValueError(
                f"leaf {name!r} of {argument} has shape {jnp.shape(leaf)}, but it belongs to one of shape "
                f"{jnp.shape(expected[name])}: build {argument} with jax.tree.map over the parameters"
            )


def check_prunable(name: str, leaf: Any, way_out: str) -> None:
    """Raises unless a leaf holds at least one number of a float type.

    Args:
      name: the leaf's name, for the message.
      leaf: an array, a scalar, or a `jax.ShapeDtypeStruct`.
      way_out: what the caller advises, for the message.

    Raises:
      ValueError: it names the leaf, its dtype or its shape.

    >>> check_prunable("kernel", jnp.ones((2, 3)), "")
    """
    dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"leaf {name!r} has dtype {dtype}; only float leaves can be pruned: {way_out}")
    if 0 in shape:
        raise ValueError(f"leaf {name!r} is empty, its shape is {shape}; there is nothing to prune: {way_out}")


def check_no_nan(name: str, leaf: Any) -> None:
    """Raises if a leaf holds a NaN; says nothing about one without a value, traced or abstract.

    Args:
      name: the leaf's name, for the message.
      leaf: an array.

    Raises:
      ValueError: it names the leaf and how many NaN it holds.

    >>> check_no_nan("kernel", jnp.ones((2, 3)))
    """
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        return
    with jax.ensure_compile_time_eval():  # a concrete leaf may be met while something else is traced
        count = int(jnp.isnan(leaf).sum())
    if count:
        raise ValueError(
            f"leaf {name!r} holds {count} NaN; a threshold of such weights is NaN too. Find the step that made them "
            f"(jax_debug_nans) and prune weights from before it"
        )


def _check_array(name: str, leaf: Any) -> None:
    if not (isinstance(leaf, int | float | complex) or (hasattr(leaf, "dtype") and hasattr(leaf, "shape"))):
        raise ValueError(
            f"leaf {name!r} is {leaf!r:.80}, which is no array; pass the parameters alone: variables['params'] of "
            f"Linen, nnx.state(model, nnx.Param), eqx.filter(model, eqx.is_array)"
        )


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise ValueError(f"key={key!r:.80} is no PRNG key; pass jax.random.key(0)")


def _matcher(where: Where):
    if where is None:
        return lambda _, leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.ndim(leaf) >= 2
    if callable(where):
        return where
    try:
        pattern = re.compile(where)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"where={where!r} must be None, a regular expression or a predicate (name, leaf) -> bool: {error}"
        ) from error
    return lambda name, _: pattern.search(name) is not None


def _floats(leaves: Mapping[str, Any]) -> list[str]:
    return [name for name, leaf in leaves.items() if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
