"""The plan has an answer for every shape, keeps to what the device has, and uses every row of its tables."""

import dataclasses
import itertools
import json

import pytest
import torch
from cpu_loop import HAS_LOOP, llvmlite_of, needs_loop, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

import tritongru
from bench.compile.persistent import chosen
from bench.compile.readings import CHIPS, HOME
from bench.compile.tables import as_read_with
from tritongru.planning import candidates, cost_model, cpu_plan
from tritongru.planning import plan as planning
from tritongru.planning.candidates import kind_of, persistent_options
from tritongru.planning.devices import CPU, GPUS, KB, MOST, MOST_VALUES, RUN_ON, cpu_facts
from tritongru.planning.instruction_sets import SETS, host_sets
from tritongru.planning.launches import (
    BLOCK_B,
    Measured,
    PersistentLaunch,
    chunks_of,
    launches,
    padded,
    persistent_launches,
    stepwise_launches,
    tritons_read,
)
from tritongru.planning.plan import DTYPES, limits, plan, plan_on
from tritongru.planning.plan_text import PARTS

H200 = GPUS["h200"]
devices = st.sampled_from(sorted(GPUS))
hiddens = st.integers(1, 4096)


@given(
    hiddens,
    st.sampled_from([*DTYPES, "float64", "complex64"]),
    devices,
    st.integers(0, 10**6),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["auto", "triton"]),
)
@settings(max_examples=400, deadline=None)
def test_total_and_within_limits(hidden, dtype, gpu, batch, directions, training, impl):
    device = GPUS[gpu]
    answer = plan(hidden, dtype, device, batch=batch, directions=directions, training=training, impl=impl)
    assert answer.reason
    if answer.family == "torch":
        assert answer.forward is answer.backward is None
        return
    assert dtype in DTYPES
    assert answer.family == answer.forward.family
    assert (answer.backward is not None) == training
    for found in filter(None, (answer.forward, answer.backward)):
        check_pass(found, hidden, device, batch, directions)


