"""Real models that train or run a GRU: their shapes, and the sources of these.

The dtype is the source's or, if it names none, torch's default: fp32, which cuDNN's GRU multiplies in TF32.
"""

from dataclasses import dataclass

from bench.measure.cases import MODES, Case

# As in rows: dtype, and whether TF32 is allowed. Plain `fp32` is IEEE.
PRECISIONS = {"fp32": ("fp32", False), "fp32-tf32": ("fp32", True), "fp16": ("fp16", False), "bf16": ("bf16", False)}

INFERENCE = ("forward",)


@dataclass(frozen=True)
class Workload:
    label: str
    title: str
    source: str  # where the shape comes from, with an address
    inputs: int
    hidden: int
    batch: int
    time: int
    layers: int = 1
    directions: int = 1
    precision: str = "fp32-tf32"  # the model's own, a key of PRECISIONS
    modes: tuple[str, ...] = MODES  # some CPU workloads are inference only

    def case(self, mode: str, precision: str | None = None) -> Case:
        dtype, tf32 = PRECISIONS[precision or self.precision]
        sizes = {"layers": self.layers, "directions": self.directions, "inputs": self.inputs}
        return Case(self.hidden, self.batch, self.time, dtype, mode, tf32, label=self.label, **sizes)


# Where the shapes come from. Sizes not called a choice are the source's own.
SOURCES = {
    "brain": (
        "baseline of Brain-to-Text '25, model_training/rnn_args.yaml, "
        "github.com/Neuroprosthetics-Lab/nejm-brain-to-text: 14 steps of 512 features are one input, under bf16 "
        "autocast; the length is a choice"
    ),
    "speech": (
        "scripts/train_model.py, github.com/cffan/neural_seq_decoder: 32 steps of 256 features are one input; the "
        "length is a choice (its maxTimeSeriesLen of 1200 at a stride of 4 gives 293)"
    ),
    "rnnoise": (
        "torch/rnnoise/train_rnnoise.py, github.com/xiph/rnnoise: three GRUs in a row behind two convolutions, which "
        "leave 1996 of 2000 steps; 192 was the default batch at size 256, now it is 128 at size 384"
    ),
    "wavernn": (
        "hparams.py and models/fatchord_version.py, github.com/fatchord/WaveRNN: two GRUs in a row, the second of "
        "which sees 32 more features and a residual"
    ),
    "deepfilternet2": (
        "df/modules.py (SqueezedGRU) and pretrained_models/DeepFilterNet2/config.ini (at commit 0fb3cd9), both below "
        "DeepFilterNet/ of github.com/Rikorose/DeepFilterNet: 3 s of frames of 10 ms; one layer, the encoder's (the "
        "decoders have two each)"
    ),
    "medaka": (
        "medaka/architectures/gru.py and medaka/medaka.py (batch_size, chunk_len), github.com/nanoporetech/medaka: "
        "trains in fp32 unless told --amp, but infers in fp16 on a GPU unless told --full_precision"
    ),
    "pitch": (
        "RMVPE in infer/lib/rmvpe.py, github.com/RVC-Project/Retrieval-based-Voice-Conversion-WebUI: 3 x 128 bands, a "
        "file at a time, fp16 on demand; the length, 30 s of frames of 10 ms, is a choice"
    ),
    "rsl-rl": (
        "rsl_rl/modules/rnn.py, github.com/leggedrobotics/rsl_rl (the GRU is an option, LSTM its default), with 4096 "
        "robots, 24 steps and 48 observations (ANYmal C, flat) of github.com/leggedrobotics/legged_gym, whose update "
        "takes a quarter of the robots at a time"
    ),
    "torchrl": (
        "benchmarks/test_rnn_reset_backends_benchmark.py at commit db1ca0b, github.com/pytorch/rl, which times "
        "recurrent_backend='triton' forward and with resets (none here); other versions take other sizes"
    ),
    "neuralforecast": (
        "defaults in neuralforecast/models/gru.py, github.com/Nixtla/neuralforecast: 1024 windows are its batch of "
        "inference (training takes 128); the length is a choice"
    ),
    "gtcrn": (
        "the pass over 33 bands of DPGRNN in gtcrn.py, github.com/Xiaobin-Rong/gtcrn, which runs two GRUs of 8 inputs "
        "and 4 units per direction; all 16 channels in one GRU, its size and a batch of 10,000 frames are choices"
    ),
    "zone": (
        "use_rnn_persist_small_h in aten/src/ATen/native/cudnn/RNN.cpp, github.com/pytorch/pytorch: cuDNN's small-H "
        "algorithm runs the forward up to H = 192, the backward only up to 128. Issue 150700 there reports gradients "
        "that cuDNN changes on an H100; not verified that it is of a GRU or of this zone. Input, batch and length are "
        "choices"
    ),
    "streaming": "one step of one stream, at the width of DeepFilterNet2's GRU: all sizes are choices",
    "electricity": (
        "tritongru/commands/demo.py here, which forecasts a day ahead: windows of two half-hourly days of the demand "
        "that Taylor described (Short-term electricity demand forecasting using double seasonal exponential smoothing, "
        "J. Oper. Res. Soc. 54, 2003), and of its difference to the week before"
    ),
    "gtcrn-frames": (
        "DPGRNN in gtcrn.py, github.com/Xiaobin-Rong/gtcrn: one of its two GRUs over 33 bands, of 8 inputs and 4 units "
        "per direction, in its own size; 1,000 frames, 16 s of sound, are a choice"
    ),
    "ul-unas": (
        "FA in ulunas.py, github.com/Xiaobin-Rong/ul-unas: a GRU of 4 inputs and 4 units per direction over groups of "
        "4 bands, of which 33 bands make 9 steps and 129 make 33; the number of frames, batch times length, is a choice"
    ),
    "dpdfnet": (
        "DPRNNBlock in model/modules.py and Encoder in model/dpdfnet_48khz_hr.py, github.com/ceva-ip/DPDFNet: the GRU "
        "over the 480 bins of a frame, which three convolutions leave as 40, at 64 channels; 1,000 frames, 10 s of "
        "sound, are a choice"
    ),
    "medaka-infers": (
        "as medaka: inference takes pieces of 10,000 positions by default, github.com/nanoporetech/medaka; one piece "
        "at a time (its default is 100) is a choice"
    ),
    "rnnoise-infers": (
        "as rnnoise: the three GRUs of one stream, github.com/xiph/rnnoise, a frame of 10 ms or 10 s of them at once; "
        "both lengths are choices"
    ),
    "deepfilternet3": (
        "Encoder in DeepFilterNet/df/deepfilternet3.py, github.com/Rikorose/DeepFilterNet: its GRU gets 256 features "
        "from the linear layer before it; 64 sequences are the batch of the published model's configuration, "
        "1 s of frames of 10 ms is a choice"
    ),
    "ppo": "a batch of recurrent reinforcement learning between TorchRL's and rsl_rl's here: all sizes are choices",
    "one-sequence": "one long sequence, which no batch helps: all sizes are choices",
}

