"""The persistent family in the interpreter, every program of a launch in a thread: through the module and alone."""

import dataclasses

import pytest
import torch
import triton.language as tl
from layers import Case, build
from loops import loop_forward, persistent_launch, plain
from tolerance import assert_close_to_float64
from triton.runtime import interpreter

from tritongru import reference
from tritongru.kernels import interpreter_threads
from tritongru.kernels.persistent import launch as persistent
from tritongru.planning.plan import plan_on

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tests/gpu/test_gpu_persistent.py")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")


def layer_tensors(T=4, B=3, H=40, D=1, dtype=torch.float32, bias=True, use_h0=True, seed=0, I=5):
    """Operands of one layer, exact in the dtype."""
    torch.manual_seed(seed)

    def some(*shape):
        return (torch.randn(shape) / 2).to(dtype)

    return {
        "x": some(T * B, I),
        "w_ih": some(D * 3 * H, I),
        "w_hh": some(D, 3 * H, H) / H**0.5,
        "b_ih": some(D * 3 * H) if bias else None,
        "b_hh": some(D, 3 * H) if bias else None,
        "h0": some(D, B, H) if use_h0 else None,
    }


def run(tensors, launch, B=3, gates=True, limit=10**7, offsets=None, groups=None):
    """y, hn and the gates of the kernel under one configuration; every buffer is NaN before."""
    D, H = tensors["w_hh"].shape[0], tensors["w_hh"].shape[2]
    x, dtype = tensors["x"], tensors["x"].dtype
    gx = x @ tensors["w_ih"].t() if tensors["b_ih"] is None else torch.addmm(tensors["b_ih"], x, tensors["w_ih"].t())
    y = torch.full((x.shape[0], D, H), NAN, dtype=dtype)
    hn = torch.full((D, B, H), NAN, dtype=dtype)
    saved = torch.full((x.shape[0], D, H, 4) if gates else (0,), NAN, dtype=dtype)
    tiles = -(-B // launch.block_b)
    launch = dataclasses.replace(launch, groups=groups or tiles)
    loop_forward(persistent, gx, tensors["w_hh"], tensors["b_hh"], tensors["h0"], y, hn, saved, offsets, launch, limit)
    return y, hn, plain(saved) if gates else saved


def expected(tensors, B=3, dtype=torch.float64):
    """y, hn and gates of the oracle, laid out as the kernel's."""
    t = {name: None if value is None else value.to(dtype) for name, value in tensors.items()}
    D, H = t["w_hh"].shape[0], t["w_hh"].shape[2]
    x = t["x"].view(-1, B, t["x"].shape[1])
    ys, hs, gs = [], [], []
    for d in range(D):
        w_ih = t["w_ih"].view(D, 3 * H, -1)[d]
        b_ih = None if t["b_ih"] is None else t["b_ih"].view(D, 3 * H)[d]
        b_hh = None if t["b_hh"] is None else t["b_hh"][d]
        h0 = x.new_zeros(B, H) if t["h0"] is None else t["h0"][d]
        y, hn, gates = reference.forward(x, h0, w_ih, t["w_hh"][d], b_ih, b_hh, reverse=d == 1)
        saved = torch.stack(gates, dim=-1)
        ys, hs, gs = [*ys, y.flatten(0, 1)], [*hs, hn], [*gs, saved.flatten(0, 1)]
    return torch.stack(ys, 1), torch.stack(hs), torch.stack(gs, 1)


def check(tensors, launch, B=3, **options):
    found = run(tensors, launch, B, **options)
    exact, same = expected(tensors, B), expected(tensors, B, tensors["x"].dtype)
    for name, *values in zip(("y", "hn", "gates"), found, exact, same, strict=True):
        assert_close_to_float64(*values, f"{launch.name} {name}")


SHAPES = {
    "odd size": ({"H": 33}, {}),
    "two tiles": ({"B": 20, "T": 3}, {}),
    "one row, one step": ({"B": 1, "T": 1}, {}),
    "both directions": ({"D": 2, "B": 17, "T": 3}, {}),
    "three units": ({"H": 3}, {}),
    "no bias": ({"bias": False}, {}),
    "zeros as h0": ({"use_h0": False}, {}),
    "chunks of different widths": ({"H": 150, "T": 2}, {"block_h": 16}),
    "two products": ({"H": 40}, {"pad": False}),
    "more warps than parts": ({"H": 40}, {"num_warps": 8}),
    "32 units a program": ({"H": 70}, {"block_h": 32}),
    "wide spans": ({"H": 70}, {"block_h": 32, "span": 16}),
    "one wide span, two products": ({"H": 40, "T": 3}, {"block_b": 32, "block_h": 16, "span": 16, "pad": False}),
    "weights chunk by chunk": ({"H": 150, "T": 2}, {"block_h": 16, "dot_precision": "tf32"}),
    "tile of 32 rows": ({"H": 40, "B": 40, "T": 3}, {"block_b": 32, "pad": False}),
    "wide tile": ({"H": 40, "B": 70, "T": 3}, {"block_b": 64, "block_h": 16, "k_split": 1}),
    "wide tile, two products": ({"H": 40, "B": 70, "T": 3}, {"block_b": 64, "block_h": 16, "k_split": 1, "pad": False}),
}


@pytest.mark.every(4, slow=3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_oracle(shape, exchange, dtype):
    sizes, changes = SHAPES[shape]
    tensors = layer_tensors(**sizes, dtype=dtype)
    launch = persistent_launch(tensors["w_hh"].shape[2], dtype, exchange=exchange, **changes)
    check(tensors, launch, sizes.get("B", 3))


@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_program_serves_several_tiles_in_turn(groups, exchange):
    tensors = layer_tensors(B=40, T=4, H=16)
    check(tensors, persistent_launch(16, exchange=exchange), 40, groups=groups)


def test_the_ring_goes_round():
    """More steps than three times the ring's slots."""
    tensors = layer_tensors(T=14, H=16)
    check(tensors, persistent_launch(16, exchange="data"))


@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_packed_rows(dtype, exchange):
    """Each row alone gives what it gives among rows of other lengths, in both directions."""
    lengths, H = [5, 5, 3, 2, *[1] * 14], 20
    T, B = lengths[0], len(lengths)
    counts = [sum(length > t for length in lengths) for t in range(T)]
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0)])
    tensors = layer_tensors(T=1, B=sum(counts), H=H, D=2, dtype=dtype)
    tensors["h0"] = (torch.randn(2, B, H) / 2).to(dtype)
    y, hn, gates = run(tensors, persistent_launch(H, dtype, exchange=exchange), B, offsets=offsets)
    for b in (0, 2, 3, 17):
        rows = [int(offsets[t]) + b for t in range(lengths[b])]
        alone = tensors | {"x": tensors["x"][rows], "h0": tensors["h0"][:, b : b + 1]}
        exact, same = expected(alone, 1), expected(alone, 1, dtype)
        found = (y[rows], hn[:, b : b + 1], gates[rows])
        for name, *values in zip(("y", "hn", "gates"), found, exact, same, strict=True):
            assert_close_to_float64(*values, f"row {b} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["counter", "data"])
def test_two_runs_give_the_same_bits(exchange):
    tensors = layer_tensors(B=20, H=40, D=2)
    launch = persistent_launch(40, exchange=exchange)
    for first, second in zip(run(tensors, launch, 20), run(tensors, launch, 20), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exchange", ["counter", "data"])
def test_a_nan_state_is_no_missing_word(exchange, dtype):
    """Every NaN, even the one with all bits set, arrives as a NaN in its row alone, and nobody waits for it."""
    tensors = layer_tensors(dtype=dtype, H=16, T=3)
    clean, _, _ = run(tensors, persistent_launch(16, dtype, exchange=exchange))
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    tensors["h0"][0, 1] = torch.full((16,), -1, dtype=bits).view(dtype)
    y, hn, _ = run(tensors, persistent_launch(16, dtype, exchange=exchange), limit=10**5)
    assert y.view(3, 3, 16)[:, 1].isnan().all()
    assert hn[0, 1].isnan().all()
    assert torch.equal(y.view(3, 3, 16)[:, [0, 2]], clean.view(3, 3, 16)[:, [0, 2]])


def check_module(case):
    """Without gradients the module runs this family, and keeps the tolerance rule."""
    ours, x, hx = build(case, torch.device("cpu"))
    directions = 2 if case.bidirectional else 1
    plan = plan_on(x.device, case.H, case.dtype, batch=case.B, directions=directions, training=False, impl="triton")
    assert plan.forward.family == "persistent"
    theirs, exact = ours.to_torch(copy=True), ours.to_torch(copy=True).double()
    with torch.no_grad():
        found, same = ours(x, hx), theirs(x, hx)
        expected = exact(x.double(), None if hx is None else hx.double())
    for k, values in enumerate(zip(found, expected, same, strict=True)):
        assert_close_to_float64(*values, f"{case} result {k}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H", [193, 200, 255, 384])
def test_the_module(H, dtype):
    check_module(Case(T=3, B=2, H=H, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("B", [1, 16, 33])
def test_the_module_with_layers_and_directions(B):
    check_module(Case(T=2, B=B, H=130, layers=2, bidirectional=True))


@pytest.mark.slow
def test_the_module_at_full_size():
    check_module(Case(T=2, B=3, H=1024, dtype=torch.float16))


@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_module_without_bias_or_state(bias, hx):
    check_module(Case(T=2, B=2, H=140, bias=bias, hx=hx))


@pytest.mark.parametrize("exchange", ["counter", "data"])
def test_a_program_that_raises_ends_those_that_wait_for_it(exchange, monkeypatch):
    tensors, launch = layer_tensors(), persistent_launch(40, exchange=exchange)
    loads = []

    def masked_load(self, *arguments):
        if self.grid_idx == (1, 0, 0):
            loads.append(1)
            if len(loads) == 20:
                raise ValueError("no more")
        return original(self, *arguments)

    original = interpreter_threads._Builder.create_masked_load
    monkeypatch.setattr(interpreter_threads._Builder, "create_masked_load", masked_load)
    with pytest.raises(Exception, match="no more"):
        run(tensors, launch)
    monkeypatch.undo()
    check(tensors, launch)  # nothing of it is left behind


def test_the_language_is_patched_once_for_each_module(monkeypatch):
    """By many threads at once, it and what is written anew would be torn apart."""
    patched, plain = [], interpreter._patch_lang
    monkeypatch.setattr(interpreter, "_patch_lang", lambda fn: patched.append(fn.__module__) or plain(fn))
    load = tl.load
    run(layer_tensors(), persistent_launch(40))
    assert len(patched) == len(set(patched)) > 3
    assert tl.load is load


def test_offsets_beyond_32_bits():
    """The last tile of a batch whose inputs have more than 2^31 elements. Nothing else of the tensors is ever touched,
    so most of their memory is never really there."""
    T, H, rows = 2, 256, 5
    B = (1 << 31) // (T * 3 * H) // 16 * 16 + 16 + rows
    assert T * B * 3 * H > 1 << 31
    dtype = torch.float16
    launch = persistent_launch(H, dtype, block_h=32)
    tensors = layer_tensors(T=T, B=rows, H=H, dtype=dtype)
    tiles, programs = -(-B // 16), launch.programs(H)

    def huge(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype)

    gx, y = huge(T, B, 1, 3 * H), huge(T, B, 1, H)
    h0, hn = huge(1, B, H), huge(1, B, H)
    slots, state = huge(tiles, 2 * 16 * H), huge(tiles, programs * 16 * 32, dtype=torch.float32)
    counters = huge(tiles, 32, dtype=torch.int32)
    gx[:, -rows:] = torch.addmm(tensors["b_ih"], tensors["x"], tensors["w_ih"].t()).view(T, rows, 1, 3 * H)
    h0[:, -rows:] = tensors["h0"]
    slots[-1], counters[-1] = 0, 0
    interpreter_threads.launch_at(
        [(i, tiles - 1, 0) for i in range(programs)],
        persistent.persistent_forward_kernel,
        (programs, tiles, 1),
        *(gx, tensors["w_hh"], tensors["b_hh"], h0, y, hn, huge(0), None),
        *(slots, state, counters, torch.zeros(1, dtype=torch.int64)),
        T=T,
        B=B,
        N=T * B,
        tiles=tiles,
        limit=10**7,
        D=1,
        H=H,
        USE_BIAS=True,
        USE_H0=True,
        SAVE_GATES=False,
        PACKED=False,
        UPCAST=False,
        **launch.constants,
    )
    exact, same = expected(tensors, rows), expected(tensors, rows, dtype)
    assert_close_to_float64(y[:, -rows:].reshape(T * rows, 1, H), exact[0], same[0], "y")
    assert_close_to_float64(hn[:, -rows:], exact[1], same[1], "hn")