def check_pass(found, hidden, device, batch, directions):
    launch = found.launch
    assert launch.shared_bytes <= device.shared_bytes
    assert device.family not in launch.spills_on
    if found.family == "resident":
        assert hidden <= sum(launch.chunks) < hidden + 64
        assert (found.programs // directions - 1) * BLOCK_B < max(batch, 1)
        return
    if found.family == "stepwise":
        assert found.programs * launch.block_h * launch.block_b >= hidden * batch * directions
        return
    assert found.family == "persistent"
    width = launch.units * (1 if launch.kernel == "forward" else 3)
    assert hidden <= launch.units
    assert width == launch.k_split * sum(launch.chunks)
    assert found.programs == launch.programs(hidden) * launch.groups * directions
    assert launch.programs(hidden) * launch.block_h >= hidden
    assert found.turns * launch.groups * launch.block_b >= batch
    registers = 32 * launch.num_warps * launch.registers
    at_once = min((device.shared_bytes + KB) // (launch.shared_bytes + KB), 65536 // registers)
    assert found.programs <= device.multiprocessors * at_once, "a program that is not resident would be waited for"


@given(
    st.integers(32, 2048),
    st.sampled_from(DTYPES),
    st.sampled_from(["h100", "h200", "a100"]),
    st.integers(1, 4096),
    st.integers(1, 2),
    st.sampled_from(["tf32", "ieee"]),
)
@settings(max_examples=200, deadline=None)
def test_a_plan_for_ragged_rows_keeps_to_the_readings_of_ragged_forms(hidden, dtype, gpu, batch, directions, precision):
    device, kind = GPUS[gpu], kind_of(dtype, precision)
    sizes = {"batch": batch, "directions": directions, "precision": precision, "impl": "triton"}
    answer = plan(hidden, dtype, device, **sizes, lengths=True)
    assert answer.passes == plan(hidden, dtype, device, **sizes, resets=True).passes
    assert answer.family != "torch", answer.reason
    for kernel, found in (("forward", answer.forward), ("backward", answer.backward)):
        check_pass(found, hidden, device, batch, directions)  # with the registers and the stack of the launch
        launch = dataclasses.replace(found.launch, groups=1) if found.family == "persistent" else found.launch
        table = {"resident": launches, "persistent": persistent_launches, "stepwise": stepwise_launches}[found.family]
        rows = [row for key, rows in table(ragged=True).items() if key[:3] == ("cuda", kernel, kind) for row in rows]
        assert launch in rows


def test_ragged_forms_run_as_many_programs_as_their_own_registers_allow():
    """Some have room for fewer tiles at a time than the form without, none for more where it takes more registers."""
    fewer = 0
    for (_, kernel, kind, units), rows in persistent_launches().items():
        for pair in zip(rows, persistent_launches(ragged=True)["cuda", kernel, kind, units], strict=True):
            options = [persistent_options(H200, kernel, kind, units, 512, 1, (row,)) for row in pair]
            if all(options) and pair[0].registers <= pair[1].registers:
                plain, ragged = (found[0][1].groups for found in options)
                assert ragged <= plain
                fewer += ragged < plain
    assert fewer > 0


@given(st.integers(1, 2000))
def test_padding_is_less_than_16_units_and_chunks_add_up(hidden):
    size = padded(hidden)
    assert size % 16 == 0
    assert size - hidden < 16 or size == 32
    assert sum(chunks_of(size)) == sum(chunks_of(size, 64)) == size
    assert chunks_of(size).count(16) <= 1
    assert max(chunks_of(size, 64)) <= 64


def form(row):
    return row.chunks, row.num_warps, row.stages


def test_every_row_is_reachable():
    """Some device picks each configuration under some Triton; one that none picks is dead weight."""
    families = {gpu.family: gpu for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.shared_bytes)}
    picked = set()
    for version in tritons_read():
        with as_read_with(version):
            shared = {row.shared_bytes for rows in launches().values() for row in rows}
            for key, like in itertools.product(launches(), families.values()):
                for limit in {*shared, like.shared_bytes} if like.backend == key[0] else ():
                    device = dataclasses.replace(like, shared_bytes=min(limit, like.shared_bytes))
                    row = candidates.smallest(device, *key[1:])
                    picked |= set() if row is None else {(*key, form(row))}
    for (backend, kernel, kind, size), rows in launches().items():
        for row in rows:
            if kernel == "forward" or launches().get((backend, "forward", kind, size)):
                assert (backend, kernel, kind, size, form(row)) in picked


def test_every_persistent_row_is_reachable():
    tables = [persistent_launches(version) for version in tritons_read()]
    for key in persistent_launches():
        picked = {row.name for table in tables for row in chosen(key[2], table[key])}
        assert picked == {row.name for row in persistent_launches()[key]}, key


def test_rows_fit_a_chip():
    for (backend, _, kind, size), rows in launches().items():
        largest = max(gpu.shared_bytes for gpu in GPUS.values() if gpu.backend == backend)
        assert all(row.shared_bytes <= largest for row in rows)
        assert all(sum(row.chunks) == size and row.block_b == BLOCK_B for row in rows)
        assert kind in ("16-bit", "tf32", "ieee")


def test_persistent_rows_are_whole():
    assert persistent_launches()
    for (backend, kernel, kind, units), rows in persistent_launches().items():
        assert backend == "cuda"
        width = units if kernel == "forward" else 3 * units
        assert kind in ("16-bit", "tf32", "ieee")
        names = [row.name for row in rows]
        assert len(set(names)) == len(names), "a name stands for one row of a size"
        for row in rows:
            assert (row.kernel, row.units) == (kernel, units)
            assert row.k_split * sum(row.chunks) == width
            assert units % row.block_h == 0, "a program would publish units beyond the slot"
            assert row.span in (8, 16)
            assert row.block_h % row.span == 0, "a program would hold units beyond its own"
            assert row.instructions > 0 < row.barriers
            assert row.tensor_core > 0 < row.registers
            assert row.slots == {"counter": 2, "data": 32}[row.exchange]


GRID = [*itertools.product((256, 384, 512, 768, 1024), (1, 8, 16, 32, 64, 128), DTYPES)]
LARGE = [*itertools.product((2048,), (1, 8, 16, 32, 64, 128), ["bfloat16"])]


# Where the model expects torch to win, because every program would have to read too much from L2: large batches.
TO_TORCH = {
    False: {(2048, 64, "bfloat16"), (2048, 128, "bfloat16")},
    True: {(2048, 64, "bfloat16"), (2048, 128, "bfloat16"), (768, 128, "float32"), (1024, 128, "float32")},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("hidden, batch, dtype", [*GRID, *LARGE])
def test_the_grid_on_an_h200(hidden, batch, dtype, training):
    """Nowhere does the plan take a launch for each step."""
    answer = plan(hidden, dtype, H200, batch=batch, time=512, training=training)
    passes = (answer.forward, answer.backward) if training else (answer.forward,)
    if answer.family == "torch":
        assert (hidden, batch, dtype) in TO_TORCH[training], answer.reason
        assert "no gain is expected" in answer.reason
        return
    assert {found.family for found in passes} == {"persistent"}
    assert answer.us_per_step == sum(found.us_per_step for found in passes)
    assert answer.us_per_step < len(passes) * answer.torch_us_per_step


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 100, 128])
def test_resident_on_an_h200(hidden, dtype):
    """A larger size may be persistent, but only where the model expects that to be faster."""
    answer = plan(hidden, dtype, H200, batch=64)
    kind = "tf32" if dtype == "float32" else "16-bit"
    for name, found in (("forward", answer.forward), ("backward", answer.backward)):
        if found.family != "resident":
            launch = candidates.smallest(H200, name, kind, hidden)
            assert found.us_per_step < candidates.resident_cost(H200, launch, 64, 1).us
            assert hidden > 64


def test_no_more_on_chip_than_the_size_needs():
    """H = 65 and H = 100 hold less on chip than H = 128 does, and cost fewer issue slots."""
    slots, shared = {}, {}
    for hidden in (65, 100, 128):
        launch = plan(hidden, "float16", H200).forward.launch
        slots[hidden] = launch.instructions * max(1, launch.num_warps / 4)
        shared[hidden] = launch.shared_bytes
    assert slots[65] < slots[100] < slots[128]
    assert shared[65] < shared[100] < shared[128]


