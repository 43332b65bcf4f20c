"""States of a kind, wherever they are within the state of an optimizer."""

from typing import Any

import jax


def check(kind: type, state: Any) -> None:
    """Raises `ValueError` unless the state that an update was given is of the kind it returns."""
    if not isinstance(state, kind):
        raise ValueError(
            f"state={state!r:.80} is {type(state).__name__}, not {kind.__name__}; call tx.update(grads, state, params) "
            f"with what tx.init or the last update returned, and restore checkpoints with tx.init(params) as the target"
        )


def instances(kind: type, state: Any) -> list[Any]:
    """Returns the states of a kind within a state, in the order of its leaves."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def the(kind: type, state: Any) -> Any:
    """Returns the one state of a kind within a state; raises `ValueError` if there is not one."""
    found = instances(kind, state)
    if len(found) != 1:
        raise ValueError(f"state holds {len(found)} {kind.__name__}, not one; pass the state of one such optimizer")
    return found[0]
