"""A table of units for people to read."""

from collections.abc import Mapping, Sequence

from sparsejax.groups import Group, Member
from sparsejax.units.roles import LeafAxis

__all__ = ["table"]

_LONGEST = 6


def table(
    groups: Mapping[str, Group], inexact: Mapping[str, Group], frozen: Mapping[LeafAxis, str], returned: Sequence[str]
) -> str:
    """Returns the groups, their sizes and members, whether they are exact, and why the rest cannot be removed."""
    everything = {**groups, **inexact}
    rows = [("group", "units", "exact", "computed by", "read by")]
    for name, group in everything.items():
        exact = "yes" if group.exact else "no"
        sides = [[_member(member) for member in group.members if member.reads is reads] for reads in (False, True)]
        rows.append((name, str(group.size), exact, _list(sides[0]), _list(sides[1])))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), " | ".join(row[3:])])
        for row in rows
    ]
    lines += [f"{name} is not exact: {group.reason}" for name, group in everything.items() if not group.exact]
    by_reason: dict[str, list[str]] = {}
    for (leaf, axis), reason in frozen.items():
        by_reason.setdefault(reason, []).append(f"{leaf}[{axis}]")
    lines += [f"not pruned because {reason}: {_list(axes)}" for reason, axes in by_reason.items()]
    if returned:
        lines.append(f"returned as the next values of parameters: {_list(list(returned))}")
    return "\n".join(line.rstrip() for line in lines)


def _member(member: Member) -> str:
    return f"{member.leaf}[{member.axis}]"


def _list(items: Sequence[str]) -> str:
    more = len(items) - _LONGEST
    return ", ".join(items[:_LONGEST]) + (f" and {more} more" if more > 0 else "")
