"""Imports run one way: which modules of the package, of bench and of the tests may import which others."""

import ast
from pathlib import Path

import pytest
from processes import ROOT

pytestmark = pytest.mark.quick

PACKAGE = ROOT / "tritongru"
SUPPORT = ROOT / "tests" / "support"
MOST_FILES = 12  # of Python, beside each other in a folder

# What the launches of each kernel family stand on.
KERNELS = {
    *(
        "arguments.records",
        "kernels.ragged",
        "kernels.chunks",
        "kernels.gates",
        "kernels.rounding",
        "kernels.launching",
        "kernels.batch_tile",
        "planning.launches",
    ),
}
PASSES = {
    *("llvm.language", "llvm.passes.tiles", "llvm.passes.packing", "llvm.passes.gate_math", "llvm.passes.call"),
    *("llvm.passes.phases", "llvm.passes.segments", "planning.cpu_plan"),
}
# Module -> modules of ours that it may import when it is imported, and those it may open later. A folder counts as one
# where it has no line of its own for a file.
DOORS = {
    "planning.devices": ({"planning.instruction_sets"}, set()),
    "planning.cost_model": ({"planning.devices"}, set()),
    "planning.triton_versions": (set(), set()),
    "planning.launches": ({"planning.triton_versions"}, set()),
    "planning.memory": (set(), set()),
    "planning.instruction_sets": (set(), set()),
    "planning.cpu_plan": ({"planning.instruction_sets", "planning.memory"}, set()),
    "planning.candidates": ({"planning.cost_model", "planning.devices", "planning.launches"}, set()),
    "planning.plan_text": (
        {"planning.instruction_sets", "planning.launches"},
        {"planning.cost_model", "planning.cpu_plan", "planning.plan"},
    ),
    "planning.plan": (
        {
            *("planning.candidates", "planning.cost_model", "planning.devices", "planning.launches"),
            *("planning.cpu_plan", "planning.instruction_sets", "planning.memory", "planning.plan_text"),
        },
        set(),
    ),
    "planning.explaining": ({"planning.devices", "planning.launches", "planning.plan"}, set()),
    "planning": (set(), set()),
    "plan": ({"planning"}, set()),
    "reference": (set(), set()),
    "arguments.records": (set(), set()),
    "arguments.options": (set(), set()),
    "arguments.checks": ({"arguments.options", "arguments.records"}, set()),
    "arguments.ragged": ({"arguments.checks", "arguments.options", "arguments.records"}, set()),
    "arguments": (set(), set()),
    "kernels.gates": (set(), set()),
    "kernels.batch_tile": (set(), set()),
    "kernels.chunks": ({"kernels.rounding"}, set()),
    "kernels.rounding": (set(), set()),
    "kernels.interpreter_threads": (set(), set()),
    "kernels.launching": ({"arguments.records", "kernels.batch_tile"}, set()),
    "kernels.ragged": (set(), set()),
    "kernels.single_step": (KERNELS | {"kernels.single_step", "planning"}, set()),
    "kernels.rebuild": ({"kernels.gates", "kernels.launching"}, set()),
    "kernels.resident": (KERNELS | {"kernels.resident"}, set()),
    "kernels.stepwise": (KERNELS | {"kernels.stepwise"}, set()),
    "kernels.persistent.exchange": (set(), set()),
    "kernels.persistent.slices": ({"kernels.persistent.exchange", "kernels.rounding"}, set()),
    "kernels.persistent.watchdog": ({"kernels.persistent.exchange"}, set()),
    "kernels.persistent.cooperative": (
        {"kernels.interpreter_threads", "kernels.launching", "kernels.persistent.watchdog"},
        set(),
    ),
    "kernels.persistent": (KERNELS | {"kernels.persistent"}, set()),
    "kernels": (set(), set()),
    "llvm.forks": (set(), set()),
    "llvm.language": ({"planning.instruction_sets"}, set()),
    "llvm.cache": (set(), set()),
    "llvm.pages": (set(), set()),
    "llvm.threads": ({"llvm.forks"}, set()),
    "llvm.passes.tiles": ({"llvm.language", "planning.cpu_plan"}, set()),
    "llvm.passes.packing": ({"llvm.language"}, set()),
    "llvm.passes.gate_math": ({"llvm.language"}, set()),
    "llvm.passes.call": ({"llvm.language", "planning.cpu_plan"}, set()),
    "llvm.passes.phases": ({"llvm.language", "llvm.passes.call"}, set()),
    "llvm.passes.segments": ({"llvm.language", "llvm.passes.call", "llvm.passes.packing"}, set()),
    "llvm.passes.forward_pass": (PASSES, set()),
    "llvm.passes.step_pass": (PASSES, set()),
    "llvm.passes.backward_pass": (PASSES | {"llvm.passes.forward_pass"}, set()),
    "llvm.compiling": ({"llvm.cache", "llvm.language", "llvm.passes", "planning.instruction_sets"}, set()),
    "llvm.filling": ({"llvm.forks"}, set()),
    "llvm.working_memory": (set(), set()),
    "llvm.segments": ({"llvm.compiling", "llvm.passes.segments", "llvm.working_memory"}, set()),
    "llvm.launch": (
        {
            *("arguments.records", "llvm.compiling", "llvm.pages", "llvm.passes.call", "llvm.segments"),
            *("llvm.filling", "llvm.threads", "llvm.working_memory", "planning"),
        },
        set(),
    ),
    "llvm": (set(), set()),
    "layer": ({"arguments.records", "planning"}, {"kernels", "llvm.launch"}),
    "route": ({"planning"}, set()),
    "interop.ragged_torch": ({"arguments"}, set()),
    "interop.torch_path": ({"arguments", "interop.ragged_torch"}, set()),
    "interop.torch_layer": ({"arguments.records", "interop.ragged_torch"}, set()),
    "interop.exporters": ({"arguments"}, set()),
    "interop.adoption": (set(), set()),
    "interop.registries": (set(), set()),
    "interop.compiler_ops": (
        {"arguments", "interop.exporters", "interop.torch_layer", "layer", "ops", "planning", "route"},
        set(),
    ),
    "interop.shortcuts": (set(), set()),
    "interop.inference_ops": ({"arguments", "interop.shortcuts", "planning", "route"}, {"llvm.launch"}),
    "interop.step_ops": (
        {"arguments", "interop.inference_ops", "interop.shortcuts", "planning"},
        {"kernels.single_step.launch", "llvm.launch"},
    ),
    "interop.stepping": (
        {"arguments", "interop.exporters", "interop.inference_ops", "interop.step_ops", "route"},
        {"module"},
    ),
    "interop": (set(), set()),
    "cell": (
        {
            *("arguments", "interop.adoption", "interop.exporters", "interop.inference_ops", "interop.step_ops"),
            *("interop.stepping", "planning"),
        },
        set(),
    ),
    "ops": ({"arguments", "interop.exporters", "interop.torch_layer", "layer", "planning"}, set()),
    "functional": (
        {
            *(
                "arguments",
                "interop.compiler_ops",
                "interop.exporters",
                "ops",
                "planning",
                "route",
                "interop.torch_path",
            ),
        },
        set(),
    ),
    "warmup": ({"arguments", "layer", "planning", "route"}, {"kernels", "llvm.compiling", "llvm.launch"}),
    "module": (
        {
            *(
                "arguments",
                "functional",
                "interop.adoption",
                "interop.exporters",
                "planning",
                "interop.stepping",
                "interop.torch_path",
                "warmup",
            ),
            "interop.inference_ops",
        },
        set(),
    ),
    "conversion.report": (set(), set()),
    "conversion.tree": (set(), set()),
    "conversion.asking": ({"conversion.tree"}, set()),
    "conversion.finding": (
        {*("cell", "conversion.asking", "conversion.report", "conversion.tree", "interop.adoption", "module")},
        set(),
    ),
    "conversion.converting": ({"arguments", "conversion.finding", "conversion.report"}, set()),
    "conversion.patching": (
        {
            *("arguments", "cell", "conversion.converting", "conversion.finding", "conversion.report", "module"),
            "interop.adoption",
        },
        set(),
    ),
    "conversion": (set(), set()),
    "synchronization": (set(), set()),
    "weights.direction": ({"arguments"}, set()),
    "weights.columns": ({"weights.direction"}, set()),
    "weights.flax": ({"weights.columns", "weights.direction"}, set()),
    "weights.haste": ({"weights.columns", "weights.direction"}, set()),
    "weights.keras": ({"arguments", "weights.columns", "weights.direction"}, set()),
    "weights.onnx": ({"weights.direction"}, set()),
    "weights": ({"weights.flax", "weights.haste", "weights.keras", "weights.onnx"}, set()),
    "__init__": (
        {
            *("cell", "conversion", "functional", "interop.registries", "llvm.forks", "module", "planning"),
            "synchronization",
        },
        {"weights"},
    ),
    "commands.forecast": (set(), set()),
    "commands.training": (set(), set()),
    "commands.picture": ({"commands.forecast"}, set()),
    "commands.demo": (
        {"", "commands.env", "commands.forecast", "commands.picture", "commands.training", "planning"},
        set(),
    ),
    "commands.env": ({"planning"}, set()),
    "commands.explain": ({"commands.demo", "planning"}, set()),
    "commands.inspect": (
        {
            *("commands.demo", "commands.explain", "conversion", "interop.inference_ops", "interop.stepping"),
            "planning",
        },
        set(),
    ),
    "commands": (set(), set()),
    "__main__": ({"", "commands"}, set()),
}

