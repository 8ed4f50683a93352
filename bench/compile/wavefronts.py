"""Shared-memory wavefronts of launches, counted by running their PTX for sm_90 on the PTX machine (tests/ptx).

A wavefront is one pass over the banks of a multiprocessor's shared memory; lanes that meet in a bank need several. The
counts are of one program in one time step of one batch tile.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.compile.tables import HOME, write
from tritongru.planning import triton_versions
from tritongru.planning.launches import AnyLaunch, Row, launch_of, rows_of

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "ptx" / "sweep.py"
SIZES = {"resident": "hidden", "persistent": "units"}  # what a row calls its padded hidden size


@dataclass(frozen=True)
class Item:
    """A launch to be counted. ``size``: its padded hidden size."""

    family: str
    kernel: str
    kind: str
    size: int
    launch: AnyLaunch

    @property
    def line(self) -> str:
        """What the script reads."""
        fields = {"family": self.family, "kernel": self.kernel, "kind": self.kind, "size": self.size}
        return json.dumps(fields | {"launch": asdict(self.launch)})


def item_of(family: str, row: Row) -> Item:
    return Item(family, row["kernel"], row["kind"], row[SIZES[family]], launch_of(family, row))


def answers(items: Sequence[Item], jobs: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The place of each item with the script's answer about it, as they come; ``jobs`` processes have a share each.

    Raises:
        SystemExit: if a launch cannot be counted, or a process ends before it has answered for all of its share.
    """
    came: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()  # place, or minus one for an end, and a line
    shares = [range(first, len(items), jobs) for first in range(min(jobs, len(items)))]
    with ExitStack() as stack:
        for share in shares:
            asked = stack.enter_context(tempfile.TemporaryFile("w+"))
            asked.writelines(items[place].line + "\n" for place in share)
            asked.seek(0)
            command = [sys.executable, str(SCRIPT), "--count", "--arch", HOME]
            process = subprocess.Popen(command, cwd=ROOT, stdin=asked, stdout=subprocess.PIPE, text=True)
            reader = threading.Thread(target=_read, args=(process, share, came), daemon=True)
            reader.start()
            stack.enter_context(process)
            stack.callback(reader.join)
            stack.callback(process.kill)  # comes first at the end
        left, ended = len(items), 0
        while left and ended < len(shares):
            place, line = came.get()
            if place < 0:
                ended += 1
                continue
            left -= 1
            answer = json.loads(line)
            if "error" in answer:
                raise SystemExit(f"{SCRIPT.name} could not count {items[place].line}: {answer['error']}")
            yield place, answer
    if left:
        raise SystemExit(f"{SCRIPT.name} ended before it had counted {left} of {len(items)} launches")


def _read(process: subprocess.Popen[str], share: range, came: queue.SimpleQueue[tuple[int, str]]) -> None:
    assert process.stdout is not None
    for place, line in zip(share, process.stdout, strict=False):
        came.put((place, line))
    came.put((-1, ""))


def counted(items: Sequence[Item], jobs: int = 2) -> list[int]:
    """The wavefronts of each."""
    found = dict(answers(items, jobs))
    return [found[place]["wavefronts"] for place in range(len(items))]


def record(families: Sequence[str], jobs: int, again: bool = False) -> None:
    """Writes the wavefronts of NVIDIA rows into their readings with the installed Triton, each as soon as it is
    counted. Rows that have theirs are counted only ``again``: a new reading drops them."""
    version = triton_versions.installed()
    if version is None:
        raise SystemExit("no Triton is installed, so nothing can be compiled")
    for family in families:
        rows = rows_of(family)
        some = [row for row in rows if row["backend"] == "cuda"]
        if unread := sum(version not in row["readings"] for row in some):
            raise SystemExit(f"{unread} rows of {family} have no reading with Triton {version}; read {HOME} first")
        todo = [row for row in some if again or "wavefronts" not in row["readings"][version]]
        print(f"Triton {version}, {family}: {len(todo)} of {len(some)} rows to count", flush=True)
        for place, answer in answers([item_of(family, row) for row in todo], jobs):
            row = todo[place]
            row["readings"][version]["wavefronts"] = answer["wavefronts"]
            write(family, rows)
            form = f"{row['kernel']} {row['kind']} {row[SIZES[family]]}, {row['num_warps']} warps"
            print(f"  {form}: {answer['wavefronts']} wavefronts, at least {answer['least']}", flush=True)