@pytest.mark.parametrize("hidden, limit", [(200, 256), (384, 384), (700, 768), (768, 768)])
def test_sizes_that_are_no_power_of_two_do_no_doubled_work(hidden, limit):
    launch = plan(hidden, "bfloat16", H200, batch=16, training=False).forward.launch
    assert launch.units == limit
    assert launch.programs(hidden) * launch.block_h < hidden + launch.block_h


@pytest.mark.parametrize(
    "hidden, dtype, device, reason",
    [
        (128, "float64", H200, "the kernels do not support float64; convert to one of float32, float16, bfloat16"),
    ],
)
def test_reasons(hidden, dtype, device, reason):
    answer = plan(hidden, dtype, device)
    assert (answer.family, answer.reason) == ("torch", reason)


@pytest.mark.parametrize("gpu, arch", [("a100", "sm_75"), ("mi300x", "gfx1100")])
def test_a_chip_outside_the_compile_matrix_gets_torch(gpu, arch):
    device = dataclasses.replace(GPUS[gpu], arch=arch, name="Other")
    answer = plan(64, "float16", device)
    assert answer.family == "torch"
    assert answer.reason == (
        f"the kernels support NVIDIA chips from sm_80 on and AMD's gfx942 and gfx950, but Other is {arch}"
    )


def test_the_reason_names_the_size_and_the_limit():
    mi300x = GPUS["mi300x"]
    largest = {}
    for kernel in ("forward", "backward"):
        sizes = [key[3] for key, rows in launches().items() if key[:3] == ("hip", kernel, "16-bit")]
        rows = launches()
        fitting = [n for n in sizes if any(candidates.fits(r, mi300x) for r in rows["hip", kernel, "16-bit", n])]
        largest[kernel] = max(fitting)
    assert plan(1000, "bfloat16", mi300x, training=False).reason == (
        f"hidden size 1000 in bfloat16 has no forward kernel on MI300X, where the largest is {largest['forward']}"
    )
    hidden = largest["backward"] + 1
    if hidden <= largest["forward"]:
        assert plan(hidden, "bfloat16", mi300x).reason == (
            f"hidden size {hidden} in bfloat16 has no backward kernel on MI300X, where the largest is "
            f"{largest['backward']}; without gradients (torch.no_grad, eval) the forward kernels run it"
        )


@pytest.mark.parametrize("hidden, dtype", [(4096, "bfloat16"), (2048, "float32"), (3000, "float16")])
def test_what_the_chip_cannot_hold_is_stepwise_and_auto_gives_it_to_torch(hidden, dtype):
    ours, auto = (plan(hidden, dtype, H200, batch=16, impl=impl) for impl in ("triton", "auto"))
    assert ours.forward.family == ours.backward.family == "stepwise"
    assert "each time step is one launch that reads them again" in ours.reason
    assert auto.family == "torch"
    assert auto.reason.startswith(f"no gain is expected with hidden size {hidden} and batch 16 on H200")
    assert [found.family for found in auto.considered] == ["stepwise", "stepwise"]


def test_bidirectional_doubles_the_programs_and_waves_the_time():
    one, two = (plan(64, "float16", H200, batch=40, directions=d).forward for d in (1, 2))
    assert (one.programs, two.programs) == (3, 6)
    many = plan(64, "float16", H200, batch=16 * 133).forward
    assert many.us_per_step == pytest.approx(2 * one.us_per_step)


def test_both_directions_are_resident_together():
    one, two = (plan(1024, "bfloat16", H200, batch=16, directions=d, training=False) for d in (1, 2))
    assert two.family == "persistent"
    assert two.forward.programs <= 132
    assert two.us_per_step >= one.us_per_step


def test_a_model_that_expects_to_lose_gives_way_unless_triton_is_asked_for():
    batch = limits(1024, "bfloat16", H200, training=False).largest + 1
    auto, ours = (plan(1024, "bfloat16", H200, batch=batch, training=False, impl=i) for i in ("auto", "triton"))
    assert auto.family == "torch"
    assert auto.reason == (
        f"no gain is expected with hidden size 1024 and batch {batch} on H200: torch's GRU should take "
        f"{auto.torch_us_per_step:.2f} us per step, the kernel {ours.us_per_step:.2f} us; impl='triton' runs the "
        "kernel anyway"
    )
    assert ours.family == "persistent"
    assert ours.us_per_step > (1 - planning.MARGIN) * ours.torch_us_per_step


def test_one_launch_a_step_has_to_be_expected_to_take_half_of_torchs_time(monkeypatch):
    sizes = {"batch": 64, "directions": 2, "precision": "ieee"}
    about = plan(1024, "float32", GPUS["h200"], **sizes)
    ours = sum(found.us_per_step for found in about.considered)
    assert (about.family, {found.family for found in about.considered}) == ("torch", {"stepwise"})
    assert ours < 2 * about.torch_us_per_step < 2 * ours
    assert "needs one launch per step on H200" in about.reason
    for theirs, family in ((0.99 * ours, "torch"), (1.01 * ours, "stepwise")):  # of one of the two passes
        planning.plan.cache_clear()
        monkeypatch.setattr(cost_model, "torch_us", lambda *shape, theirs=theirs, **how: theirs)
        assert plan(1024, "float32", GPUS["h200"], **sizes).family == family
    planning.plan.cache_clear()


