"""Importing the package costs little, touches no GPU and needs torch alone."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

from processes import ROOT, python

PACKAGE = ROOT / "tritongru"

# What is imported at once and is neither ours nor the standard library's, of which torch 2.13 has loaded all that we
# need; another torch may leave a few modules to us.
TORCH = {"torch", "torch.autograd", "torch.nn", "torch.nn.modules.module", "torch.nn.utils.rnn"}
MOST_STANDARD = 20
LATER = {"kernels", "llvm", "commands", "__main__"}  # rooms of ours for which an import does not wait
AT_ONCE = {PACKAGE / "llvm" / "__init__.py", PACKAGE / "llvm" / "forks.py"}  # except that a fork is to be noticed
MOST_ROOMS = 48  # a file each
MOST_CALLS = {"ours": 200, "all": 100_000}  # 48 and 25 thousand were counted, the latter with torch 2.13

# What `import tritongru` does, in counts: seconds are in the row `import` of `python -m bench gate`.
IMPORT = """
import importlib, json, os, sys
import torch
from torch.overrides import TorchFunctionMode

for name in sys.argv[1:]:
    importlib.import_module(name)
found = {"modules": [], "opened": [], "started": [], "operators": [], "asked": []}
calls = {"ours": 0, "all": 0}


class Operators(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        found["operators"].append(str(function))
        return function(*args, **(kwargs or {}))


def asked(name, function):
    def ask(*args, **kwargs):
        found["asked"].append(name)
        return function(*args, **kwargs)

    return ask


def hook(event, args):
    if event == "open":
        found["opened"].append(str(args[0]))
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system", "socket.connect"):
        found["started"].append(event)


def count(frame, event, argument):
    if event in ("call", "c_call"):
        calls["all"] += 1
        calls["ours"] += event == "call" and os.sep + "tritongru" + os.sep in frame.f_code.co_filename


compilers = {torch: ["compile"], torch.jit: ["script", "trace"]}
gpu = {torch.cuda: ["is_available", "device_count", "current_device", "get_device_properties", "get_device_capability"]}
for room, names in (compilers | gpu).items():
    for name in filter(room.__dict__.get, names):
        setattr(room, name, asked(name, getattr(room, name)))
loaded = set(sys.modules)
sys.addaudithook(hook)
with Operators():
    sys.setprofile(count)
    import tritongru
    sys.setprofile(None)
found = {name: list(values) for name, values in found.items()}
found["modules"] = sorted(set(sys.modules) - loaded)
own = {"tritongru", *sys.stdlib_module_names}
specs = [sys.modules[name].__spec__ for name in found["modules"] if name.partition(".")[0] in own]
own = {path for spec in filter(None, specs) for path in (spec.origin, spec.cached)}
found["opened"] = [path for path in found["opened"] if path not in own]
if torch.cuda.is_initialized():
    found["asked"].append("is_initialized")
print(json.dumps({"calls": calls, **found}))
"""


def imported(folder: Path) -> dict:
    """What the import of the package in a folder does; no byte code is written, so every file is only read."""
    done = python("-c", IMPORT, *TORCH, cwd=folder, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fresh(code: str) -> str:
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_a_few_rooms_and_nothing_else():
    found = imported(ROOT)
    calls, modules = found.pop("calls"), found.pop("modules")
    assert found == {"opened": [], "started": [], "operators": [], "asked": []}
    standard = [name for name in modules if name.partition(".")[0] in sys.stdlib_module_names]
    assert len(standard) <= MOST_STANDARD
    modules = [name for name in modules if name not in standard]
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in modules]
    files = [path if path.exists() else path.with_suffix("") / "__init__.py" for path in files]
    assert PACKAGE / "module.py" in files
    assert len(files) <= MOST_ROOMS
    for path in files:
        assert path.is_relative_to(PACKAGE), f"{path} is imported"
        assert path in AT_ONCE or not LATER & {path.stem, path.parent.stem}, f"{path} is imported"
        assert at_once(path) <= TORCH, f"{path} imports {at_once(path) - TORCH}"
    for name, most in MOST_CALLS.items():
        assert 0 < calls[name] <= most, calls


FAULTS = """
import importlib.metadata, json, numpy, os, pathlib, torch.utils.flop_counter
importlib.metadata.version("torch")
json.loads((pathlib.Path(__file__).parent / "planning" / "tables" / "resident.json").read_text())
torch.zeros(2) + 1
torch.cuda.is_available()
os.system("true")
[explain.__name__.join(map(str, range(9))) for _ in range(40_000)]
[(lambda: None)() for _ in range(200)]
"""


def test_a_slower_import_would_be_noticed(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "tritongru", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "tritongru" / "__init__.py").open("a") as file:
        file.write(FAULTS)
    found = imported(tmp_path)
    assert "torch.utils.flop_counter" in found["modules"]
    assert {Path(path).name for path in found["opened"]} >= {"METADATA", "resident.json"}
    assert len(found["operators"]) >= 2
    assert found["asked"] == ["is_available"]
    assert found["started"] == ["os.system"]
    assert all(found["calls"][name] > most for name, most in MOST_CALLS.items())
    assert at_once(tmp_path / "tritongru" / "__init__.py") - TORCH == {"numpy", "torch.utils.flop_counter"}


def at_once(path: Path) -> set[str]:
    """Modules, neither ours nor the standard library's, that a file imports when it is imported itself."""
    found, nodes = set(), list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif not isinstance(node, ast.FunctionDef) and "TYPE_CHECKING" not in ast.dump(getattr(node, "test", node)):
            nodes += ast.iter_child_nodes(node)
    return {name for name in found if name.partition(".")[0] not in {"tritongru", *sys.stdlib_module_names}}


def test_a_cpu_call_loads_no_kernel():
    fresh(
        "import sys, torch, tritongru\n"
        "tritongru.GRU(2, 3)(torch.zeros(4, 1, 2))[0].sum().backward()\n"
        "assert not any(name.startswith(('triton.', 'tritongru.kernels.')) for name in sys.modules)\n"
        "tritongru.GRU(2, 3, impl='torch')(torch.zeros(4, 1, 2))\n"
    )


def test_a_late_interpreter_is_refused():
    code = (
        "import os, torch, tritongru\n"
        "import tritongru.kernels.resident.launch\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "try: tritongru.GRU(2, 3, impl='triton')(torch.zeros(4, 1, 2))\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert fresh(code).strip() == (
        "TRITON_INTERPRET=1 was set after the kernels were loaded; set it before the first call"
    )


def test_at_most_two_environment_variables():
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert set(re.findall(r"environ\W+(?:get\W+)?([A-Z_]+)", text)) == {"TRITON_INTERPRET", "XDG_CACHE_HOME"}
    assert "getenv" not in text


def test_typed_and_versioned():
    assert (PACKAGE / "py.typed").exists()
    assert json.loads(fresh("import json, tritongru; print(json.dumps(tritongru.__version__))")).count(".") == 2