WORKLOADS = (
    Workload(
        "brain-to-text", "brain-to-text decoder", SOURCES["brain"], 7168, 768, 64, 400, layers=5, precision="bf16"
    ),
    Workload("speech-decoder", "neural speech decoder", SOURCES["speech"], 8192, 1024, 64, 300, layers=5, directions=2),
    Workload("rnnoise", "RNNoise", SOURCES["rnnoise"], 384, 384, 192, 2000, layers=3),
    Workload("wavernn", "WaveRNN", SOURCES["wavernn"], 512, 512, 32, 1375, layers=2),
    Workload("deepfilternet2", "DeepFilterNet2", SOURCES["deepfilternet2"], 256, 256, 96, 300),
    Workload("medaka", "medaka", SOURCES["medaka"], 10, 128, 100, 10_000, layers=2, directions=2),
    Workload("pitch", "pitch tracking", SOURCES["pitch"], 384, 256, 1, 3000, directions=2),
    Workload("rsl-rl", "rsl_rl memory", SOURCES["rsl-rl"], 48, 256, 4096, 24),
    Workload("torchrl", "TorchRL's own case", SOURCES["torchrl"], 32, 256, 128, 128),
    Workload("neuralforecast", "neuralforecast", SOURCES["neuralforecast"], 1, 200, 1024, 96, layers=2),
    Workload("gtcrn", "GTCRN-like", SOURCES["gtcrn"], 16, 16, 10_000, 33, directions=2),
    *(
        Workload(f"zone-h{hidden}-b{batch}", f"H = {hidden}, B = {batch}", SOURCES["zone"], hidden, hidden, batch, 512)
        for hidden in (144, 160, 192)
        for batch in (44, 64, 128)
    ),
    Workload("streaming", "streaming, one step", SOURCES["streaming"], 256, 256, 1, 1),
    Workload("electricity", "electricity demand", SOURCES["electricity"], 2, 64, 64, 96),
)

# Models trained or run on CPUs, and measured only there.
CPU_WORKLOADS = (
    Workload("rnnoise-frame", "RNNoise, one frame", SOURCES["rnnoise-infers"], 384, 384, 1, 1, 3, modes=INFERENCE),
    Workload("rnnoise-10s", "RNNoise, 10 s", SOURCES["rnnoise-infers"], 384, 384, 1, 1000, 3, modes=INFERENCE),
    Workload("gtcrn-frames", "GTCRN, bands", SOURCES["gtcrn-frames"], 8, 4, 1000, 33, directions=2),
    Workload("ul-unas-t9", "UL-UNAS, 33 bands", SOURCES["ul-unas"], 4, 4, 100_000, 9, directions=2),
    Workload("ul-unas-t33", "UL-UNAS, 129 bands", SOURCES["ul-unas"], 4, 4, 10_000, 33, directions=2),
    Workload("dpdfnet", "DPDFNet, bands", SOURCES["dpdfnet"], 64, 64, 1000, 40, directions=2),
    Workload("ppo", "recurrent PPO", SOURCES["ppo"], 64, 256, 64, 128),
    Workload("deepfilternet3", "DeepFilterNet3", SOURCES["deepfilternet3"], 256, 256, 64, 100),
    Workload("one-sequence", "one long sequence", SOURCES["one-sequence"], 256, 256, 1, 10_000),
    Workload(
        "medaka-inference", "medaka, inference", SOURCES["medaka-infers"], 10, 128, 1, 10_000, 2, 2, modes=INFERENCE
    ),
)
TITLES = {workload.label: workload.title for workload in (*WORKLOADS, *CPU_WORKLOADS)}


def workload_cases(precision: str | None = None) -> list[Case]:
    """For each workload the training step, then the forward pass, in its own precision unless another is given."""
    return [workload.case(mode, precision) for workload in WORKLOADS for mode in reversed(MODES)]
