"""Sparse neural networks in JAX: pruning as pure functions over parameter pytrees."""

from sparsejax import bounds, losses, masks, ops, report, schedules, surrogates, tree
from sparsejax.masks import apply, sparsity

__version__ = "0.1.0"

__all__ = [
    "apply",
    "bounds",
    "losses",
    "masks",
    "ops",
    "report",
    "schedules",
    "sparsity",
    "surrogates",
    "tree",
]
