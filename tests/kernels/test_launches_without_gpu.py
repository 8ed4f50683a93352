"""What the package launches on a GPU, checked without one; and that each check can fail."""

import json
import re

import pytest
from processes import python

CALLS = """
import collections, json, sys
sys.path.insert(0, "tests/support")
import torch
import stand_in
from bench.compile.machine_code import ELEMENT, POINTERS
from layers import Case, build
from torch.nn.utils.rnn import pack_padded_sequence

torch.set_num_threads(1)
machine, report, B = stand_in.install(), [], 4


def assumes(launched, argument):
    return bool(launched.compiled.src.attrs.get(([*launched.arguments].index(argument),)))


def check_table(launched, dtype):  # the tables of configurations come from kernels compiled for these types
    for name in launched.passed:
        tensor = isinstance(launched.arguments[name], torch.Tensor)
        expected = POINTERS.get(name, "*" + ELEMENT[dtype]) if tensor else "i32"
        assert launched.compiled.src.signature[name] == expected, (launched.name, name)


for name, H, dtype, options, packed, unaligned in json.loads(sys.argv[1]):
    gru, _, _ = build(Case(B=B, H=H, dtype=getattr(torch, dtype), **options), torch.device("cpu"))
    if unaligned:
        buffer = torch.zeros(gru.weight_hh_l0.numel() + 1, dtype=gru.weight_hh_l0.dtype)
        gru.weight_hh_l0.data = buffer[1:].view_as(gru.weight_hh_l0)
    before, side = stand_in.forms(), stand_in.Stream(1, 5)
    with torch.cuda.stream(side):
        warm = gru.warmup(B, 5, packed=packed)
    assert side.synchronized == 1
    assert {(launched.stream, launched.device) for launched in machine.launches} == {(5, 1)}
    in_warmup, compiled = len(machine.launches), stand_in.forms() - before
    machine.launches.clear()
    for T in (3, 1):
        x, hx = (gru.weight_hh_l0.new_zeros(shape) for shape in ((T, B, 4), (1 + gru.bidirectional, B, H)))
        if packed:
            x = pack_padded_sequence(x, [T, T, 1, 1])
        for state in (None, hx):
            gru(x, state)[1].sum().backward()
            y = gru(x, state)[0]
            (y.data if packed else y).sum().backward()
            with torch.no_grad():
                gru(x, state)
    assert torch.cuda.current_device() == 0
    for launched in machine.launches:
        check_table(launched, dtype)
    assert {(launched.stream, launched.device) for launched in machine.launches} == {(101, 1)}
    report.append({
        "name": name,
        "warm": [len(warm.kernels), in_warmup, compiled],
        "later": stand_in.forms() - before - compiled,
        "launches": collections.Counter(launched.name.removesuffix("_kernel") for launched in machine.launches),
        "cooperative": sorted({launched.name for launched in machine.launches if launched.cooperative}),
        "aligned": sorted({assumes(each, "w_hh") for each in machine.launches if "w_hh" in each.arguments}),
    })
    machine.launches.clear()
print(json.dumps(report))
"""

RECOMPUTE = {"memory": "recompute"}
CASES = {  # name, hidden size, dtype, options, whether packed, whether W_hh begins at an odd element
    "resident": [
        ("saved", 64, "bfloat16", {}, False, False),
        ("packed, W_hh anywhere", 64, "bfloat16", RECOMPUTE, True, True),
    ],
    "persistent": [
        ("rebuilt", 256, "bfloat16", RECOMPUTE, False, False),
        ("packed, both directions", 256, "bfloat16", RECOMPUTE | {"bidirectional": True}, True, False),
    ],
    "stepwise": [("saved", 1040, "float32", {}, False, False), ("packed", 1040, "float32", RECOMPUTE, True, False)],
}


