"""Sparse neural networks in JAX: pruning as pure functions over parameter pytrees."""

from sparsejax import (
    allocate,
    bounds,
    budgets,
    directional,
    gates,
    groups,
    losses,
    masks,
    ops,
    recipes,
    report,
    rules,
    schedules,
    scores,
    select,
    surrogates,
    targets,
    transforms,
    tree,
    unit_gates,
    units,
)
from sparsejax.masks import apply, sparsity
from sparsejax.transforms import autoprune, find_mask, grda, sparsify
from sparsejax.units import shrink

__version__ = "0.1.0"

__all__ = [
    "allocate",
    "apply",
    "autoprune",
    "bounds",
    "budgets",
    "directional",
    "find_mask",
    "gates",
    "grda",
    "groups",
    "losses",
    "masks",
    "ops",
    "recipes",
    "report",
    "rules",
    "schedules",
    "scores",
    "select",
    "shrink",
    "sparsify",
    "sparsity",
    "surrogates",
    "targets",
    "transforms",
    "tree",
    "unit_gates",
    "units",
]
