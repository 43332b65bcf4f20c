"""A module imports only from lower floors, and the library from nothing but JAX, optax, chex and safetensors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparsejax"
ROOF = 4
FLOORS = {
    "_types": 0,
    "_integers": 0,
    "_numbers": 0,
    "_states": 0,
    "_checks": 0,
    "_version": 0,
    "_files": 0,
    "_structures": 0.1,
    "_packing": 0.1,
    "_manifest": 0.2,
    "tree": 0.1,
    "surrogates": 0.1,
    "losses": 0.1,
    "schedules": 0.1,
    "gate_ops": 0.2,
    "ops": 0.3,
    "masks": 0.2,
    "thresholds": 0.2,
    "grains": 0.2,
    "quotas": 0.2,
    "search": 0.2,
    "select": 0.3,
    "proximal": 0.2,
    "dual_averaging": 0.3,
    "scaling": 0.3,
    "groups": 0.3,
    "budgets": 0.3,
    "multiply_adds": 0.2,
    "counts": 0.3,
    "block_sparse": 0.2,
    "linear_algebra": 0.2,
    "hessian": 0.3,
    "curves": 0.4,
    "planes": 0.4,
    "allocate": 1,
    "scores": 1,
    "bounds": 1,
    "report": 1,
    "gates": 1,
    "unit_gates": 1.1,
    "targets": 1.2,
    "alternating": 1.2,
    "freezing": 1.3,
    "rules": 2,
    "storage": 2,
    "constraining": 2.1,
    "recipes": 3,
    "transforms": 2.2,
    "directional": 1,
    "units/atoms": 2,
    "units/patterns": 2.01,
    "units/program": 2.02,
    "units/shuffles": 2.025,
    "units/flattening": 2.03,
    "units/layouts": 2.04,
    "units/movements": 2.05,
    "units/indexing": 2.055,
    "units/known": 2.06,
    "units/transfers": 2.07,
    "units/elementwise": 2.08,
    "units/resizing": 2.09,
    "units/rules": 2.1,
    "units/structure": 2.11,
    "units/components": 2.12,
    "units/dataflow": 2.13,
    "units/roles": 2.14,
    "units/exactness": 2.15,
    "units/grouping": 2.16,
    "units/replay": 2.17,
    "units/shrinking": 2.18,
    "units/table": 2.19,
    "units/graph": 2.2,
    "units/choosing": 2.21,
    "units/flow": 2.21,
    "units/sites": 2.22,
    "units/views": 2.23,
    "units/saliencies": 2.24,
    "units/sinks": 2.23,
    "units/folding": 2.24,
    "units/removal": 2.25,
    "units/maps": 2.26,
    "units/__init__": 2.3,
    "inference/ways": 2.4,
    "inference/rules": 2.4,
    "inference/products": 2.41,
    "inference/choices": 2.41,
    "inference/compiling": 2.42,
    "inference/__init__": 2.43,
    "__init__": ROOF,
}
ALLOWED = {"jax", "numpy", "scipy", "optax", "chex", "sparsejax"}  # JAX itself requires NumPy and SciPy
ALLOWED_IN = {"_files": {"safetensors"}}


def imported(module: str) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; name the package"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_floor():
    assert {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")} == set(FLOORS)


def floor_of(name: str) -> float:
    """The floor of what a dotted name below the package is: a module, something in it, or a package."""
    first, second, *_ = *name.split("."), ""
    return next(FLOORS[path] for path in (f"{first}/{second}", first, f"{first}/__init__") if path in FLOORS)


@pytest.mark.parametrize("module", FLOORS)
def test_imports_go_down(module):
    for name in imported(module):
        top, *rest = name.split(".")
        assert top in ALLOWED | ALLOWED_IN.get(module, set()) | sys.stdlib_module_names, f"{module} imports {name}"
        if top == "sparsejax":
            assert floor_of(".".join(rest)) < FLOORS[module], f"{module} (floor {FLOORS[module]}) imports {name}"


def test_the_library_needs_nothing_but_jax_optax_and_chex():
    """Imports it in a process where Flax, TFDS, matplotlib and the like cannot be found."""
    blocked = ["flax", "tensorflow_datasets", "matplotlib", "orbax", "sklearn", "scipy.sparse", "tyro", "tqdm"]
    blocked += ["safetensors"]  # which is imported when a file is met
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import sparsejax; print(sparsejax.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