# From the ground up: a folder, or a file beside them, imports from those before it and from itself.
BENCH = [
    *(
        "arguments",
        "measure",
        "rivals",
        "calls",
        "analysis",
        "study",
        "compile",
        "suites",
        "session",
        "sequences",
        "models",
        "pages",
    ),
    *("commands", "test_speed", "__main__"),
]


def module_of(name: str, top: str) -> str:
    """The longest part of a dotted name that is a module or a folder of ``top``; the rest is a name in it."""
    parts = name.split(".")
    while len(parts) > 1:
        path = ROOT.joinpath(*parts)
        if path.with_suffix(".py").exists() or path.is_dir():
            break
        parts.pop()
    return ".".join(parts[1:]) if parts[0] == top else name


def imports(path: Path, top: str) -> tuple[set[str], set[str]]:
    """Modules of ``top`` that a file imports: when it is imported itself, and later."""
    tree = ast.parse(path.read_text())
    outer = {id(node) for node in tree.body}
    at_once: set[str] = set()
    later: set[str] = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports from {'.' * node.level}{node.module}: say whose"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == top:
                (at_once if id(node) in outer else later).add(module_of(name, top))
    return at_once, later


def room_of(path: Path) -> str:
    """The most particular line for a file."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    while parts and ".".join(parts) not in DOORS:
        parts.pop()
    return ".".join(parts)


def inside(module: str, rooms: set[str]) -> bool:
    """Whether a module is one of the rooms, or in one."""
    return module in rooms or any(room and module.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_of_the_package_run_one_way(path):
    room = room_of(path)
    assert room, f"{path} is new: say in DOORS what it may import"
    at_once, later = imports(path, "tritongru")
    allowed, allowed_later = DOORS[room]
    assert not {name for name in at_once if not inside(name, allowed)}, room
    assert not {name for name in later if not inside(name, allowed | allowed_later)}, room


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_triton_is_imported_by_kernels_alone(path):
    at_once, later = imports(path, "triton")
    assert not (at_once | later) or room_of(path).startswith("kernels")


FACTORIES = {"arange", "as_tensor", "empty", "full", "ones", "rand", "randn", "scalar_tensor", "tensor", "zeros"}


@pytest.mark.parametrize(
    "path",
    sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "commands" and path.stem != "reference"),
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_new_memory_is_on_a_device_that_is_named(path):
    """Else it would be where torch.set_default_device says, and native code would read an address of elsewhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            assert not of_torch or "device" in {given.arg for given in node.keywords}, node.lineno


