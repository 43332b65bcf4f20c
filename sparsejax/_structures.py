"""Trees as JSON: the containers of a pytree written down, and built again without importing or running anything.

A node is `"*"`, a leaf, or `[kind, label, nodes]`; the label says what the kind needs beside its children.
"""

import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sparsejax._files import expect

Node = str | list
"""A tree of containers, of what JSON can hold."""

_LEAF = "*"
_DEEPEST = 100  # what is nested deeper is a mistake, or made to exhaust the stack
_WAY_OUT = "pass like=, a tree of the structure that was saved; its leaves may be anything"


def describe(structure: jax.tree_util.PyTreeDef, depth: int = 0) -> Node:
    """Returns the node of a tree's structure; raises `ValueError` for keys that JSON cannot hold."""
    if depth > _DEEPEST:
        raise ValueError(
            f"params is nested more than {_DEEPEST} deep; save sparsejax.tree.named(params), which is flat"
        )
    data = structure.node_data()
    if data is None:
        return _LEAF
    return [*_labelled(*data), [describe(child, depth + 1) for child in structure.children()]]


def _labelled(container: type, data: Any) -> tuple[str, Any]:
    if container in (dict, OrderedDict):
        if wrong := [key for key in data if type(key) not in (str, int)]:
            raise ValueError(f"params has a dict with the key {wrong[0]!r}; a file holds str and int keys: rename it")
        return container.__name__, list(data)
    if container in (list, tuple, type(None)):
        return container.__name__, None
    if issubclass(container, tuple) and hasattr(container, "_fields"):
        return "NamedTuple", [container.__module__, container.__qualname__, list(container._fields)]
    return "other", f"{container.__module__}.{container.__qualname__}"


def build(node: Any, depth: int = 0) -> Any:
    """Returns the tree of a node, a 0 in place of each leaf; raises `ValueError` for what is not one."""
    if node == _LEAF:
        return 0
    expect(depth <= _DEEPEST and type(node) is list and len(node) == 3, "its tree has a node that is none")
    kind, label, nodes = node
    expect(type(kind) is str and kind in _BUILDERS and type(nodes) is list, "its tree has a container of no known kind")
    return _BUILDERS[kind](label, [build(child, depth + 1) for child in nodes])


def _keyed(container: type) -> Callable[[Any, Sequence], Any]:
    def build_with_keys(keys: Any, children: Sequence) -> Any:
        kinds = {*map(type, keys)} if type(keys) is list else {list}
        expect(kinds in (set(), {str}, {int}) and len({*keys}) == len(children) == len(keys), "a dict has wrong keys")
        return container(zip(keys, children, strict=True))

    return build_with_keys


def _named_tuple(label: Any, children: Sequence) -> Any:
    """Builds one whose class the program has loaded. What a file names is never imported, and runs no code.

    The names of a module are read past `__getattr__` and past lazy loading, which import; and a class is taken only if
    it stands right on `tuple`, for then `NamedTuple` made its constructor.
    """
    expect(type(label) is list and len(label) == 3 and type(label[2]) is list, "a NamedTuple has no name")
    module, name, fields = label
    expect({*map(type, [module, name, *fields])} == {str} and len(fields) == len(children), "a NamedTuple is not one")
    loaded = sys.modules.get(module)
    names = object.__getattribute__(loaded, "__dict__") if isinstance(loaded, types.ModuleType) else {}
    made = names.get(name)
    if type(made) is not type or made.__bases__ != (tuple,) or vars(made).get("_fields") != tuple(fields):
        raise ValueError(
            f"it holds a NamedTuple {name!r:.80} with the fields {fields!r:.200}, of which no plain class is loaded; "
            f"import {module!r:.80} first, or {_WAY_OUT}"
        )
    return made(*children)


def _other(label: Any, children: Sequence) -> Any:
    raise ValueError(f"it holds a {label!r:.160}, which only the code it came from can make; {_WAY_OUT}")


_BUILDERS: dict[str, Callable[[Any, Sequence], Any]] = {
    "dict": _keyed(dict),
    "OrderedDict": _keyed(OrderedDict),
    "list": lambda label, children: [*children],
    "tuple": lambda label, children: (*children,),
    "NoneType": lambda label, children: None,
    "NamedTuple": _named_tuple,
    "other": _other,
}
