"""Models that are compiled, or wrapped by DDP or FSDP, before they are converted."""

import pytest
import torch
import torch.distributed as dist
from processes import python
from torch import nn
from torch.nn.utils import parametrize  # noqa: F401  # some versions of Dynamo look for it

import tritongru


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, 2, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("how", ["wrapper", "in place", "layer"])
def test_a_model_compiled_before(how):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    model, x = Model(), torch.randn(5, 3, 4)
    called = torch.compile(model, backend=backend) if how == "wrapper" else model
    if how != "wrapper":
        (model if how == "in place" else model.rnn).compile(backend=backend)
    expected = called(x)
    before = len(graphs)
    report = tritongru.convert(called)
    assert [one.name.removeprefix("_orig_mod.") for one in report.swapped] == ["rnn"]
    torch.testing.assert_close(called(x), expected)
    found = [name for graph in graphs[before:] for name in graph if "gru_routed_forward" in name]
    assert len(found) == 2, "one operator for each layer, compiled after the change"
    now = len(graphs)
    tritongru.convert(called, back=True)
    torch.testing.assert_close(called(x), expected, rtol=0, atol=0)
    assert not [name for graph in graphs[now:] for name in graph if "gru_routed_forward" in name]


PROGRAM = """
import copy, os, sys
import torch, torch.distributed as dist
from torch import nn
import tritongru

os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)

def build():
    torch.manual_seed(0)
    return nn.ModuleDict({"rnn": nn.GRU(4, 8, 2), "head": nn.Linear(8, 3)})

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = build()
    def forward(self, x):
        return self.parts["head"](self.parts["rnn"](x)[0])

def wrap(model, how):
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if how == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    mesh = init_device_mesh("cpu", (1,))
    if how == "sharded layer":
        fully_shard(model.parts["rnn"], mesh=mesh)
    return fully_shard(model, mesh=mesh)

def train(how, converts):
    wrapped = wrap(Model(), how)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    x, losses = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1)), []
    for step in range(4):
        if converts and step == 1:
            report = tritongru.convert(wrapped)
            if how == "sharded layer":
                assert not report.swapped and report.left[0].reason.startswith("fully_shard was applied"), report
            else:
                assert len(report.swapped) == 1, report
                name = report.swapped[0].name
                assert type(wrapped.get_submodule(name)) is tritongru.GRU
        if converts and step == 3:
            tritongru.convert(wrapped, back=True)
        optimizer.zero_grad()
        loss = wrapped(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

for how in sys.argv[1:]:
    theirs, ours = train(how, False), train(how, True)
    assert theirs[0] > 1.001 * theirs[-1], theirs
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))
    print(how, "agrees")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("how", ["ddp", "fsdp", "fully_shard", "sharded layer"])
def test_a_wrapped_model_trains_on(how):
    done = python("-W", "ignore", "-c", PROGRAM, how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{how} agrees"
