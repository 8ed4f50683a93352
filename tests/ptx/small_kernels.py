"""Small kernels in PTX, written by hand, to be run in the machine.

The body of a kernel comes after a prelude, which leaves

* in ``%rd_x`` the address of the tensor ``x``, in ``%rd_x_own`` that of the thread's element, counted through all CTAs;
* in ``%r_n`` the integer ``n``;
* in ``%r_tid``, ``%r_lane``, ``%r_warp`` and ``%r_cta`` where the thread is;
* in ``%r_own`` four times ``%r_tid``: the offset of the thread's word in shared memory.

Free are ``%p0`` to ``%p9``, ``%rs0`` to ``%rs39``, ``%r0`` to ``%r299`` and ``%rd0`` to ``%rd99``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from ptxmachine.code.program import Program
from ptxmachine.machine.machine import Machine
from ptxmachine.machine.options import Deadlock, Options
from torch import Tensor

Grid = tuple[int, int, int]

HEAD = """.version 8.3
.target sm_90a
.address_size 64
.extern .shared .align 128 .b8 global_smem[];
.visible .entry small(
{parameters}
)
.reqntid {threads}
{{
.reg .pred %p<10>;
.reg .b16 %rs<40>;
.reg .b32 %r<300>;
.reg .b64 %rd<100>;
"""
PLACE = """
.reg .b32 %r_tid, %r_lane, %r_warp, %r_cta, %r_own, %r_all, %r_thread;
mov.u32 %r_tid, %tid.x;
mov.u32 %r_lane, %laneid;
shr.u32 %r_warp, %r_tid, 5;
mov.u32 %r_cta, %ctaid.x;
shl.b32 %r_own, %r_tid, 2;
mov.u32 %r_all, %ntid.x;
mad.lo.s32 %r_thread, %r_cta, %r_all, %r_tid;
"""


class Run(NamedTuple):
    machine: Machine
    tensors: dict[str, Tensor]
    kinds: Counter[str]  # what was reported
    stopped: str  # why the kernel could not go on

    @property
    def y(self) -> Tensor:
        return self.tensors["y"]

    @property
    def lines(self) -> list[str]:
        return list(self.machine.report.lines())


@dataclass(repr=False)
class Kernel:
    body: str
    arguments: Mapping[str, Tensor | int] = field(default_factory=dict)  # as they are before a run
    warps: int = 1
    grid: Grid = (1, 1, 1)
    shared: int = 0  # bytes
    outputs: tuple[str, ...] = ("y",)

    def edited(self, old: str, new: str) -> Kernel:
        assert self.body.count(old) == 1, old
        return replace(self, body=self.body.replace(old, new))

    def text(self) -> str:
        return ptx(self.body, self.arguments, self.warps)

    def run(self, **options: Any) -> Run:
        """Runs it on copies of its arguments."""
        arguments = {name: apart(v) if isinstance(v, Tensor) else v for name, v in self.arguments.items()}
        program = Program(self.text(), self.shared)
        machine = Machine(program, self.grid, arguments, Options(**options), self.warps, self.outputs)
        stopped = ""
        try:
            machine.run()
        except Deadlock as error:
            stopped = str(error)
        tensors = {name: v for name, v in arguments.items() if isinstance(v, Tensor)}
        return Run(machine, tensors, machine.report.kinds(), stopped)


def apart(tensor: Tensor) -> Tensor:
    """A copy with room around it, so that what is out of its bounds is in no other tensor."""
    room = 4096 // tensor.itemsize
    return tensor.new_empty(tensor.numel() + 2 * room)[room:-room].view(tensor.shape).copy_(tensor)


def ptx(body: str, arguments: Mapping[str, Tensor | int], warps: int) -> str:
    kinds = {name: "u64" if isinstance(value, Tensor) else "u32" for name, value in arguments.items()}
    parameters = ",\n".join(f".param .{kind} small_param_{i}" for i, kind in enumerate(kinds.values()))
    lines = [HEAD.format(parameters=parameters, threads=32 * warps), PLACE]
    for i, (name, value) in enumerate(arguments.items()):
        if isinstance(value, Tensor):
            lines += [
                f".reg .b64 %rd_{name}, %rd_{name}_own;",
                f"ld.param.u64 %rd_{name}, [small_param_{i}];",
                f"mad.wide.u32 %rd_{name}_own, %r_thread, {value.itemsize}, %rd_{name};",
            ]
        else:
            lines += [f".reg .b32 %r_{name};", f"ld.param.u32 %r_{name}, [small_param_{i}];"]
    return "\n".join([*lines, body, "ret;", "}", ""])


@dataclass(repr=False)
class Fault:
    """A fault of a kind that the machine reports: an edit of a sound kernel."""

    kind: str  # as it is reported
    name: str
    kernel: Kernel
    old: str
    new: str

    def check(self) -> None:
        """The sound kernel is clean; the edited one is reported for its fault and nothing else."""
        sound = self.kernel.run()
        assert not sound.kinds, sound.lines
        assert not sound.stopped
        faulty = self.kernel.edited(self.old, self.new).run()
        assert set(faulty.kinds) == {self.kind}, faulty.lines
        assert bool(faulty.stopped) == (self.kind in ("deadlock", "uninitialised register"))

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def words(count: int) -> Tensor:
    """0, 1, 2 ... of 32 bits."""
    return torch.arange(count, dtype=torch.int32)


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32)
