"""Runs the compiled kernels in the machine: ``python tests/ptx/audit.py LIST``, of the lists in cases.py."""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = map(str, (ROOT, ROOT / "tests" / "support", ROOT / "tests" / "ptx"))

import driver
import machine
import ptx
import torch

OUTPUTS = {
    "resident_forward_kernel": ("y", "hn", "gates"),
    "resident_backward_kernel": ("dh", "dgx", "da"),
    "persistent_forward_kernel": ("y", "hn", "gates", "slots", "state", "counters", "report"),
    "persistent_backward_kernel": ("dh", "dgx", "da", "slots", "counters", "report"),
    "stepwise_forward_kernel": ("y", "gates", "state"),
    "stepwise_backward_kernel": ("dgx", "da", "dh"),
    "rebuild_kernel": ("gates",),
}
PROGRAMS = {}


class Session:
    """What launches of a run leave behind."""

    def __init__(self, options):
        self.options, self.machines, self.keep = options, [], False
        self.reports, self.stats, self.seconds = Counter(), Counter(), 0.0
        self.lines = []

    def launch(self, compiled, grid, args):
        key = compiled.hash
        if key not in PROGRAMS:
            PROGRAMS[key] = ptx.Program(compiled.asm["ptx"], compiled.metadata.shared)
        program = PROGRAMS[key]
        self.args = args
        started = time.perf_counter()
        m = machine.Machine(program, grid, args, self.options, compiled.metadata.num_warps, OUTPUTS[compiled.name])
        self.last, self.compiled = m, compiled
        try:
            m.run()
        except machine.Deadlock as error:
            self.lines.append(f"STOPPED {error}")
            self.reports["stopped"] += 1
        finally:
            self.seconds += time.perf_counter() - started
            self.reports.update(m.report.kinds())
            self.stats.update(m.stats)
            self.lines += list(m.report.lines())
        self.machines.append(m)
        if not self.keep:
            for c in m.cta:
                c.groups = None


SESSION = Session(machine.Options())


def install(arch):
    driver.install(lambda *args: SESSION.launch(*args), arch)
    return driver.adopt()


WORD = None


def main():
    global WORD
    parser = argparse.ArgumentParser()
    parser.add_argument("list")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--out", default="ptx-results.jsonl")
    parser.add_argument("--warps", action="store_true", help="each warp on its own, in random order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="text that the case's JSON must contain")
    parser.add_argument("--largest", type=int, default=10**9, help="largest H")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("-v", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    WORD = install(a.arch)
    import json
    import random
    import traceback

    import cases
    import triton

    sys.modules["audit"].WORD = WORD
    todo = cases.lists()[a.list]
    if a.shuffle:
        random.Random(1).shuffle(todo)
    i, n = map(int, a.part.split("/"))
    if os.path.exists(a.out):  # what is there already is not run again
        done = [json.loads(line) for line in open(a.out)]
        done = [json.dumps(r["case"]) for r in done if r.get("worst", 2) <= 1]
        todo = [c for c in todo if json.dumps(c) not in done]
    todo = [c for c in todo[i::n] if a.only in json.dumps(c) and c["H"] <= a.largest]
    for c in todo:
        try:
            r = cases.run(c, machine.Options(lockstep=not a.warps, seed=a.seed))
        except Exception as error:
            r = {"case": c, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
        r |= {"arch": a.arch, "triton": triton.__version__, "warps": a.warps, "seed": a.seed}
        with open(a.out, "a") as file:
            file.write(json.dumps(r) + "\n")
        flag = (
            "ERROR " + r["error"]
            if "error" in r
            else ("ok " if r["worst"] <= 1 and not r["reports"] else "BAD ")
            + f"{r['worst']:.2f} {r['reports']} {r['seconds']}s/{r['wall']}s"
        )
        print(flag, json.dumps(c), flush=True)
        if a.v and "lines" in r:
            print("\n".join(r["lines"]), r["stats"])
        if a.v and "trace" in r:
            print(r["trace"])


if __name__ == "__main__":
    sys.modules["audit"] = sys.modules["__main__"]
    main()