def ran(program, *arguments):
    done = python("-c", program, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", CASES)
@pytest.mark.every(3)
def test_calls_and_warm_up(family):
    """Every launch is checked before it counts."""
    found = ran(CALLS, json.dumps(CASES[family]))
    for row, (name, _, _, options, _, unaligned) in zip(found, CASES[family], strict=True):
        directions = 1 + options.get("bidirectional", False)
        # Forwards without and with hx, and with hx and gates; backwards of y or h_n alone, without and with hx.
        kernels = 2 + 4 + 1 if "memory" in options else 4 + 4
        last = 4 if family == "stepwise" else 0  # a backward ends with a product alone
        assert row["name"] == name
        assert row["warm"] == [kernels, kernels + last, kernels], row
        assert row["later"] == 0, "a call compiled"
        forward, backward = 12, 8  # calls of two lengths: without and with hx, two that learn and one that does not
        if family == "stepwise":
            forward, backward = 6 * (3 + 1), 4 * (3 + 1 + 1 + 1)
        expected = {f"{family}_forward": forward, f"{family}_backward": backward}
        assert row["launches"] == expected | ({"rebuild": 8 * directions} if "memory" in options else {})
        waiting = ["persistent_backward_kernel", "persistent_forward_kernel"]
        assert row["cooperative"] == (waiting if family == "persistent" else [])
        assert row["aligned"] == [not unaligned]


FAILURES = """
import contextlib, copy, dataclasses, json, sys, types
sys.path.insert(0, "tests/support")
import torch
import stand_in
from layers import Case, build
from bench.measure.exchange_floor import floor
from tritongru.kernels.persistent import launch as persistent
from tritongru.kernels.resident import launch as resident
from tritongru.kernels.launching import on_device_of
from tritongru.kernels.persistent.cooperative import launch_cooperative
from tritongru.planning.plan import plan_on

torch.set_num_threads(1)
found = {}


@contextlib.contextmanager
def caught(name, kind=AssertionError):
    try:
        yield
    except kind as error:
        found[name] = str(error)


def again(launched, grid=None, count=None, stream=None, **changed):
    with torch.cuda.device(1):
        arguments = [*(launched.arguments | changed).values()][:count]
        launched.compiled[grid or launched.grid](*arguments, stream=stream)


def altered(launched, ptx=None, **changed):
    compiled = copy.copy(launched.compiled)
    compiled.asm = compiled.asm | {"ptx": ptx or compiled.asm["ptx"]}
    compiled.src = types.SimpleNamespace(**vars(compiled.src) | changed)
    with torch.cuda.device(1):
        machine.check(dataclasses.replace(launched, compiled=compiled))


def execute(launched):
    if "hn" in launched.arguments:
        launched.arguments["hn"].fill_(7)


machine = stand_in.install(execute)
small, x, hx = build(Case(B=4, H=64, dtype=torch.bfloat16, memory="recompute"), torch.device("cpu"))
large, *_ = build(Case(B=4, H=256, dtype=torch.bfloat16, memory="recompute"), torch.device("cpu"))
with torch.no_grad():
    assert (small(x, hx)[1] == 7).all(), "what an executor writes is what a call returns"
    large(x)
    alone, meeting = machine.launches
    again(alone), again(meeting)
    large(x.new_zeros(1, 3072, 4))  # a batch that fills the chip
full = machine.launches[-1]
assert full.grid[0] * full.grid[1] > machine.gpu.multiprocessors, full.grid
launch = plan_on(machine.gpu, 256, torch.bfloat16, batch=4, impl="triton").forward.launch
floor(torch.zeros(0, dtype=torch.bfloat16), 3, 1, 1, 256, launch)
assert machine.launches[-1].name == "floor_kernel" and machine.launches[-1].cooperative

size = alone.arguments["gx"].numel()
emptied = torch.zeros(size, dtype=torch.bfloat16)
emptied.untyped_storage().resize_(0)
for name, changed in {
    "fewer arguments": {"count": -1},
    "wide": {"T": 1 << 31},
    "none": {"gx": None},
    "dtype": {"gx": alone.arguments["gx"].float()},
    "constant": {"H": 65},
    "pointer as constant": {"offsets": alone.arguments["y"]},
    "misaligned": {"gx": torch.zeros(size + 1, dtype=torch.bfloat16)[1:]},
    "without memory": {"gx": emptied},
    "strides": {"gx": torch.zeros(2 * size, dtype=torch.bfloat16)[::2]},
    "empty grid": {"grid": (0, 1, 1)},
    "stream": {"stream": 5},
}.items():
    with caught(name):
        again(alone, **changed)
with caught("parameters"):
    altered(alone, alone.compiled.asm["ptx"].replace(".param .u32", ".reg .u32", 1))
with caught("specialised"):
    place = [*alone.arguments].index("T")
    altered(alone, attrs=alone.compiled.src.attrs | {(place,): [["tt.divisibility", 16]]})
room = machine.gpu.multiprocessors * stand_in.at_once(full.compiled, machine.gpu)
again(full, grid=(room, 1, 1))
with caught("large grid"):
    again(full, grid=(room + 1, 1, 1))

resident.on_device_of = lambda y: contextlib.nullcontext()
with caught("device"), torch.no_grad():
    small(x, hx)
resident.on_device_of = on_device_of


def forgets(kernel, grid, like, *args, **kwargs):
    with on_device_of(like):
        kernel[grid](*args, meeting.arguments["report"], **kwargs)


persistent.launch_cooperative = forgets
with caught("not cooperative"), torch.no_grad():
    large(x)
persistent.launch_cooperative = launch_cooperative
with caught("cooperative"), torch.cuda.device(1):
    machine.check(dataclasses.replace(alone, cooperative=True))

machine.execute = lambda launched: launched.arguments["report"].fill_(1)
with caught("report", RuntimeError), torch.no_grad():
    large(x)
    large(x)
print(json.dumps([room, found]))
"""


def test_each_check_can_fail():
    room, found = ran(FAILURES)
    of, waiting = "of resident_forward_kernel", "persistent_forward_kernel"
    name = of.removeprefix("of ")
    expected = {
        "fewer arguments": rf"{name} has (\d+) arguments, and a launch gave (\d+)",
        "wide": rf"T {of} is 2147483648 \(i64\), and was compiled as i32",
        "none": rf"gx {of} is None \(constexpr\), and was compiled as \*bf16",
        "dtype": rf"gx {of} is a tensor \(20, 192\) \(\*fp32\), and was compiled as \*bf16",
        "constant": f"H {of} is 65, and was compiled in as 64",
        "pointer as constant": rf"offsets {of} is a tensor \(20, 1, 64\), and was compiled in as None",
        "misaligned": rf"gx {of} was compiled as divisible by 16, and 0x\w+2 leaves 2",
        "without memory": f"gx {of} takes 7680 bytes from byte 0 of 0",
        "strides": rf"gx {of} has shape \(3840,\) and strides \(2,\)",
        "empty grid": rf"{name} has a grid of \(0, 1, 1\), and each size should be in 1\.\.\(2147483647, .*\)",
        "stream": f"{name} ran in stream 5, and the current one is 101",
        "parameters": rf"{name} takes (\d+) parameters \(.*\), the last 2 for scratch memory, and gets (\d+) \(.*\)",
        "specialised": f"T {of} is specialised, which the kernel forbids",
        "large grid": f"{waiting} has {room + 1} programs, and H200 runs {room} at once",
        "device": f"{name} ran on cuda:0, and its tensors are on cuda:1",
        "not cooperative": f"{waiting}, whose programs wait for each other, is launched with "
        "launch_cooperative_grid=False",
        "cooperative": f"{name}, whose programs do not wait for each other, is launched with "
        "launch_cooperative_grid=True",
        "report": "a persistent GRU kernel gave up at its time step 0: .*",
    }
    assert found.keys() == expected.keys()
    matches = {what: re.fullmatch(text, found[what]) for what, text in expected.items()}
    assert all(matches.values()), {what: found[what] for what, match in matches.items() if match is None}
    for what in ("fewer arguments", "parameters"):
        needed, given = map(int, matches[what].groups())
        assert needed == given + 1


GPU_ALONE = """
import collections, json, math, sys
sys.path[:0] = ["tests/support", "tests/gpu"]
import torch
import stand_in
import test_gpu_persistent as gpu
from bench.commands import smoke
from bench.measure.pair import quantities, random
from tritongru.planning.devices import GPUS

OUTPUTS = {"forward": ("y", "hn", "gates"), "backward": ("dgx", "da", "dh")}


def pretend(launched):
    # zeros are written, or what is left where programs waited in vain
    arguments = launched.arguments
    behind = "counters" in arguments and int(arguments["counters"].flatten()[0]) < 0
    for name in OUTPUTS["backward" if "backward" in launched.name else "forward"]:
        if arguments.get(name) is not None:
            arguments[name].fill_(math.nan if behind else 0)
    if behind:
        assert arguments["limit"] == 1000
        arguments["report"].fill_(1)


torch.set_num_threads(1)
machine, H200, cpu, report = stand_in.install(pretend), GPUS["h200"], torch.device("cpu"), {}
torch.cuda.synchronize = lambda *which: None
gpu.device_facts = smoke.device_facts = lambda where: H200
gpu.assert_close_to_float64 = lambda *values: None  # nothing has run
every = gpu.persistent_options


def some(*asked):
    # the first of each exchange
    return list({option[1].exchange: option for option in reversed(every(*asked))}.values())


gpu.persistent_options = some


def counted(name, function, *arguments):
    machine.launches.clear()
    found = function(*arguments)
    report[name] = collections.Counter(launched.name.removesuffix("_kernel") for launched in machine.launches)
    return found


counted("configurations", gpu.test_every_configuration, 5, 256, torch.bfloat16, cpu)
counted("configurations backward", gpu.test_every_configuration_of_the_backward, 5, 256, torch.bfloat16, cpu)
for exchange in ("counter", "data"):
    for how in ("next launch", "synchronize"):
        counted(f"{exchange}, {how}", gpu.test_a_wait_in_vain_is_reported_and_survived, exchange, how, cpu)


def launched_by(step):
    # what bench.commands.smoke.one_launch runs, without the comparison
    launches = smoke.forms(step.case, H200, *step.run.args)
    layer = smoke.forced(launches, step.case, "", cpu).ours
    quantities(layer, step.case.mode, random(step.case, cpu))


steps = [step for step in smoke.steps_on("cuda") if "bf16" in step.name and "large" not in step.name]
for step in steps:
    if not step.needs_gpu and step.run is not smoke.in_vain:
        counted(step.name, launched_by, step)
    elif step.run is smoke.in_vain:
        report["stalled"] = counted(step.name, step.run, step.case).fault
print(json.dumps(report))
"""


@pytest.mark.slow
def test_what_the_smoke_run_and_the_gpu_tests_launch_themselves():
    """By their own calls of launchers; that nothing was computed is not looked at."""
    found = ran(GPU_ALONE)
    assert found.pop("stalled") != "a stalled wait was not reported"
    assert found["configurations"] == {"persistent_forward": 4}  # of two forms, with gates and without
    assert found["configurations backward"] == {"persistent_backward": 2}
    for exchange in ("counter", "data"):
        for how in ("next launch", "synchronize"):
            assert found[f"{exchange}, {how}"] == {"persistent_forward": 2}  # the one between is refused
    assert found["resident bf16"] == {"resident_forward": 1, "resident_backward": 1}
    for exchange in ("counter", "data"):
        of = found[f"persistent by {exchange}, small, bf16"]
        assert of == {"persistent_forward": 1, "persistent_backward": 1}
    assert found["stepwise bf16"].keys() == {"stepwise_forward", "stepwise_backward"}
    assert found["a stalled wait bf16"] == {"persistent_forward": 2, "persistent_backward": 1}
