"""Sparse neural networks in JAX: pruning as pure functions over parameter pytrees."""

from sparsejax import bounds, directional, losses, masks, ops, report, schedules, surrogates, transforms, tree
from sparsejax.masks import apply, sparsity
from sparsejax.transforms import grda

__version__ = "0.1.0"

__all__ = [
    "apply",
    "bounds",
    "directional",
    "grda",
    "losses",
    "masks",
    "ops",
    "report",
    "schedules",
    "sparsity",
    "surrogates",
    "transforms",
    "tree",
]
