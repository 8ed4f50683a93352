"""The cost model's terms, worked out by hand, and which of them decides."""

import dataclasses

import pytest

from tritongru.planning import candidates, cost_model
from tritongru.planning.candidates import persistent_options, resident_cost
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import BLOCK_B, launches, persistent_launches

pytestmark = pytest.mark.quick

H200 = GPUS["h200"]
SMALL = dataclasses.replace(H200, clock_mhz=1000, multiprocessors=100, mma=1000)  # a thousand clocks are a microsecond
SHAPE = {
    "programs": 50,
    "neighbours": 50,
    "turns": 1,
    "tile_bytes": 48_000,
    "weight_bytes": 6_400,
    "part_bytes": 3_200,
    "multiply_adds": 400_000,
    "bits": 16,
    "instructions": 200,
    "barriers": 10,
    "num_warps": 8,
    "per_multiprocessor": 1,
    "data": False,
}


def test_the_models_parts_and_constants():
    """Each part of a step, worked out by hand for one configuration."""
    cost = cost_model.persistent(SMALL, **SHAPE)
    assert cost.exchange == pytest.approx(cost_model.BARRIER_US + 50 * cost_model.ARRIVAL_US)
    assert (cost.l2, cost.tensor, cost.shared, cost.issue, cost.barriers) == pytest.approx((1.0, 0.4, 0.1, 0.4, 0.3))
    assert cost.math == pytest.approx(0.7)
    assert cost.us == pytest.approx(cost.exchange + cost_model.L2_LATENCY_US + 1.7)


def test_terms_are_named_in_the_order_of_a_step():
    cost = cost_model.persistent(SMALL, **SHAPE)
    assert list(cost.terms) == ["exchange", "l2", "tensor", "shared", "issue", "barriers"]
    assert cost.terms["l2"] == cost.l2 == pytest.approx(1.0)
    assert [*cost.terms.values()] == [cost.exchange, cost.l2, cost.tensor, cost.shared, cost.issue, cost.barriers]


@pytest.mark.parametrize("programs, at_once", [(50, 1), (150, 2), (150, 1)])
def test_wavefronts_take_a_clock_each_on_the_fullest_multiprocessor(programs, at_once):
    """900 of them: 0.9 us of one program, more than its 0.4 us of issue and of the tensor cores."""
    shape = SHAPE | {"programs": programs, "per_multiprocessor": at_once}
    by_bytes, counted = (cost_model.persistent(SMALL, **shape, wavefronts=number) for number in (None, 900))
    busy = min(at_once, 2 if programs > 100 else 1)
    assert by_bytes.shared == pytest.approx(0.1 * busy)
    assert counted.shared == pytest.approx(0.9 * busy)
    assert counted.math == pytest.approx(0.9 * busy + 0.3)
    assert counted.us - by_bytes.us == pytest.approx(0.5 * busy)
    few = cost_model.persistent(SMALL, **shape, wavefronts=10)
    assert few.shared == pytest.approx(0.01 * busy)
    assert few.us == pytest.approx(by_bytes.us)


@pytest.mark.parametrize("wavefronts, shared, us", [(None, 0.0, 0.9), (0, 0.0, 0.9), (500, 0.5, 0.9), (700, 0.7, 1.0)])
def test_a_resident_step_waits_for_issue_or_shared_memory_and_for_barriers(wavefronts, shared, us):
    one, three = (cost_model.resident(SMALL, 300, 10, 8, waves, wavefronts) for waves in (1, 3))
    assert (one.issue, one.shared, one.barriers) == pytest.approx((0.6, shared, 0.3))
    assert one.exchange == one.l2 == one.tensor == 0.0
    assert one.us == pytest.approx(us)
    assert one.us == pytest.approx(one.math)
    assert three.us == pytest.approx(3 * us)
    assert three.terms == one.terms
    assert (one.turns, three.turns) == (1, 3)


def test_counted_rows_are_priced_by_their_wavefronts():
    launch = dataclasses.replace(launches()["cuda", "forward", "tf32", 64][0], wavefronts=9000)
    cost = resident_cost(H200, launch, BLOCK_B, 1)
    assert cost.shared == pytest.approx(9000 / H200.clock_mhz)
    assert cost.us == pytest.approx(cost.shared + cost.barriers)
    rows = persistent_launches()["cuda", "forward", "16-bit", 768]
    found = tuple(dataclasses.replace(row, wavefronts=20_000 - i) for i, row in enumerate(rows))
    options = persistent_options(H200, "forward", "16-bit", 768, 16, 1, found)
    assert options
    for cost, row in options:
        busy = cost.shared * H200.clock_mhz / row.wavefronts
        assert busy == pytest.approx(max(1, round(busy)))
        assert cost.math == cost.shared + cost.barriers


def test_the_parts_of_a_product_pass_through_shared_memory():
    """Of a forward with two products: fp32 sums of three gates for each row, unit and part of k. By bytes, where the
    wavefronts were not counted."""
    rows = persistent_launches()["cuda", "forward", "16-bit", 256]
    uncounted = tuple(dataclasses.replace(row, wavefronts=None) for row in rows if not row.pad and row.k_split > 1)
    cost, row = persistent_options(H200, "forward", "16-bit", 256, 16, 1, uncounted)[0]
    clocks = (3 * row.block_h * 256 * 2 + 2 * row.k_split * 3 * row.block_b * row.block_h * 4) / 128
    assert cost.shared == pytest.approx(clocks / H200.clock_mhz)


def test_ieee_is_three_products_of_a_stepwise_launch():
    (tf32, _), (ieee, _) = (
        candidates.stepwise_options(H200, "forward", kind, 1024, 256, 1)[0] for kind in ("tf32", "ieee")
    )
    assert ieee.tensor == pytest.approx(3 * tf32.tensor)


def test_torch_has_no_tensor_cores_for_ieee():
    """From the data sheet: 66.9 TFLOPS of an H100 without them, 19.5 of an A100, and the pointwise part on top."""
    for gpu, tflops in (("h100", 66.9), ("a100", 19.5)):
        rate = cost_model.TORCH_FP32_SHARE * tflops * 1e6 / 2  # multiply-adds a microsecond
        slow = cost_model.torch_us(GPUS[gpu], 1024, 32, 256, 1, tensor_cores=False)
        assert slow == pytest.approx(cost_model.TORCH_POINTWISE_US + 3 * 1024**2 * 256 / rate, rel=0.01)
        assert slow > cost_model.torch_us(GPUS[gpu], 1024, 32, 256, 1)


def test_turns_hide_the_exchange():
    few, many = (
        {launch.name: cost for cost, launch in persistent_options(H200, "forward", "16-bit", 768, batch, 1)}
        for batch in (16, 512)
    )
    hidden = [name for name in few if few[name].turns == 1 < many[name].turns]
    assert hidden
    for name in hidden:
        assert many[name].us < many[name].turns * few[name].us
