"""Child processes, so that a kernel that hangs or crashes costs one case and not the whole run.

Processes are spawned: CUDA does not survive a fork.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SPAWN = multiprocessing.get_context("spawn")
START_LIMIT_S = 120.0  # imports, the CUDA context and library handles, from a cold disk
ASKED_S, KILLED_S = 0.5, 2.0  # a process may take to end by itself, then killed
STOP_S = ASKED_S + KILLED_S


class Failed(Exception):
    """A case has no answer; the text says why. A handler can continue after raising this, and only this."""


class TimedOut(Failed):
    """No answer in time."""


def sentence(error: BaseException) -> str:
    """Type, first line and location of an error, in one line."""
    text = (str(error).strip() or "no message").split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def serve(pipe: Connection, handler: Callable[..., Any]) -> None:
    """Answer questions until the parent is gone or the handler breaks; then a fresh process takes over."""
    pipe.send(("ready", None))
    while True:
        try:
            question = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = handler(*question)
            pipe.send(("answer", answer))
        except Failed as failed:
            pipe.send(("failed", str(failed)))
        except Exception as error:
            pipe.send(("broken", sentence(error)))
            return


class Child:
    """Passes questions to `handler` in a child process, one after another, each with a time limit."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler
        self.process: SpawnProcess | None = None
        self.pipe: Connection | None = None

    def ask(self, *question: object, limit_s: float, start_s: float = START_LIMIT_S) -> Any:
        """The handler's answer; raises `Failed` if it raised, died, or took longer than `limit_s`.

        A fresh process, for the first question and after a failure, may take `start_s` to start; start and answer
        together take no longer than the larger of the two limits.
        """
        most_s, started = max(limit_s, start_s), time.monotonic()
        pipe = self.pipe or self.start(start_s)
        try:
            pipe.send(question)
            return self.receive(pipe, max(0.0, min(limit_s, most_s - (time.monotonic() - started))))
        except (BrokenPipeError, ConnectionResetError):
            raise Failed(self.stop()) from None

    def start(self, start_s: float) -> Connection:
        mine, its = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(its, self.handler), daemon=True)
        self.process.start()
        its.close()  # otherwise the child's death would not close the pipe
        self.pipe = mine
        self.receive(mine, start_s)
        return mine

    def receive(self, pipe: Connection, limit_s: float) -> Any:
        if not pipe.poll(limit_s):
            self.stop()
            raise TimedOut(f"no answer within {limit_s:.0f} s, killed")
        try:
            kind, content = pipe.recv()
        except EOFError:
            raise Failed(self.stop()) from None
        if kind == "broken":
            self.stop()
        if kind in ("broken", "failed"):
            raise Failed(content)
        return content

    def stop(self) -> str:
        """End the process, if there is one; returns how it ended."""
        process, pipe = self.process, self.pipe
        self.process = self.pipe = None
        if process is None or pipe is None:
            return "the child process is gone"
        pipe.close()
        process.join(ASKED_S)
        process.kill()
        process.join(KILLED_S)
        return f"the child process ended with exit code {process.exitcode}"


def json_of(*command: str, limit_s: float, **environment: str) -> Any:
    """What a module of this repository prints as JSON in a fresh process, with further environment variables.

    Raises:
        Failed: with the last line of its errors, if it failed or took longer than ``limit_s``.
    """
    whole = [sys.executable, "-m", *command]
    try:
        done = subprocess.run(
            whole, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env=os.environ | environment
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"no answer within {limit_s:.0f} s, killed") from None
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return json.loads(done.stdout)


def run_all(
    target: Callable[..., object], jobs: Sequence[tuple[str, tuple[Any, ...]]], *, workers: int, limit_s: float
) -> dict[str, str]:
    """Run `target(*arguments)` for every (name, arguments), `workers` at a time; returns failures, name -> reason."""
    deadline = time.monotonic() + limit_s
    waiting, running, failures = list(jobs), dict[int, tuple[str, SpawnProcess]](), dict[str, str]()
    while (waiting or running) and time.monotonic() < deadline:
        while waiting and len(running) < workers:
            name, arguments = waiting.pop(0)
            process = SPAWN.Process(target=target, args=arguments, daemon=True)
            process.start()
            running[process.sentinel] = name, process
        for sentinel in wait(list(running), timeout=max(0.0, deadline - time.monotonic())):
            assert isinstance(sentinel, int)
            name, process = running.pop(sentinel)
            process.join()
            if process.exitcode != 0:
                failures[name] = f"exit code {process.exitcode}"
    for _, process in running.values():
        process.kill()
    wait(list(running), timeout=KILLED_S)
    for name, _ in running.values():
        failures[name] = f"not done after {limit_s:.0f} s, killed"
    return failures | {name: "not started, no time left" for name, _ in waiting}