def test_imports_make_no_circle():
    """Whatever a module imports at once, however far away, never leads back to it."""
    opens = {room: {one for one in DOORS if inside(one, allowed)} for room, (allowed, _) in DOORS.items()}
    seen = {room: set(opens[room]) for room in DOORS}
    for _ in DOORS:
        seen = {room: found.union(*(opens[one] for one in found)) for room, found in seen.items()}
    families = ("resident", "stepwise", "persistent", "single_step")  # each a folder of several files
    families = [f"kernels.{name}" for name in families]
    assert [room for room in DOORS if room in seen[room] and room not in families] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "bench"))
)
def test_imports_of_bench_run_one_way(path):
    room = path.relative_to(ROOT / "bench").with_suffix("").parts[0]
    if room == "__init__":
        room = "arguments"  # has nothing to import either
    assert room in BENCH, f"{path} is new: say in BENCH what it stands on"
    below = BENCH[: BENCH.index(room) + 1]
    at_once, later = imports(path, "bench")
    assert {name.split(".")[0] for name in at_once | later} <= set(below)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "tests"))
)
def test_what_tests_share_is_in_support(path):
    """A test imports from tests/support and from its own folder."""
    names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    others = {other.stem for other in (ROOT / "tests").rglob("*.py") if other.parent not in (path.parent, SUPPORT)}
    assert not names & others - {other.stem for other in SUPPORT.glob("*.py")}


@pytest.mark.parametrize("tree", ["tritongru", "bench", "tests"])
def test_folders_are_small_enough_to_be_looked_over(tree):
    counts = {folder: len(list(folder.glob("*.py"))) for folder in [ROOT / tree, *(ROOT / tree).rglob("*/")]}
    assert {str(folder): count for folder, count in counts.items() if count > MOST_FILES} == {}
