"""What was chosen for every product of a network, and the table it prints as."""

import dataclasses
from collections.abc import Mapping

from sparsejax.inference.ways import DENSE

__all__ = ["Choices", "Layer"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """Holds what was chosen for one product with a matrix of weights.

    Attributes:
      leaf: the name of the leaf that the matrix comes from, or of all of them.
      shape: (inputs, outputs) of the matrix.
      rows: how many vectors are multiplied by it in a call.
      sparsity: the share of its entries that are zero.
      choice: "dense", "blocks 8x128" (inputs and outputs of a block) or "CSR".
      stored: numbers that the choice stores / numbers in the matrix; CSR has an index to each besides.
      milliseconds: `{way: median}` of every way that was timed.

    >>> layer = Layer("kernel", (8, 4), 1, 0.5, "blocks 1x4", 0.5, {"dense": 3.0, "blocks 1x4": 1.5})
    >>> layer.speedup
    2.0
    """

    leaf: str
    shape: tuple[int, int]
    rows: int
    sparsity: float
    choice: str
    stored: float
    milliseconds: Mapping[str, float]

    @property
    def speedup(self) -> float | None:
        """The time of the dense product / that of the chosen one; `None` if they were not timed."""
        return _ratio(self.milliseconds, self.choice)


@dataclasses.dataclass(frozen=True)
class Choices:
    """Holds what was chosen for a network; `str` of it is a table.

    Attributes:
      layers: one `Layer` a product with a known matrix, in the order of the program: what was chosen for it alone.
      choice: "dense" or "sparse": which of the two networks is run.
      milliseconds: `{choice: median}` of a call of the whole network, where they were timed; the weights are constants
        of both.
      notes: sentences on what stays dense for other reasons than time, and on what would be faster still.

    >>> print(Choices((Layer("kernel", (8, 4), 1, 0.5, "dense", 1.0, {}),), "dense", {}).layers[0].choice)
    dense
    """

    layers: tuple[Layer, ...]
    choice: str
    milliseconds: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> float | None:
        """The time of the dense network / that of the one that is run; `None` if they were not timed."""
        return _ratio(self.milliseconds, self.choice)

    def __str__(self) -> str:
        rows = [("weights", "matrix", "rows", "zeros", "way", "stored", "ms, dense", "ms", "speed-up", "ms of others")]
        for one in self.layers:
            sizes = one.leaf, "x".join(map(str, one.shape)), f"{one.rows:,}", f"{one.sparsity:.1%}"
            others = [f"{name} {ms:.3g}" for name, ms in one.milliseconds.items() if name not in (DENSE, one.choice)]
            stored, times = f"{one.stored:.1%}", _times(one.milliseconds, one.choice, one.speedup)
            rows.append((*sizes, one.choice, stored, *times, ", ".join(others)))
        rows.append(("network", "", "", "", self.choice, "", *_times(self.milliseconds, self.choice, self.speedup), ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(_padded, row, widths, range(len(row)))).rstrip() for row in rows]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *self.notes])


def _ratio(milliseconds: Mapping[str, float], choice: str) -> float | None:
    return milliseconds[DENSE] / milliseconds[choice] if milliseconds else None


def _times(milliseconds: Mapping[str, float], choice: str, speedup: float | None) -> list[str]:
    if speedup is None:
        return ["-"] * 3
    return [f"{milliseconds[DENSE]:.3g}", f"{milliseconds[choice]:.3g}", f"{speedup:.2f}x"]


def _padded(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (0, 1, 4, 9) else cell.rjust(width)
