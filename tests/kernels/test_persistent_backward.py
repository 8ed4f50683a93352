"""The persistent backward in the interpreter, alone: against the oracle, in parts, packed, several tiles in turn."""

import dataclasses

import pytest
import torch
from loops import NAN, RESULTS, encoded, expected, layer_tensors, persistent_launch, run_backward
from tolerance import assert_close_to_float64

from tritongru.kernels import interpreter_threads
from tritongru.kernels.persistent import launch as persistent

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tests/gpu/test_gpu_persistent.py")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def run(tensors, launch, B=3, offsets=None, parts=None, groups=None, saved=None, limit=10**7):
    """dgx, da and dh from the oracle's states and gates, rounded to the dtype."""
    dtype = tensors["gx"].dtype
    y, _, gates = saved or [value.to(dtype) for value in expected(tensors, B)[:3]]
    tiles = -(-B // launch.block_b)
    launch = dataclasses.replace(launch, groups=groups or tiles)
    return run_backward(persistent, tensors, y, gates, launch, offsets, parts, limit=limit)


def backward_for(H, dtype=torch.float32, **changes):
    return persistent_launch(H, dtype, kernel="backward", **{"pad": False} | changes)


def check(found, tensors, B, what):
    exact, same = expected(tensors, B), expected(tensors, B, tensors["gx"].dtype)
    same[-1] = same[-1].float()  # the kernel leaves dh in fp32
    for name, *values in zip(RESULTS[3:], found, exact[3:], same[3:], strict=True):
        assert_close_to_float64(*values, f"{what} {name}")


SHAPES = {
    "odd size": ({"H": 33}, {}),
    "two tiles": ({"B": 20, "T": 3}, {}),
    "one row, one step": ({"B": 1, "T": 1}, {}),
    "both directions": ({"D": 2, "B": 17, "T": 3}, {}),
    "three units": ({"H": 3, "D": 2}, {}),
    "zeros as h0": ({"use_h0": False, "D": 2}, {}),
    "no dy": ({"use_dy": False}, {}),
    "chunks of different widths": ({"H": 150, "T": 2}, {"block_h": 16}),
    "more warps than parts": ({"H": 40}, {"num_warps": 8}),
    "32 units a program": ({"H": 70}, {"block_h": 32}),
    "wide spans": ({"H": 70}, {"block_h": 32, "span": 16}),
    "weights chunk by chunk": ({"H": 150, "T": 2}, {"block_h": 16, "dot_precision": "tf32"}),
    "64 units a program": ({"H": 100}, {"block_h": 64}),
    "tile of 32 rows": ({"H": 40, "B": 40, "T": 3}, {"block_b": 32, "block_h": 16}),
    "wide tile": ({"H": 40, "B": 70, "T": 3}, {"block_b": 64, "block_h": 16, "k_split": 1}),
}


IN_16_BIT = (
    *("odd size", "both directions", "chunks of different widths", "64 units a program", "wide spans"),
    "tile of 32 rows",
)
CASES = [(shape, dtype) for dtype in DTYPES for shape in (SHAPES if dtype == torch.float32 else IN_16_BIT)]


@pytest.mark.every(3, slow=3)
@pytest.mark.parametrize("shape, dtype", CASES, ids=str)
@pytest.mark.parametrize("exchange", ["counter", "data"])
def test_against_the_oracle(shape, exchange, dtype):
    sizes, changes = SHAPES[shape]
    tensors = layer_tensors(**sizes, dtype=dtype)
    B = sizes.get("B", 3)
    launch = backward_for(sizes.get("H", 40), dtype, exchange=exchange, **changes)
    check(run(tensors, launch, B), tensors, B, f"{launch.name}")


@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_program_serves_several_tiles_in_turn(groups, exchange):
    tensors = layer_tensors(B=40, T=4, H=16)
    check(run(tensors, backward_for(16, exchange=exchange), 40, groups=groups), tensors, 40, exchange)


def test_the_ring_goes_round():
    """More steps than three times the ring's slots."""
    tensors = layer_tensors(T=14, H=16)
    check(run(tensors, backward_for(16, exchange="data")), tensors, 3, "ring")


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("parts", [[2, 3], [1, 1, 3]], ids=str)
def test_parts_give_the_same_bits_as_the_whole(parts, exchange):
    """dh passes from part to part in fp32, so nothing tells where one ends."""
    tensors = layer_tensors(T=5, B=20, H=20, D=2)
    launch = backward_for(20, exchange=exchange)
    whole = run(tensors, launch, 20)
    for name, one, other in zip(RESULTS[3:], whole, run(tensors, launch, 20, parts=parts), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_packed_rows(dtype, exchange):
    """Each row alone gives what it gives among rows of other lengths, in both directions."""
    lengths, H = [5, 5, 3, 2, *[1] * 14], 20
    T, B = lengths[0], len(lengths)
    counts = [sum(length > t for length in lengths) for t in range(T)]
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0)])
    tensors = layer_tensors(B=B, H=H, D=2, dtype=dtype, rows=sum(counts))
    y, gates = torch.empty(sum(counts), 2, H, dtype=dtype), torch.empty(sum(counts), 2, H, 4, dtype=dtype)
    alone = []
    for b in range(B):
        rows = [int(offsets[t]) + b for t in range(lengths[b])]
        own = {name: value[rows] if name in ("gx", "dy") else value for name, value in tensors.items()}
        own |= {name: tensors[name][:, b : b + 1] for name in ("h0", "dhn")}
        exact = expected(own, 1)
        y[rows], gates[rows] = exact[0].to(dtype), exact[2].to(dtype)
        alone.append((rows, own))
    launch = backward_for(H, dtype, exchange=exchange)
    dgx, da, dh = run(tensors, launch, B, offsets=offsets, saved=(y, None, gates))
    for b, (rows, own) in enumerate(alone):
        check((dgx[rows], da[rows], dh[:, b : b + 1]), own, 1, f"row {b}")


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["counter", "data"])
def test_two_runs_give_the_same_bits(exchange):
    tensors = layer_tensors(B=20, H=40, D=2)
    launch = backward_for(40, exchange=exchange)
    for first, second in zip(run(tensors, launch, 20), run(tensors, launch, 20), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_gradient_is_no_missing_word(exchange, dtype):
    """Every NaN, even the one with all bits set, stays in its row, and nobody waits for it."""
    tensors = layer_tensors(dtype=dtype, H=16, T=3)
    launch = backward_for(16, dtype, exchange=exchange)
    clean = run(tensors, launch)
    nan = torch.full((16,), -1, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32).view(dtype)
    dirty = tensors | {"dy": tensors["dy"].clone()}
    dirty["dy"].view(3, 3, 16)[2, 1] = nan
    found = run(dirty, launch, saved=[value.to(dtype) for value in expected(tensors)[:3]])
    assert found[0].view(3, 3, 48)[:, 1].isnan().all()
    assert found[2][0, 1].isnan().all()
    for name, one, other in zip(("dgx", "da"), clean, found, strict=False):
        assert torch.equal(one.view(3, 3, -1)[:, [0, 2]], other.view(3, 3, -1)[:, [0, 2]]), name


def test_garbage_beside_the_tensors_stays_there():
    """Every tensor lies between NaNs, and nothing of them is read or written."""
    tensors = layer_tensors(B=5, T=3, H=19, D=2)
    saved = [value.float() for value in expected(tensors, 5)[:3]]
    beside = {name: between_nans(value) for name, value in tensors.items() if value is not None}
    wrapped = [between_nans(value) for value in saved]
    launch = backward_for(19)
    found = run(beside, launch, 5, saved=wrapped)
    for name, one, other in zip(RESULTS[3:], run(tensors, launch, 5, saved=saved), found, strict=True):
        assert torch.equal(one, other), name


def between_nans(value):
    padded = torch.full((value.numel() + 512,), NAN, dtype=value.dtype)
    padded[256:-256] = value.flatten()
    return padded[256:-256].view(value.shape)


def test_offsets_beyond_32_bits():
    """The last tile of a batch whose gates have more than 2^31 elements. Nothing else of the tensors is ever touched,
    so most of their memory is never really there."""
    T, H, rows = 2, 256, 5
    B = (1 << 31) // (T * 3 * H) // 16 * 16 + 16 + rows
    dtype = torch.float16
    launch = backward_for(H, dtype, block_h=32)
    tensors = layer_tensors(T=T, B=rows, H=H, dtype=dtype)
    tiles, programs = -(-B // 16), launch.programs(H)

    def huge(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype)

    exact = expected(tensors, rows)
    y, gates, dy = huge(T, B, 1, H), huge(T, B, 1, H, 4), huge(T, B, 1, H)
    dgx, da = huge(T, B, 1, 3 * H), huge(T, B, 1, H)
    h0, dh = huge(1, B, H), huge(1, B, H, dtype=torch.float32)
    slots, counters = huge(tiles, 2 * 3 * 16 * H), huge(tiles, 32, dtype=torch.int32)
    y[:, -rows:], gates[:, -rows:] = (
        exact[0].view(T, rows, 1, H).to(dtype),
        encoded(exact[2]).view(T, rows, 1, H, 4).to(dtype),
    )
    dy[:, -rows:] = tensors["dy"].view(T, rows, 1, H)
    h0[:, -rows:], dh[:, -rows:] = tensors["h0"], tensors["dhn"].float()
    slots[-1], counters[-1] = 0, 0
    interpreter_threads.launch_at(
        [(i, tiles - 1, 0) for i in range(programs)],
        persistent.persistent_backward_kernel,
        (programs, tiles, 1),
        *(dy, dh, tensors["w_hh"], h0, y, gates, dgx, da, None),
        *(slots, counters, torch.zeros(1, dtype=torch.int64)),
        T=T,
        B=B,
        N=T * B,
        start=0,
        count=T,
        tiles=tiles,
        limit=10**7,
        D=1,
        H=H,
        USE_H0=True,
        USE_DY=True,
        PACKED=False,
        UPCAST=False,
        **launch.constants,
    )
    found = (dgx[:, -rows:].reshape(T * rows, 1, 3 * H), da[:, -rows:].reshape(T * rows, 1, H), dh[:, -rows:])
    check(found, tensors, rows, "far away")
