"""The result of counting: one leaf, one tree, and the table they print as.

Two families of totals stand side by side and are never mixed. Those of *all* parameters (`sparsity`, `compression`) say
what the network costs; those of the *prunable* ones (`prunable_sparsity`) say how far the method went. What was asked
stands beside what was reached, where it is given.
"""

import dataclasses
import itertools
import math

from sparsejax.multiply_adds import effective

_COLUMNS = 100
_PER_LEAF = ("size", "nonzeros", "asked", "sparsity", "multiply_adds", "effective_multiply_adds")
_TOTALS = ("parameters", "nonzeros", "asked", "sparsity", "compression")
_TOTALS += ("prunable_parameters", "prunable_nonzeros", "prunable_asked", "prunable_sparsity")
_TOTALS += ("multiply_adds", "effective_multiply_adds", "theoretical_speedup", "limit", "spent")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Holds the counts of one leaf.

    Attributes:
      name: as `sparsejax.tree.named` gives it.
      shape: its shape.
      dtype: the name of its dtype.
      size: how many entries it has.
      nonzeros: how many of them are not zero; -0.0 is zero. `None` for what holds no numbers, such as PRNG keys.
      prunable: whether `where` selects it.
      multiply_adds: the products it takes part in when dense; `None` if they were not given.
      asked: the share of zeros that was asked of it; `None` if that is not known.

    >>> Leaf("kernel", (2, 4), "float32", size=8, nonzeros=2, prunable=True, multiply_adds=800).effective_multiply_adds
    200
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nonzeros: int | None
    prunable: bool
    multiply_adds: int | None = None
    asked: float | None = None

    @property
    def sparsity(self) -> float | None:
        """The share of zeros; `None` if the leaf holds no numbers."""
        return None if self.nonzeros is None else _zeros(self.size, self.nonzeros)

    @property
    def effective_multiply_adds(self) -> int | None:
        """The products that remain when its zeros are skipped."""
        if self.multiply_adds is None or self.nonzeros is None:
            return self.multiply_adds
        return effective(self.multiply_adds, self.nonzeros, self.size)


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds the counts of a tree; `str` of it is a table.

    Attributes:
      leaves: one `Leaf` a leaf, in the order of the tree.
      unattributed: multiply-adds that belong to no leaf, so that no zero skips them; `None` if they were not given.
      notes: what is not exact about the multiply-adds.
      prunable_asked: the share of zeros that was asked of the prunable parameters; `None` if it was not given.
      limit: what the non-zeros may cost together; `None` if no budget was given.
      spent: what they do cost.

    >>> report = Report((Leaf("kernel", (2, 4), "float32", 8, 2, True), Leaf("bias", (4,), "float32", 4, 4, False)))
    >>> report.prunable_sparsity, report.sparsity, report.compression
    (0.75, 0.5, 2.0)
    """

    leaves: tuple[Leaf, ...]
    unattributed: int | None = None
    notes: tuple[str, ...] = ()
    prunable_asked: float | None = None
    limit: int | None = None
    spent: int | None = None

    @property
    def asked(self) -> float | None:
        """The share of zeros among all parameters that was asked; `None` if it was not given."""
        if self.prunable_asked is None:
            return None
        return self.prunable_asked * self.prunable_parameters / self.parameters

    @property
    def parameters(self) -> int:
        """Entries of all leaves that hold numbers."""
        return sum(leaf.size for leaf in self.leaves if leaf.nonzeros is not None)

    @property
    def nonzeros(self) -> int:
        """Entries of all leaves that are not zero."""
        return sum(leaf.nonzeros or 0 for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """The share of zeros among all parameters."""
        return _zeros(self.parameters, self.nonzeros)

    @property
    def compression(self) -> float:
        """All parameters / all non-zeros; infinite if nothing is left."""
        return _ratio(self.parameters, self.nonzeros)

    @property
    def prunable_parameters(self) -> int:
        """Entries of the prunable leaves."""
        return self._prunable.parameters

    @property
    def prunable_nonzeros(self) -> int:
        """Entries of the prunable leaves that are not zero."""
        return self._prunable.nonzeros

    @property
    def prunable_sparsity(self) -> float:
        """The share of zeros among the prunable parameters."""
        return self._prunable.sparsity

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of one call of the dense network, half its FLOPs; `None` if they were not given."""
        known = self.unattributed is not None
        return self.unattributed + sum(leaf.multiply_adds for leaf in self.leaves) if known else None

    @property
    def effective_multiply_adds(self) -> int | None:
        """Multiply-adds of one call that skips the zeros of every leaf; `None` if they were not given."""
        known = self.unattributed is not None
        return self.unattributed + sum(leaf.effective_multiply_adds for leaf in self.leaves) if known else None

    @property
    def theoretical_speedup(self) -> float | None:
        """Multiply-adds / effective ones, which no hardware promises; `None` if they were not given."""
        known = self.unattributed is not None
        return _ratio(self.multiply_adds, self.effective_multiply_adds) if known else None

    @property
    def _prunable(self) -> "Report":
        leaves, unattributed = tuple(leaf for leaf in self.leaves if leaf.prunable), self.unattributed
        return Report(leaves, None if unattributed is None else 0, prunable_asked=self.prunable_asked)

    def __str__(self) -> str:
        rows = self._rows()
        others = sum(2 + max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
        # The end of a long name is what tells leaves apart. Only the largest numbers push the table past the terminal.
        room = max(_COLUMNS - others, 20)
        rows = [[name if len(name) <= room else "..." + name[3 - room :], *cells] for name, *cells in rows]
        lines = ["  ".join(cells).rstrip() for cells in _padded(rows)]
        rule = "-" * max(map(len, lines))
        totals = 1 + len(self.leaves)
        return "\n".join([lines[0], rule, *lines[1:totals], rule, *lines[totals:], *self._summary()])

    def markdown(self) -> str:
        """Returns the table in GitHub's Markdown, with the whole names of the leaves."""
        rows = _padded([[name.replace("|", "\\|").replace("*", "\\*"), *cells] for name, *cells in self._rows()])
        dashes = ["-" * (len(cell) - 1) for cell in rows[0]]
        rule = [f":{left}" for left in dashes[:2]] + [f"{right}:" for right in dashes[2:]]
        lines = ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]
        return "\n".join([*lines, "", *(f"- {line}" for line in self._summary())])

    def as_dict(self) -> dict[str, int | float]:
        """Returns the totals by name, and the counts of each leaf as `sparsity/NAME`, `nonzeros/NAME` and so on.

        Flat, and every value a finite number: it is a line of JSON as it stands, and each key a tag that TensorBoard
        groups by its first part. What is unknown or infinite (the compression of a dead network) is left out.
        """
        flat = {total: getattr(self, total) for total in _TOTALS}
        flat |= {f"{part}/{leaf.name}": getattr(leaf, part) for part in _PER_LEAF for leaf in self.leaves}
        return {name: value for name, value in flat.items() if value is not None and math.isfinite(value)}

    def _rows(self) -> list[list[str]]:
        head = ["leaf (* prunable)", "shape", "size", "non-zeros", "asked", "sparsity", "multiply-adds", "effective"]
        rows = [head]
        for leaf in self.leaves:
            label = (leaf.name or "(array)") + " *" * leaf.prunable
            rows.append([label, "x".join(map(str, leaf.shape)) or "()", *_cells(leaf.size, leaf)])
        if self.unattributed:
            rows.append(["(no leaf)", "", "", "", "", "", *[_number(self.unattributed)] * 2])
        rows.append(["all", "", *_cells(self.parameters, self)])
        rows.append(["prunable *", "", *_cells(self.prunable_parameters, self._prunable)])
        shown = [True] * 4 + [self.prunable_asked is not None, True] + [self.unattributed is not None] * 2
        return [list(itertools.compress(row, shown)) for row in rows]

    def _summary(self) -> list[str]:
        lines = [f"compression {self.compression:,.2f}x: all parameters / all non-zeros"]
        if self.unattributed is not None:
            lines.append(f"theoretical speed-up {self.theoretical_speedup:,.2f}x: multiply-adds / effective ones")
        if self.limit is not None:
            exceeded = ", EXCEEDED" if self.spent > self.limit else ""
            lines.append(f"budget: {self.spent:,} of {self.limit:,} spent by the non-zeros{exceeded}")
        return [*lines, *self.notes]


def _zeros(size: int, nonzeros: int) -> float:
    return (size - nonzeros) / size if size else 0.0


def _ratio(before: int, after: int) -> float:
    return 1.0 if before == after else before / after if after else math.inf


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _cells(size: int, counts: Leaf | Report) -> list[str]:
    shares = ["-" if share is None else f"{100 * share:.2f}%" for share in (counts.asked, counts.sparsity)]
    products = map(_number, (counts.multiply_adds, counts.effective_multiply_adds))
    return [_number(size), _number(counts.nonzeros), *shares, *products]


def _padded(rows: list[list[str]]) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
