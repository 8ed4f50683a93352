"""Python in another process, as a user has it, and how long a test waits for one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Seconds for whatever a test waits for. It ends what hangs and judges no speed: the slowest takes a minute of a free
# core, and of a machine with ten times as much to do ten. pytest's own limit (pyproject.toml) lies above it.
PATIENCE = 1200.0


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python without the switch by which the tests run kernels on a CPU, and with more of an environment."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=PATIENCE)
