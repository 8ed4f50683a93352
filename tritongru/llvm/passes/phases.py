"""A pass consists of phases, and a phase of tasks that any number of threads take one by one.

Every task writes only its own memory and is the same in every thread, so results depend neither on the number of
threads nor on their speed. A phase ends when all its tasks are done.
"""

from __future__ import annotations

from collections.abc import Callable

from tritongru.llvm.language import I64, PTR, Function, Module, Record, Value
from tritongru.llvm.passes.call import CALL

PHASE = Record(call=PTR, tasks=I64, next=I64, first=I64, count=I64, direction=I64)
# Writes the code of a task into a function, given the call, the phase and the task's number.
Task = Callable[[Function, Value, Value, Value], None]


def worker(m: Module, name: str, task: Task) -> Function:
    """What each thread runs."""
    parameters = {"call": PTR, "phase": PTR, "number": I64}
    with m.function(f"{name}_task", parameters) as (one, call, phase, number):
        task(one, call, phase, number)
    with m.function(name, {"phase": PTR}) as (f, phase):
        call, tasks = PHASE.get(f, phase, "call"), PHASE.get(f, phase, "tasks")
        counter = PHASE.place(f, phase, "next")
        with f.forever() as done:
            number = f.next_number(counter)
            f.leave(done, number >= tasks)
            f.call(one, call, phase, number)
    return f  # type: ignore[no-any-return]


def run(f: Function, call: Value, phase: Value, work: Function, tasks: Value) -> None:
    """Runs one phase: in this thread if there is only one thread or task, else in parallel, by a function with the
    arguments of GOMP_parallel."""
    PHASE.set(f, phase, call=call, tasks=tasks, next=0)
    threads = f.least(CALL.get(f, call, "threads"), tasks)
    with f.given(threads > 1):
        number = f.make("i32", f"trunc i64 {threads.name} to i32")
        parallel = CALL.get(f, call, "parallel")
        f.call(parallel, f.address(work), phase, number, f.constant(0, "i32"), kinds=(PTR, PTR, "i32", "i32"))
    with f.otherwise(threads > 1):
        f.call(work, phase)
