"""The floor of the exchange: every word of every program arrives, and nothing but the exchange is compiled."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from processes import python

from bench.measure import exchange_floor as room
from bench.measure.exchange_floor import floor
from tritongru.kernels.persistent import launch as persistent
from tritongru.planning.launches import PersistentLaunch

STEPS, H = 5, 64
BASE = PersistentLaunch("forward", 16, H, (32,), 16, 16, 8, 2, True, "counter", 2, 0, "tf32")
BACK = dataclasses.replace(BASE, kernel="backward", chunks=(64, 32), pad=False)
LAUNCHES = {
    "counter": BASE,
    "data": dataclasses.replace(BASE, exchange="data", slots=4),  # a ring that is used more than once
    "two chunks": dataclasses.replace(BASE, units=96, chunks=(32, 16)),
    "fp32": dataclasses.replace(BASE, bits=32, block_h=8),
    "four row blocks": dataclasses.replace(BASE, block_b=64, k_split=1, chunks=(32, 32)),
    "in turn": dataclasses.replace(BASE, exchange="data", slots=4, groups=1),
    "backward": BACK,
    "backward data": dataclasses.replace(BACK, exchange="data", slots=4),
    "backward fp32": dataclasses.replace(BACK, bits=32, block_h=8),
    "backward wide": dataclasses.replace(BACK, units=96, chunks=(128, 16), block_b=32, block_h=32),
}

OFTEN = ("data", "in turn", "fp32", "backward", "backward data")


def last_tile(launch, programs):
    """The words (rows, words of a row) published last, computed unit by unit."""
    each = 32 // launch.bits
    own, rows = launch.block_h // each, launch.block_b
    width, blocks = launch.units // each, 3 if launch.kernel == "backward" else 1
    tile = [[0] * (blocks * width) for _ in range(rows)]

    def publish(value):
        """value(word of a program's block, program + number of the block) into every block."""
        for block in range(blocks):
            for program in range(programs):
                for word in range(rows * own):
                    column = block * width + program * own + word % own
                    tile[word // own][column] = value(word, program + block)

    publish(lambda word, number: word + number)
    held = launch.k_split * rows // 16 * 32
    spread = max(1, rows * own // held)
    for step in range(STEPS):
        folded = [0] * held
        first = 0
        for chunk in (width // each for width in launch.chunks):
            for k in range(launch.k_split * chunk):
                for row in range(rows):
                    thread = ((k // chunk * (rows // 16) + row // 16) * 8 + row % 8) * 4 + k % chunk % 8 // 2
                    folded[thread] ^= tile[row][first + k]
            first += launch.k_split * chunk
        publish(lambda word, number, b=folded, s=step: ((b[word // spread] + word + number) * 5 + s) % 2**31)
    found = torch.tensor(tile, dtype=torch.int32).view(rows, blocks, width)
    return found[..., : programs * own].transpose(0, 1)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in OFTEN else pytest.mark.rare) for name in LAUNCHES],
)
def test_what_is_published_depends_on_all_that_was_collected(name):
    launch = LAUNCHES[name]
    tiles = 2 if name == "in turn" else 1
    programs = launch.programs(H)
    assert programs == {"fp32": 8, "backward fp32": 8, "backward wide": 2}.get(name, 4)
    like = torch.empty(0, dtype=torch.float32 if launch.bits == 32 else torch.bfloat16)
    found = floor(like, STEPS, tiles, 1, H, launch)
    assert found.shape[:2] == (1, tiles)
    for tile in found[0]:
        assert torch.equal(tile, last_tile(launch, programs))


def altered(before, after, tmp_path):
    """The module with one piece of its text changed."""
    text = Path(room.__file__).read_text()
    assert text.count(before) == 1
    path = tmp_path / "altered_floor.py"
    path.write_text(text.replace(before, after))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["backward", "backward data"])
def test_a_block_that_is_not_published_is_found(name, tmp_path):
    """The second block goes where the first one lies."""
    launch, like = LAUNCHES[name], torch.empty(0, dtype=torch.bfloat16)
    changed = altered("p_new + g * GATE + o_word", "p_new + g // 2 * 2 * GATE + o_word", tmp_path)
    if launch.exchange == "data":  # its words are waited for
        changed.LIMIT = 5
        with pytest.raises(RuntimeError, match="gave up at its time step"):
            changed.floor(like, STEPS, 1, 1, H, launch)
    else:
        assert not torch.equal(changed.floor(like, STEPS, 1, 1, H, launch)[0, 0], last_tile(launch, 4))


def test_programs_that_wait_in_vain_say_where(monkeypatch):
    def without_arrivals(*arguments):
        counters, slots, state = persistent.workspace(*arguments)
        return counters - 1000, slots, state

    monkeypatch.setattr("bench.measure.exchange_floor.workspace", without_arrivals)
    monkeypatch.setattr("bench.measure.exchange_floor.LIMIT", 5)
    like = torch.empty(0, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="gave up at its time step 0: "):  # the first, though it never gets better
        floor(like, STEPS, 1, 1, H, BASE)
    monkeypatch.undo()
    assert torch.equal(floor(like, STEPS, 1, 1, H, BASE)[0, 0], last_tile(BASE, 4))  # the report does not linger


COMPILE = """
import dataclasses, json
from bench.measure.exchange_floor import blocks, floor_kernel
from bench.compile.machine_code import compile_for
from bench.compile.persistent import candidates, dtype_of
found = []
for kernel, kind, units, name in (
    ("forward", "16-bit", 1024, "16x8-8w-counter"), ("forward", "16-bit", 1024, "16x8-8w-data"),
    ("forward", "tf32", 512, "16x16-8w-counter"), ("forward", "16-bit", 512, "64x16-4w-counter"),
    ("backward", "16-bit", 1024, "16x16-16w-counter"), ("backward", "16-bit", 512, "16x16-8w-data"),
    ("backward", "tf32", 512, "32x16-16w-counter"),
):
    launch = next(launch for launch in candidates(kernel, kind, units) if launch.name == name)
    facts = compile_for(floor_kernel, blocks(launch), dtype_of(kind), launch.num_warps, "sm_90")
    found.append({"name": name, "launch": dataclasses.asdict(launch), "facts": dataclasses.asdict(facts)})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_it_compiles_to_loads_and_little_else():
    done = python("-c", COMPILE)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == 7
    for row in found:
        launch, facts = row["launch"], row["facts"]
        blocks = 3 if launch["kernel"] == "backward" else 1
        words = blocks * launch["block_b"] * launch["units"] * launch["bits"] // 32 // (32 * launch["num_warps"])
        assert facts["stack"] == 0, row
        assert facts["tensor_core"] == 0, row
        assert words // 4 < facts["loads"] <= words // 4 + 4, ("sixteen bytes a load, and the counter", row)
        assert facts["instructions"] < 8 * words + 100 + 50 * blocks, row
