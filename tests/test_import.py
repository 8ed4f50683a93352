"""Importing the package costs little, touches no GPU and needs torch alone; rooms open one way."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tritongru"

FORBIDDEN = """
import sys, time
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("triton", "numpy", "rich", "matplotlib", "pmdarima") and loaded_torch:
            raise AssertionError(f"import tritongru imported {name}")
loaded_torch = False
sys.meta_path.insert(0, Forbidden())
import torch
loaded_torch = True
start = time.perf_counter()
import tritongru
seconds = time.perf_counter() - start
assert not torch.cuda.is_initialized()
print(seconds)
"""


def fresh(code: str, **env: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | env
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_forbids_triton_and_is_quick(tmp_path):
    """The quickest of several, because only what the import itself needs is asked for, not what else runs here."""
    cache = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    seconds = [float(fresh(FORBIDDEN, **cache)) for _ in range(6)][1:]  # the first compiles to byte code
    assert min(seconds) < 0.05, seconds


def test_a_cpu_call_loads_no_kernel():
    fresh(
        "import sys, torch, tritongru\n"
        "tritongru.GRU(2, 3)(torch.zeros(4, 1, 2))[0].sum().backward()\n"
        "assert not any(name.startswith(('triton.', 'tritongru.kernels.')) for name in sys.modules)\n"
    )


def test_a_late_interpreter_is_refused():
    code = (
        "import os, torch, tritongru\n"
        "import tritongru.kernels.resident\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "try: tritongru.GRU(2, 3, impl='triton')(torch.zeros(4, 1, 2))\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert fresh(code).strip() == (
        "TRITON_INTERPRET=1 was set after the kernels were loaded; set it before the first call"
    )


# room -> rooms of ours that it may import when it is imported, and those it may open later
DOORS = {
    "devices": (set(), set()),
    "model": ({"devices"}, set()),
    "launches": (set(), set()),
    "memory": (set(), set()),
    "candidates": ({"devices", "launches", "model"}, set()),
    "plan": ({"candidates", "devices", "launches", "memory", "model"}, set()),
    "reference": (set(), set()),
    "layer": ({"launches", "memory"}, {"kernels"}),
    "ops": ({"launches", "layer", "plan"}, set()),
    "options": (set(), set()),
    "route": ({"devices", "plan"}, set()),
    "torch_path": ({"options"}, set()),
    "functional": ({"memory", "ops", "options", "route", "torch_path"}, set()),
    "warmup": ({"devices", "layer", "memory", "options", "plan", "route"}, {"kernels"}),
    "module": ({"functional", "memory", "options", "torch_path", "warmup"}, set()),
    "explaining": ({"devices", "plan"}, set()),
    "env": ({"devices", "plan"}, set()),
    "demo": ({"module", "plan", ""}, {"module", "plan", ""}),
    "__main__": ({"demo", "devices", "env", "memory", "plan", ""}, set()),
    "__init__": ({"explaining", "functional", "module", "plan"}, set()),
    "kernels": ({"launches", "kernels"}, set()),
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    at_once, later = set(), set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [
                f"{node.module}.{alias.name}" if node.module == "tritongru" else node.module for alias in node.names
            ]
        for name in names:
            if name.split(".")[0] == "tritongru":
                room = ([*name.split("."), ""])[1]
                rooms = room if (PACKAGE / f"{room}.py").exists() or (PACKAGE / room).is_dir() else ""
                (at_once if id(node) in top else later).add(rooms)
            if name.split(".")[0] == "triton":
                assert path.parent.name == "kernels", f"{path.name} imports {name}"
    return at_once, later


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_doors_open_one_way(path):
    room = "kernels" if path.parent.name == "kernels" else path.stem
    assert room in DOORS, f"{path} is a new room: say in DOORS which others it may open"
    at_once, later = imports(path)
    allowed, allowed_later = DOORS[room]
    assert at_once <= allowed, f"{room} imports {at_once - allowed}"
    assert later <= allowed | allowed_later, f"{room} opens {later - allowed - allowed_later}"


def test_at_most_two_environment_variables():
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert set(re.findall(r"environ\W+(?:get\W+)?([A-Z_]+)", text)) == {"TRITON_INTERPRET"}
    assert "getenv" not in text


def test_typed_and_versioned():
    assert (PACKAGE / "py.typed").exists()
    assert json.loads(fresh("import json, tritongru; print(json.dumps(tritongru.__version__))")).count(".") == 2
