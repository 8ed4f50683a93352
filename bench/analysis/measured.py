"""From rows of `tune` to ``tritongru/planning/tables/measured.json``, which the plan prefers to its model.

A shape there is a chip, a kind of arithmetic, a hidden size, batch tiles of 16 rows and directions, in a mode: for
"train", times cover forward and backward, and the launch is that of the backward pass. Several cases may share a shape;
ours then counts with its slowest time and torch with its fastest, so that the plan never expects too much.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row, read_all
from tritongru.planning.candidates import kind_of
from tritongru.planning.launches import Shape, shape_of

MEASURED = Path(__file__).parents[2] / "tritongru" / "planning" / "tables" / "measured.json"
TUNED = f"{OURS}[tune]"


def rows_in(folder: Path) -> list[Row]:
    """All rows of a folder, by date, the latest last."""
    return sorted(read_all(folder), key=lambda row: row["date"])


def key_of(row: Row) -> tuple[str, Shape]:
    """As in the plan's table: mode and shape."""
    dtype = "float32" if row["dtype"] == "fp32" else row["dtype"]
    kind = kind_of(dtype, "tf32" if row["tf32"] else "ieee")
    return row["mode"], shape_of(row["arch"], kind, row["hidden"], row["batch"], row["directions"])


def is_good(row: Row) -> bool:
    return row["ms"] is not None and row["parity"] is not None and row["parity"] <= 1.0


def measured(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The best launch of each shape and mode, from the rows of the commit measured last."""
    good = [row for row in rows if row["arch"] is not None and is_good(row)]
    commits = {key_of(row): row["commit"] for row in good if row["impl"] == TUNED}
    found = []
    for key, commit in sorted(commits.items()):
        own = [row for row in good if row["commit"] == commit and key_of(row) == key]
        best = best_launch(row for row in own if row["impl"] == TUNED)
        theirs = [row["us_per_step"] for row in own if row["impl"] == THEIRS]
        if theirs:
            mode, (arch, kind, hidden, tiles, directions) = key
            about = {
                "mode": mode,
                "arch": arch,
                "kind": kind,
                "hidden": hidden,
                "tiles": tiles,
                "directions": directions,
            }
            found.append(about | {"us": best[0], "torch_us": min(theirs), "launch": best[1]})
    return found


def best_launch(rows: Iterable[Row]) -> tuple[float, str]:
    """Microseconds per step and name: the fastest of the launches measured in the most cases."""
    us: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        us.setdefault(row["plan"], {})[row["gpu"], row["case"]] = row["us_per_step"]  # a later row replaces an earlier
    most = max(map(len, us.values()))
    return min((max(cases.values()), launch) for launch, cases in us.items() if len(cases) == most)


def text_of(found: Sequence[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n" if found else "[]\n"


def write(folder: Path) -> int:
    rows = rows_in(folder)
    tuned = sum(row["impl"] == TUNED for row in rows)
    if not tuned:
        print(f"{folder} has no rows of `tune`; {MEASURED.name} is left unchanged.")
        return 2
    found = measured(rows)
    temporary = MEASURED.with_suffix(".tmp")
    temporary.write_text(text_of(found))
    temporary.replace(MEASURED)
    print(f"{len(found)} shapes from {tuned} rows of `tune`: {MEASURED}")
    return 0
