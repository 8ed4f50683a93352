"""The committed table: what the machine has found for each case, a line of JSON each, a file for each family."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptxmachine.runs.cases import SINGLE, Case, Result
from tritongru.planning.launches import FAMILIES

FOLDER = Path(__file__).parents[2] / "results"
FILES = (*FAMILIES, SINGLE)
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How cases are run; ``warps``: each warp on its own, in random order."""

    triton: str
    arch: str
    seed: int = 0
    warps: bool = False

    def to_json(self) -> Row:
        more = {"seed": self.seed} if self.seed else {}
        return {"triton": self.triton, "arch": self.arch, **more, **({"warps": True} if self.warps else {})}


def row_of(case: Case, setting: Setting, ptx: str, result: Result) -> Row:
    """``ptx``: a hash of the code that was launched."""
    parity = {name: round(value, 3) for name, value in result.parity.items()}
    found = {"parity": parity, "reports": result.reports, "counts": result.counts}
    error = {"error": result.error} if result.error else {}
    return {"case": case.to_json(), **setting.to_json(), "ptx": ptx, **found, **error}


def is_clean(row: Row) -> bool:
    worst = max(row["parity"].values(), default=float("inf"))
    return not row.get("error") and not row["reports"] and bool(worst <= 1)


def key_of(row: Row) -> str:
    """What a table has once: the case and its setting."""
    setting = Setting(row["triton"], row["arch"], row.get("seed", 0), row.get("warps", False))
    return json.dumps([row["case"], setting.to_json()], sort_keys=True)


def place_of(row: Row) -> tuple[Any, ...]:
    """Where a row stands: those of a form together, so that its change shows as a few neighbouring lines."""
    case = row["case"]
    form = case["kind"], case.get("size") or 0, case["kernel"], case["form"]
    return *form, json.dumps(case, sort_keys=True), row["arch"], row["triton"], key_of(row)


class Table:
    """The files of a folder. Several processes may write to them at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, family: str) -> Path:
        return self.folder / f"{family}.jsonl"

    def rows(self, family: str) -> list[Row]:
        """Raises ValueError, which names the line, if one is no row."""
        path, rows = self.path(family), []
        for n, line in enumerate(path.read_text().splitlines() if path.exists() else (), start=1):
            try:
                rows.append(json.loads(line))
                key_of(rows[-1])
            except (ValueError, TypeError, LookupError):
                raise ValueError(f"line {n} of {path} is not a row of results") from None
        return rows

    def find(self, case: Case, setting: Setting) -> Row | None:
        """The row of a case, as a process may just have written it."""
        asked = key_of({"case": case.to_json(), **setting.to_json()})
        return next((row for row in self.rows(case.family) if key_of(row) == asked), None)

    def put(self, row: Row) -> None:
        """Writes a row, over an older one of the same case and setting."""
        family, key = row["case"]["family"], key_of(row)
        with self.locked():
            self.write(family, [row, *(old for old in self.rows(family) if key_of(old) != key)])

    def keep(self, family: str, cases: Iterable[Case]) -> int:
        """Drops the rows of all other cases. Returns how many."""
        known = {json.dumps(case.to_json()) for case in cases}
        with self.locked():
            rows = self.rows(family)
            kept = [row for row in rows if json.dumps(Case.from_json(row["case"]).to_json()) in known]
            if len(kept) < len(rows):
                self.write(family, kept)
        return len(rows) - len(kept)

    def write(self, family: str, rows: list[Row]) -> None:
        """All at once: whoever reads sees the old file or the new one."""
        text = "".join(json.dumps(row) + "\n" for row in sorted(rows, key=place_of))
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{family}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.chmod(name, 0o644)
            os.replace(name, self.path(family))
        except BaseException:
            os.unlink(name)
            raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is the lock, so that no file is left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
