"""tritongru.GRU in several processes: data-parallel gradients, weights in shared memory, replicas."""

import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import PATIENCE
from tolerance import assert_close_to_float64
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tritongru

I, H, T, B = 3, 4, 3, 4
PROCESSES = 2

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
both_impls = pytest.mark.parametrize("impl", ["auto", "triton"])


def device_for(impl):
    return "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"


def build(cls, device="cpu", **kwargs):
    torch.manual_seed(0)
    return cls(I, H, batch_first=True, bidirectional=True, device=device, **kwargs)


def batch(like):
    return torch.randn(B, T, I, generator=torch.Generator().manual_seed(1)).to(like)


def loss(module, x):
    output, h_n = module(x)
    return output.square().mean() + h_n.mean()


def in_two_processes(worker, *args):
    """Run worker(rank, *args) twice at once. An error of a worker is raised here; a worker that hangs is killed."""
    context = mp.start_processes(worker, args, PROCESSES, join=False, start_method="spawn")
    deadline = time.monotonic() + PATIENCE
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"{worker.__name__} did not end within {PATIENCE:.0f} seconds"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def data_parallel_gradients(rank, impl):
    """Gradients of this process's part of the batch: its own, and those averaged over the processes.

    A function of its own, so that DistributedDataParallel is gone before its process group: otherwise it may hang.
    """
    module = build(tritongru.GRU, device_for(impl), impl=impl)
    if rank == 1:
        nn.init.zeros_(module.weight_hh_l0)  # the first process's weights shall win
    parallel = DistributedDataParallel(module)
    mine = batch(module.weight_hh_l0).chunk(PROCESSES)[rank]
    grads = []
    with parallel.no_sync():
        loss(parallel, mine).backward()
    grads.append({name: p.grad.cpu().clone() for name, p in module.named_parameters()})
    parallel.zero_grad()
    loss(parallel, mine).backward()
    grads.append({name: p.grad.cpu().clone() for name, p in module.named_parameters()})
    return grads


def data_parallel_worker(rank, impl, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    try:
        torch.save(data_parallel_gradients(rank, impl), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@both_impls
def test_data_parallel_gradients_are_those_of_the_whole_batch(impl, tmp_path):
    in_two_processes(data_parallel_worker, impl, str(tmp_path))
    (alone, averaged), (others_alone, others_averaged) = (torch.load(tmp_path / f"{r}.pt") for r in range(PROCESSES))
    single = build(nn.GRU, device_for(impl))
    wide = build(nn.GRU, device_for(impl)).double()
    for module in (single, wide):
        loss(module, batch(module.weight_hh_l0)).backward()
    for name, p in single.named_parameters():
        assert not torch.equal(alone[name], others_alone[name]), name
        assert torch.equal(averaged[name], others_averaged[name]), name
        expected64, torchs = wide.get_parameter(name).grad.cpu(), p.grad.cpu()
        assert_close_to_float64(averaged[name], expected64, torchs, f"averaged gradient of {name}")


def shared_memory_worker(rank, module, x, outputs, barrier):
    torch.set_num_threads(1)
    with torch.no_grad():
        module(x)
        barrier.wait(PATIENCE)
        module.bias_hh_l0[rank] = 10.0 + rank
        barrier.wait(PATIENCE)
        outputs[rank] = module(x)[0]


needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="weights in shared memory are on the CPU")


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["auto", pytest.param("triton", marks=needs_interpreter)])
def test_a_write_to_shared_weights_is_seen_by_every_process(impl):
    module = build(tritongru.GRU, impl=impl)
    assert module.share_memory() is module
    assert all(p.is_shared() for p in module.parameters())
    x = batch(module.weight_hh_l0)
    before = module(x)[0].detach()
    outputs = torch.zeros(PROCESSES, *before.shape).share_memory_()
    in_two_processes(shared_memory_worker, module, x, outputs, mp.get_context("spawn").Barrier(PROCESSES))
    assert module.bias_hh_l0[:2].tolist() == [10.0, 11.0]
    assert not torch.equal(module(x)[0], before)
    with torch.no_grad():  # as there: with gradients a short call may take another way
        expected = module(x)[0]
    for output in outputs:
        assert torch.equal(output, expected)


def test_a_replica_has_its_own_list_of_weights():
    module = build(tritongru.GRU)
    replica = module._replicate_for_data_parallel()
    assert replica._flat_weights is not module._flat_weights
    assert replica._flat_weights_names is not module._flat_weights_names
    before = module._flat_weights[0]
    replica._flat_weights[0] = None
    assert module._flat_weights[0] is before