def test_a_sequence_too_short_to_pay_for_its_launches_goes_to_torch(monkeypatch):
    """One more launch of three microseconds, and a little more than one microsecond saved a step."""
    assert limits(768, "bfloat16", H200, training=False).shortest < 8

    def plan_of_16(**options):
        return plan.__wrapped__(768, "bfloat16", H200, batch=16, training=False, **options)

    ours = plan_of_16().us_per_step
    monkeypatch.setattr(cost_model, "torch_us", lambda *shape, **how: ours + 1.01)
    assert plan_of_16(time=3).family == "persistent"
    short = plan_of_16(time=2)
    assert short.family == "torch"
    assert short.reason.startswith("with 2 time steps, launches around the loop cost more than the loop saves")
    assert plan_of_16(time=2, impl="triton").family == "persistent"


@given(st.sampled_from([128, 256, 768, 1024, 2048]), st.sampled_from(DTYPES), devices, st.integers(1, 5000))
@settings(max_examples=100, deadline=None)
def test_limits_agree_with_the_plan(hidden, dtype, gpu, batch):
    found = limits(hidden, dtype, GPUS[gpu], training=False)
    rounded = -(-batch // BLOCK_B) * BLOCK_B
    if rounded <= found.largest and rounded <= 1024:
        assert plan(hidden, dtype, GPUS[gpu], batch=batch, training=False).family != "torch"
    if found.largest == 0:
        assert plan(hidden, dtype, GPUS[gpu], training=False).reason == found.reason


def test_rows_overrule_the_model(monkeypatch):
    key = "forward", ("sm_90", "16-bit", 768, 1, 1)
    options = sorted(persistent_options(H200, "forward", "16-bit", 768, 16, 1), key=lambda option: option[0].us)
    other = options[-1][1]
    for us, torch_us, family in ((1.5, 8.0, "persistent"), (9.0, 8.0, "torch")):
        row = {key: Measured(us, torch_us, other.name)}
        monkeypatch.setattr(planning, "measured", lambda row=row: row)
        plan.cache_clear()
        answer = plan(768, "bfloat16", H200, batch=16, training=False)
        assert answer.family == family
        if family == "torch":
            assert answer.reason == "torch's GRU was measured at 8.00 us per step on H200, the kernel at 9.00 us"
            with_resets = plan(768, "float16", H200, batch=16, training=False, resets=True)
            assert with_resets.family == "persistent", "what was measured is torch's whole loop"
        else:
            assert answer.forward.launch.name == other.name
    plan.cache_clear()


def test_rows_of_a_training_step_overrule_the_model(monkeypatch):
    key = "train", ("sm_90", "16-bit", 768, 1, 1)
    options = sorted(persistent_options(H200, "backward", "16-bit", 768, 16, 1), key=lambda option: option[0].us)
    other = options[-1][1]
    for us, torch_us, family in ((3.5, 16.0, "persistent"), (17.0, 16.0, "torch")):
        row = {key: Measured(us, torch_us, other.name)}
        monkeypatch.setattr(planning, "measured", lambda row=row: row)
        plan.cache_clear()
        answer = plan(768, "bfloat16", H200, batch=16)
        assert answer.family == family
        if family == "torch":
            assert answer.reason == (
                "torch's GRU was measured at 16.00 us per step of forward and backward on H200, the kernel at 17.00 us"
            )
        else:
            assert answer.backward.launch.name == other.name
    plan.cache_clear()


def test_precision_follows_torchs_switch(monkeypatch):
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    try:
        for value, expected in (("tf32", "tf32"), ("ieee", "ieee")):
            rnn.fp32_precision = value
            answer = plan_on(H200, 64, torch.float32)
            assert answer.precision == expected
            assert answer.forward.launch.dot_precision == {"tf32": "tf32", "ieee": "tf32x3"}[expected]
            assert kind_of("float16", expected) == "16-bit"
    finally:
        rnn.fp32_precision = before


def test_explain_a_module():
    gru = tritongru.GRU(8, 65, bidirectional=True)
    answer = tritongru.explain(gru, batch=20, time=10, device=H200)
    assert (answer.family, answer.forward.programs, answer.time) == ("resident", 4, 10)
    assert sum(answer.forward.launch.chunks) == 80
    assert answer.backward is not None
    assert tritongru.explain(gru.eval(), device=H200).backward is None
    assert "a model, not a measurement" in str(answer)
    assert tritongru.explain(tritongru.GRU(8, 65, impl="torch"), device=H200).family == "torch"
    here = tritongru.explain(tritongru.GRU(8, 65), time=100)
    assert here.family == ("llvm" if HAS_LOOP else "torch"), "on a CPU auto asks for no Triton, interpreter or not"
    with pytest.raises(ValueError, match="batch should be at least 1, got 0"):
        tritongru.explain(gru, batch=0)


@pytest.mark.parametrize("name", ["batch", "time"])
@pytest.mark.parametrize(
    "value, error, says",
    [
        (10**12, ValueError, "should be at most {most}, got 1000000000000"),
        (10**30, ValueError, f"should be at most {{most}}, got {10**30}"),
        (10**5000, ValueError, "should be at most {most}, got a number of 16610 bits"),
        (-(10**5000), ValueError, "should be at least 1, got a number of 16610 bits"),
        (2.0, TypeError, "should be a whole number, got 2.0 of type float"),
        ("16", TypeError, "should be a whole number, got '16' of type str"),
        (True, TypeError, "should be a whole number, got True of type bool"),
        (None, TypeError, "should be a whole number, got None of type NoneType"),
        ([1], TypeError, "should be a whole number, got [1] of type list"),
        (torch.ones(()), TypeError, "should be a whole number, got tensor(1.) of type Tensor"),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else type(value).__name__,
)
def test_explain_refuses_sizes_that_mean_nothing(name, value, error, says):
    with pytest.raises(error) as found:
        tritongru.explain(tritongru.GRU(8, 65), device=H200, **{name: value})
    assert str(found.value) == f"{name} {says.format(most=MOST[name])}"


def test_explain_refuses_what_no_gpu_holds_and_takes_the_largest_that_one_might():
    """Counted by hand: both directions' weights, and one output."""
    gru = tritongru.GRU(8, 1000, 2, bidirectional=True, device="meta")
    weights = 2 * 3 * 1000 * ((8 + 1000) + (2000 + 1000))
    most = (MOST_VALUES - weights) // (2 * 1000 * 1000)  # rows of a batch, with 1000 steps
    assert tritongru.explain(gru, batch=most, time=1000, device=H200).family == "torch"
    with pytest.raises(ValueError, match=r"\(hidden 1000, inputs 8, .*\) have 1.0e\+12 values, but no GPU holds more"):
        tritongru.explain(gru, batch=most + 1, time=1000, device=H200)
    with pytest.raises(ValueError, match="hidden should be at most 100000, got 1000000"):
        tritongru.explain(tritongru.GRU(8, 10**6, device="meta"), device=H200)


def test_explain_takes_any_kind_of_whole_number():
    gru = tritongru.GRU(64, 768)
    answer = tritongru.explain(gru, batch=torch.tensor(16), time=torch.tensor(5), device=H200)
    assert answer == tritongru.explain(gru, batch=16, time=5, device=H200)
    assert type(answer.time) is int
    assert json.loads(json.dumps(answer.as_dict()))["time"] == 5


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_explain_knows_gpus_by_name(impl):
    gru = tritongru.GRU(64, 768, impl=impl)
    for name in ("h200", "H200"):
        answer = tritongru.explain(gru, batch=16, time=5, device=name)
        assert answer == tritongru.explain(gru, batch=16, time=5, device=H200)
        assert str(answer).startswith("on H200, in float32")


def test_explain_refuses_a_device_that_is_not_there(monkeypatch):
    gru = tritongru.GRU(2, 3)
    known = "the known GPUs are a100, rtx3090, rtx4090, h100, h200, b200, rtx5090, mi300x, mi355x"
    for device in ("z9", "", 1.5):
        with pytest.raises(ValueError) as found:
            tritongru.explain(gru, device=device)
        assert str(found.value) == f"device {device!r} is neither a known GPU nor a torch device; {known}"
    for count, index, here in ((0, "", "no GPU"), (1, ":1", "only 1 GPU"), (2, ":7", "only 2 GPUs")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        for device in (f"cuda{index}", torch.device(f"cuda{index}")):
            with pytest.raises(ValueError) as found:
                tritongru.explain(gru, device=device)
            says = f"torch sees {here} here, got device 'cuda{index}'; for another machine, {known}"
            assert str(found.value) == says


def test_explain_refuses_what_is_no_gru():
    """The plan of an LSTM's sizes would be a GRU's."""
    for module in (torch.nn.LSTM(2, 3), torch.nn.Linear(2, 3), tritongru.GRUCell(2, 3)):
        with pytest.raises(
            TypeError,
            match=f"gru should be a tritongru.GRU or a torch.nn.GRU, got {type(module).__name__}; the command",
        ):
            tritongru.explain(module)
    assert tritongru.explain(torch.nn.GRU(64, 768), batch=16, device=H200).family == "persistent"


def test_one_known_pass_of_two_leaves_the_whole_unknown():
    answer = plan(768, "bfloat16", H200, batch=16)
    half = dataclasses.replace(answer, backward=dataclasses.replace(answer.backward, cost=None))
    assert half.expected_ratio is None
    assert half.expected_ratio_forward == answer.expected_ratio_forward
    assert "x forward, unknown forward and backward together (a model" in str(half)
    neither = dataclasses.replace(half, forward=half.backward)
    assert "relative to torch: unknown, because the cost model has no figures for this kernel on H200" in str(neither)


@given(hiddens, st.sampled_from([*DTYPES, "float64"]), devices, st.integers(1, 10**4), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_ratio_is_of_two_figures_or_unknown(hidden, dtype, gpu, batch, training):
    answer = plan(hidden, dtype, GPUS[gpu], batch=batch, training=training)
    costs = [found.us_per_step for found in answer.passes]
    if answer.torch_us_per_step is None or None in costs or not costs:
        assert answer.expected_ratio is None
        assert "unknown" in str(answer)
        assert not answer.passes or answer.torch_unknown or None in costs
    else:
        assert answer.expected_ratio == pytest.approx(len(costs) * answer.torch_us_per_step / sum(costs))
        assert not answer.torch_unknown
        assert "unknown" not in str(answer)
    if costs and answer.torch_us_per_step is None:
        assert hidden <= cost_model.TORCH_SMALL_H or GPUS[gpu].backend == "hip"


def test_explain_shows_the_parts():
    gru = tritongru.GRU(64, 768).to(torch.bfloat16).eval()
    answer = tritongru.explain(gru, batch=16, time=1024, device=H200)
    assert isinstance(answer.forward.launch, PersistentLaunch)
    text = str(answer)
    for part, name in PARTS.items():
        assert f"{name} {getattr(answer.forward.cost, part):.2f}" in text
    assert f"predicted for torch: {answer.torch_us_per_step:.2f} us per step forward (a model" in text
    assert f"exchange by {answer.forward.launch.exchange}; each program serves 1 batch tile\n" in text


def test_explain_shows_shared_memory_of_a_resident_step():
    answer = plan(64, "float16", H200, batch=16, training=False)
    for shared, said in ((0.0, ""), (0.25, ", shared memory 0.25")):
        cost = dataclasses.replace(answer.forward.cost, issue=0.5, barriers=0.125, shared=shared)
        text = str(dataclasses.replace(answer, forward=dataclasses.replace(answer.forward, cost=cost)))
        parts = f"of these us:{said[1:]}{',' if said else ''} instruction issue 0.50, barriers 0.12"
        assert f"    {parts}{' (shared memory and issue overlap)' if said else ''}\n" in text


@pytest.mark.parametrize("gpu", GPUS)
def test_explain_says_where_the_kernels_have_never_run(gpu):
    answer = plan(64, "float16", GPUS[gpu], batch=16)
    assert answer.family == "resident"
    sentence = (
        f"  the kernels for {GPUS[gpu].name} are compiled, never run: "
        "neither a GPU nor the PTX machine has executed them"
    )
    if gpu in ("a100", "h100", "h200"):
        assert answer.kernels == "run"
        assert "never run" not in str(answer)
    else:
        assert answer.kernels == "compiled, never run"
        assert str(answer).splitlines().count(sentence) == 1
    assert answer.as_dict()["kernels"] == answer.kernels


def test_a_layer_that_no_kernel_runs_has_no_kernels_to_speak_of():
    for answer in (plan(64, "float64", GPUS["b200"]), plan(4096, "bfloat16", GPUS["b200"], batch=4096)):
        assert (answer.family, answer.kernels) == ("torch", None)
        assert "never run" not in str(answer)


def test_every_chip_that_kernels_ran_on_is_one_that_they_are_compiled_for():
    assert {*RUN_ON} <= {*CHIPS["cuda"], *CHIPS["hip"]}
    assert HOME in RUN_ON


def test_explain_says_what_a_training_step_costs_and_needs():
    """Both passes, and the bytes, counted by hand."""
    gru = tritongru.GRU(64, 768, 2, memory="save").to(torch.bfloat16)
    answer = tritongru.explain(gru, batch=16, time=1024, device=H200)
    text, output = str(answer), 1024 * 16 * 768 * 2
    for name in ("forward", "backward"):
        found = getattr(answer, name)
        assert f"  {name}: persistent, {found.programs} programs of " in text
        assert f"predicted: {found.us_per_step:.2f} us per step, {found.us_per_step * 1.024:.3f} ms for 1024" in text
    memory = answer.memory
    assert (memory.mode, memory.parts) == ("save", 1)
    assert memory.kept == 2 * 5 * output
    assert memory.forward == memory.kept + 3 * output
    assert memory.backward == memory.kept + output + output + 5 * output
    assert f"at most {memory.backward / 2**20:.1f} MiB in the backward pass" in text
    gru.memory = "recompute"
    rebuilt = tritongru.explain(gru, batch=16, time=1024, device=H200).memory
    assert (rebuilt.mode, rebuilt.parts) == ("recompute", 8)
    assert rebuilt.kept == 2 * output
    assert rebuilt.backward == rebuilt.kept + 2 * output + 11 * output // 8


def test_auto_saves_gates_until_they_take_an_eighth_of_the_memory():
    def mode(batch):
        return plan(1024, "bfloat16", H200, batch=batch, time=1000, inputs=8, layers=3, impl="triton").memory.mode

    rows = H200.memory_bytes // 8 // (4 * 1024 * 2 * 3) // 1000
    assert (mode(rows), mode(rows + 1)) == ("save", "recompute")


def test_triton_never_falls_back(device):
    with pytest.raises(RuntimeError, match="the kernels do not support float64"):
        tritongru.GRU(2, 3, impl="triton").double().to(device)(torch.zeros(1, 1, 2, device=device).double())


def test_without_a_gpu_or_the_interpreter_triton_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="the tensors are on the CPU; move the module and the input to a GPU, or"):
        tritongru.GRU(2, 3, impl="triton")(torch.zeros(1, 1, 2))


# The loop on a CPU

CORES = dataclasses.replace(CPU, name="a CPU", arch="avx2", multiprocessors=4, memory_bytes=1 << 36)


def chip(isa, threads=4):
    return dataclasses.replace(CORES, arch=isa, multiprocessors=threads)


@given(
    hiddens,
    st.sampled_from(["float32", "float64", "float16", "bfloat16", "complex64"]),
    st.sampled_from(sorted(SETS)),
    st.integers(1, 64),
    st.integers(1, 10**5),
    st.integers(1, 10**4),
    st.integers(1, 2),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_plan_of_a_cpu_is_total(hidden, dtype, isa, threads, batch, time, directions, training):
    """Of any CPU, whatever this machine has."""
    sizes = {"batch": batch, "time": time, "directions": directions, "inputs": 8, "layers": 2}
    with llvmlite_of(), table_of():
        answer = plan(hidden, dtype, chip(isa, threads), training=training, **sizes)
    assert answer.forward is answer.backward is None
    if dtype == "complex64":
        assert (answer.family, answer.loop) == ("torch", None)
        known = "float32, float64, float16, bfloat16"
        assert answer.reason == f"the compiled loop does not support complex64; convert to one of {known}"
        return
    assert (answer.family, answer.precision) == ("llvm", None)
    loop, itemsize = answer.loop, 8 if dtype == "float64" else 4
    assert (loop.isa, loop.threads, loop.lanes) == (isa, threads, SETS[isa].bytes // itemsize)
    assert 1 <= loop.groups <= min(threads, batch)
    assert 1 <= loop.chunk_forward <= time
    assert (loop.chunk_backward is not None) == training
    assert training is False or 1 <= loop.chunk_backward <= time
    widest = max(8, directions * hidden)
    assert loop.weight_bytes >= directions * 3 * hidden * (widest + hidden) * itemsize
    assert loop.scratch_bytes >= loop.weight_bytes
    memory = answer.memory
    assert memory.mode == (memory.mode if training else "none")
    assert memory.forward >= memory.kept
    assert json.loads(json.dumps(answer.as_dict()))["loop"]["isa"] == isa
    assert SETS[isa].title in str(answer)
    assert "ratio" not in str(answer)


def test_triton_on_a_cpu_is_torchs():
    answer = plan(128, "float32", CORES, impl="triton")
    assert (answer.family, answer.reason) == ("torch", "the tensors are on a CPU, but the Triton kernels need a GPU")


def test_a_cpu_without_a_loop_gets_the_reason():
    with llvmlite_of():
        answer = plan(128, "float32", CPU)
        assert (answer.family, answer.loop) == ("torch", None)
        assert answer.reason == "the package llvmlite is not installed; install it with: pip install 'tritongru[cpu]'"
        assert tritongru.explain(tritongru.GRU(8, 65)).reason == answer.reason


ROWS = [
    {"isa": isa, "pass": kind, "hidden": hidden, "least_rows": least}
    for isa, kind, hidden, least in (
        ("avx2", "train", 64, 100),
        ("avx2", "train", 256, 20),
        ("avx512", "train", 64, 300),
        ("avx512", "train", 128, 7),
        ("avx2", "forward", 64, 5),
    )
]


@pytest.mark.parametrize(
    "isa, hidden, training, least",
    [
        ("avx2", 1, True, 100),
        ("avx2", 64, True, 100),
        ("avx2", 65, True, 20),
        ("avx2", 256, True, 20),
        ("avx2", 5000, True, 20),
        ("avx512", 100, True, 7),
        ("avx2", 64, False, 5),
        ("avx512", 64, False, 5),
        ("neon", 64, True, 300),
        ("neon", 128, True, 7),
    ],
)
def test_least_rows_are_those_of_the_next_size_that_was_measured(isa, hidden, training, least):
    """Of another instruction set than those that were measured, the most cautious of all."""
    with table_of(*ROWS):
        assert cpu_plan.least_rows(isa, hidden, training) == least
    with table_of():
        assert cpu_plan.least_rows(isa, hidden, training) == 1


def test_fewer_rows_than_the_table_asks_for_are_torchs_unless_the_loop_is_asked_for():
    with table_of(*ROWS):
        small, enough = (plan(64, "float32", CORES, batch=10, time=time) for time in (9, 10))
        assert (small.family, enough.family) == ("torch", "llvm")
        assert small.reason == (
            "torch's GRU was measured to be faster for a training step with T * B < 100 (time steps times sequences); "
            "impl='llvm' runs the compiled loop anyway"
        )
        assert plan(64, "float32", CORES, batch=10, time=9, impl="llvm").family == "llvm"
        assert plan(64, "float32", CORES, batch=10, time=9, training=False).family == "llvm"
        few = plan(64, "float32", CORES, batch=1, time=4, training=False).reason
        assert "for a call with T * B < 5 (time steps" in few


def test_one_step_of_several_rows_is_torchs_where_the_table_says_so():
    with table_of({"isa": "avx2", "pass": "train", "hidden": 64, "least_rows": 1, "least_steps": 2}):
        found = [plan(64, "float32", CORES, batch=B, time=T).family for B, T in ((8, 1), (8, 2), (1, 1))]
        assert found == ["torch", "llvm", "llvm"]
        assert "fewer than 2 time steps and several sequences" in plan(64, "float32", CORES, batch=8, time=1).reason
        assert cpu_plan.least_steps("avx2", 64, False) == 1


def cell(isa, threads, hidden, batch, over, kind="train", high=None):
    sizes = {"isa": isa, "threads": threads, "pass": kind, "hidden": hidden, "batch": batch}
    return sizes | {"over": over, "high": high or over}


MEASURED = [
    *(cell("avx512", 1, 512, batch, 1.5) for batch in (1, 64)),
    *(cell("avx512", 16, 512, batch, over) for batch, over in ((1, 0.4), (64, 1.9))),
    *(cell("avx512", 16, 64, batch, 5.0) for batch in (1, 64)),
    cell("avx2", 2, 512, 1, 1.5),
    cell("avx2", 2, 512, 64, 0.8, high=1.05),
]


@pytest.mark.parametrize(
    ("isa", "threads", "hidden", "batch", "slower"),
    [
        ("avx512", 16, 512, 1, True),
        ("avx512", 16, 512, 4, True),
        ("avx512", 16, 512, 32, False),
        ("avx512", 16, 512, 100_000, False),
        ("avx512", 16, 100, 1, False),
        ("avx512", 16, 4096, 1, True),
        ("avx512", 8, 512, 1, True),
        ("avx512", 2, 512, 1, False),
        ("avx512", 1, 512, 1, False),
        ("avx2", 2, 512, 1, False),
        ("avx2", 2, 512, 64, False),  # in some rounds ours was faster
        ("avx512", 4, 512, 1, True),  # as near to one thread as to 16: the slower counts
        ("avx2", 4, 512, 1, False),
        ("avx2", 16, 512, 1, True),  # as many threads tell more than the same instruction set
        ("avx512", 16, 512, 0, True),
    ],
)
def test_calls_near_one_that_lost_are_torchs(isa, threads, hidden, batch, slower):
    with table_of(cells=MEASURED):
        assert cpu_plan.is_slower(isa, hidden, True, batch, threads) == slower
        assert not cpu_plan.is_slower(isa, hidden, False, batch, threads), "of another pass"
        said = cpu_plan.refusal_by_size(isa, hidden, True, 100, max(batch, 1), threads)
        assert said.endswith(
            "step with H = 512, B = 1 and 16 threads (AVX-512), the nearest measured size" if slower else ""
        )
        assert bool(said) == slower
        assert not cpu_plan.refusal_by_size(isa, hidden, True, 1, 1, threads), "of a single step other rows tell"
    with table_of():
        assert not cpu_plan.is_slower(isa, hidden, True, batch, threads)


def test_the_shipped_table_is_whole():
    for one in cpu_plan._table("cells"):
        assert one["isa"] in SETS
        assert one["pass"] in ("forward", "train")
        assert min(one[key] for key in ("threads", "hidden", "batch", "over")) > 0
        assert one["over"] <= one["high"]
    for row in cpu_plan._table():
        assert row["isa"] in SETS
        assert row["pass"] in ("cell", "forward", "train")
        assert int(row["hidden"]) > 0 < int(row["least_rows"])
        assert int(row["least_steps"]) > 0


@needs_loop
@pytest.mark.parametrize("impl", ["auto", "llvm"])
def test_explain_the_cpu(impl):
    gru = tritongru.GRU(8, 65, 2, bidirectional=True, impl=impl)
    answer = tritongru.explain(gru, batch=20, time=10)
    isa, threads = SETS[host_sets()[0]], torch.get_num_threads()
    loop, text = answer.loop, str(answer)
    assert (answer.family, answer.time, answer.precision, answer.kernels) == ("llvm", 10, None, None)
    assert (loop.isa, loop.rows, loop.lanes, loop.threads) == (isa.name, isa.rows, isa.bytes // 4, threads)
    assert answer == plan(
        65,
        "float32",
        cpu_facts(),
        batch=20,
        time=10,
        directions=2,
        inputs=8,
        layers=2,
        impl=impl,
        precision="tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee",
    )
    first, second, tile, shared, *_ = text.splitlines()
    assert first == f"on this machine's CPU, {isa.title}, in float32"
    assert second.startswith("llvm: one compiled function runs the whole time loop")
    assert tile == f"  {isa.title}: register tiles of {isa.rows} sequences x 3 gates x {isa.bytes // 4} hidden units"
    assert shared.startswith(f"  {threads} thread")
    assert f"chunks of {loop.chunk_forward} forward and {loop.chunk_backward} backward steps" in shared
    assert f"  each call packs {loop.weight_bytes} bytes of weights and" in text
    assert tritongru.explain(gru.eval(), batch=20, time=10).loop.chunk_backward is None
    assert answer.memory.mode == "save"


def test_explain_a_module_on_no_device():
    answer = tritongru.explain(tritongru.GRU(8, 65, device="meta"))
    assert (answer.family, answer.device) == ("torch", "meta")
    assert "meta" in answer.reason
