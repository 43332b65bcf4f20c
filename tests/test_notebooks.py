"""The notebooks: nothing is stored in them, and they run from top to bottom without a warning, pictures included."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from experiments import data

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    """Returns a notebook and its cells of code."""
    notebook = nbformat.read(path, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Holds the digits, so that no notebook shows how they are prepared."""
    folder = tmp_path_factory.mktemp("digits")
    data.load("digits", folder)
    return folder


def test_there_are_four():
    assert len(NOTEBOOKS) == 4


@each
def test_nothing_is_stored(path):
    notebook, cells = read(path)
    nbformat.validate(notebook)
    for cell in cells:
        assert (cell.outputs, cell.execution_count) == ([], None), f"clear the outputs of {path.name}"
        assert len(cell.source.splitlines()) <= 20, f"too long for a cell:\n{cell.source}"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.slow
@each
def test_it_runs(path, digits, tmp_path, monkeypatch):
    # The kernel is a process of its own and inherits the environment, the tests' compilation cache included.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # agg would show no picture
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits))
    for folder in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder.lower()))
    notebook, cells = read(path)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    nbformat.write(notebook, tmp_path / path.name)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    drawn = ["plt.show()" in cell.source for cell in cells]
    shown = [any("image/png" in output.get("data", ()) for output in cell.outputs) for cell in cells]
    assert shown == drawn
    assert any(drawn)
