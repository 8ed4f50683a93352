"""Real models that train or run a GRU: their shapes, and where these are written down.

The type of numbers is that of the source; where it names none, torch's default: fp32, which cuDNN's GRU multiplies in
TF32.
"""

from dataclasses import dataclass

from bench.cases import MODES, Case

# As in rows: type, and whether TF32 is allowed. `fp32` alone is IEEE.
PRECISIONS = {"fp32": ("fp32", False), "fp32-tf32": ("fp32", True), "fp16": ("fp16", False), "bf16": ("bf16", False)}


@dataclass(frozen=True)
class Workload:
    label: str
    title: str
    source: str  # what says so, with an address
    inputs: int
    hidden: int
    batch: int
    time: int
    layers: int = 1
    directions: int = 1
    precision: str = "fp32-tf32"  # its own, a key of PRECISIONS

    def case(self, mode: str, precision: str | None = None) -> Case:
        dtype, tf32 = PRECISIONS[precision or self.precision]
        sizes = {"layers": self.layers, "directions": self.directions, "inputs": self.inputs}
        return Case(self.hidden, self.batch, self.time, dtype, mode, tf32, label=self.label, **sizes)


WORKLOADS = (
    Workload("brain-to-text", "brain-to-text decoder", "", 7168, 768, 64, 400, layers=5, precision="bf16"),
    Workload("speech-decoder", "neural speech decoder", "", 1024, 1024, 64, 300, layers=5, directions=2),
    Workload("rnnoise", "RNNoise, training", "", 384, 384, 192, 2000, layers=3),
    Workload("wavernn", "WaveRNN, training", "", 512, 512, 32, 1375, layers=2),
    Workload("deepfilternet2", "DeepFilterNet2", "", 256, 256, 96, 300),
    Workload("medaka", "medaka", "", 10, 128, 100, 10_000, layers=2, directions=2),
    Workload("pitch", "pitch tracking", "", 384, 256, 1, 3000, directions=2),
    Workload("rsl-rl", "rsl_rl memory", "", 48, 256, 4096, 24),
    Workload("torchrl", "TorchRL's own case", "", 256, 256, 128, 128),
    Workload("neuralforecast", "neuralforecast", "", 1, 200, 1024, 96, layers=2),
    Workload("gtcrn", "GTCRN-like", "", 16, 16, 10_000, 33, directions=2),
    *(
        Workload(f"zone-h{hidden}-b{batch}", f"H = {hidden}, B = {batch}", "", hidden, hidden, batch, 512)
        for hidden in (144, 160, 192)
        for batch in (44, 64, 128)
    ),
    Workload("streaming", "streaming, one step", "", 256, 256, 1, 1),
    Workload("electricity", "electricity demand", "", 1, 64, 64, 96),
)


def workload_cases(precision: str | None = None) -> list[Case]:
    """Of each workload the training step and then the forward, in its own precision unless another is named."""
    return [workload.case(mode, precision) for workload in WORKLOADS for mode in reversed(MODES)]
