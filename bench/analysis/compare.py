"""Two row files, or the rows of two commits, side by side.

A time counts as changed only if the difference exceeds the spread of the samples behind both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.analysis.measured import rows_in
from bench.measure.pair import OURS
from bench.measure.rows import MACHINE_KEYS, NotRows, Row, read
from bench.measure.timing import geomean

Key = tuple[str, str, str | None]  # case, implementation and, for rows of `tune`, the launch


class Unknown(Exception):
    """A name that is neither a row file nor a commit with rows; the text says so."""


@dataclass(frozen=True)
class Change:
    key: Key
    before: float  # ms
    after: float
    noise: float  # relative to the time

    @property
    def ratio(self) -> float:
        """How many times faster it is now."""
        return self.before / self.after

    @property
    def word(self) -> str:
        if abs(self.after - self.before) <= self.noise * self.before:
            return "same"
        return "faster" if self.after < self.before else "SLOWER"


def rows_of(name: str, folder: Path) -> list[Row]:
    """Rows of the file ``name`` or, from the files of a folder, of the commit that starts with ``name``.

    Raises:
        Unknown: if there are none.
    """
    if os.path.isfile(name):
        try:
            rows = read(Path(name))
        except (NotRows, OSError) as error:
            raise Unknown(f"{name!r} is not a row file: {error}.") from None
    elif re.fullmatch(r"[0-9a-f]{4,40}(-dirty)?", name):
        try:
            rows = [row for row in rows_in(folder) if row["commit"].startswith(name)]
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise Unknown(f"{str(folder)!r} has a file that is not a row file: {error}.") from None
    else:
        raise Unknown(f"{name!r} is neither a row file nor a commit; a commit has 4 to 40 hexadecimal digits.")
    timed = [row for row in rows if row["ms"] is not None]
    if not timed:
        raise Unknown(f"{name!r} has no rows with a time in {folder}.")
    return timed


def changes(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """Of all that both have, in the order of the second; of several rows about the same thing the last counts."""
    one, other = ({key_of(row): row for row in rows} for rows in (before, after))
    return [
        Change(key, one[key]["ms"], row["ms"], max(one[key]["spread"] or 0.0, row["spread"] or 0.0))
        for key, row in other.items()
        if key in one
    ]


def key_of(row: Row) -> Key:
    return row["case"], row["impl"], row["plan"] if "tune" in row["impl"] else None


def differences(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """How the machines and versions of the two differ."""
    lines = []
    for key in MACHINE_KEYS:
        one, other = (sorted({str(row[key]) for row in rows}) for rows in (before, after))
        if one != other:
            lines.append(f"Note: {key} is {', '.join(one)} in the first and {', '.join(other)} in the second.")
    return lines


def table(found: Sequence[Change]) -> list[str]:
    width = max(len(f"{change.key[0]}  {change.key[1]}") for change in found)
    lines = [f"{'times in us':<{width}} {'first':>12} {'second':>12} {'ratio':>7}"]
    for change in found:
        case, impl, plan = change.key
        numbers = f"{1000 * change.before:12.2f} {1000 * change.after:12.2f} {change.ratio:6.3f}x"
        lines.append(f"{f'{case}  {impl}':<{width}} {numbers}  {change.word}{f'  {plan}' if plan else ''}")
    return lines


def compare(first: str, second: str, folder: Path) -> int:
    """Print the comparison; 1 if tritongru became slower anywhere, 2 if there is nothing to compare."""
    try:
        before, after = rows_of(first, folder), rows_of(second, folder)
    except Unknown as error:
        print(error)
        return 2
    found = changes(before, after)
    if not found:
        print(f"{first!r} and {second!r} have no case and implementation in common.")
        return 2
    for text in (*differences(before, after), *table(found)):
        print(text)
    for impl in dict.fromkeys(change.key[1] for change in found):
        own = [change for change in found if change.key[1] == impl]
        counts = ", ".join(f"{sum(c.word == word for c in own)} {word}" for word in ("faster", "same", "SLOWER"))
        print(f"{impl}: {geomean(change.ratio for change in own):.3f}x, the geometric mean of {len(own)}; {counts}.")
    slower = any(change.word == "SLOWER" and change.key[1].startswith(OURS) for change in found)
    return 1 if slower else 0
