"""Where a result comes from: versions, devices, commit and command."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax

import sparsejax as sj


def find() -> dict[str, str]:
    """Returns the versions, the device, the commit and, of `python -m experiments`, the command of a result."""
    packages = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "tensorflow-datasets")
    try:
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git, as on many a cluster
        commit = ""
    devices, hosts = jax.devices(), jax.process_count()
    asked = Path(sys.argv[0]) == Path(__file__).with_name("__main__.py")
    return {
        **({"command": f"python -m experiments {shlex.join(sys.argv[1:])}"} if asked else {}),
        "sparsejax": sj.__version__,
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "devices": f"{len(devices)} x {devices[0].device_kind}" + (f" in {hosts} processes" if hosts > 1 else ""),
        **{package: version(package) for package in packages},
    }
