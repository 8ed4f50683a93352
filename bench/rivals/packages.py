"""GRU kernels of other packages. docs/rivals.md cites the source of every fact here."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

from bench.measure.cases import Case
from bench.rivals.rival import Unavailable, need, one_of
from bench.rivals.stack import Recurrence, Tensor, Weights, stacked

GRU_QAT, TORCHRL, FLASHRNN, FLASHRNN2, HASTE = "gru-qat", "TorchRL", "FlashRNN", "FlashRNN2", "haste"
EACH = "layers and directions stacked here"


# gru-qat


def gru_qat_of(case: Case, device: torch.device) -> Recurrence:
    need("gru-qat", device)
    one_of("its dense kernel", case.dtype, ("fp32",))
    if not case.tf32:
        raise Unavailable("its dense kernel multiplies only in TF32")
    if case.hidden < 128 and case.hidden & (case.hidden - 1):  # its hidden block is then the hidden size itself
        raise Unavailable(f"below 128 hidden units its kernel needs a power of two, not {case.hidden}")
    scan: Any = importlib.import_module("gru_qat.triton_kernels.scan")
    return Recurrence(scanning(scan.gru_scan_persistent))


def scanning(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The scan, after one input projection for all steps."""

    def run(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        return scan(linear(x, w_ih, b_ih), h0, w_hh, b_hh)

    return run


# TorchRL


TORCHRL_TRAINED = 256  # at 512, ptxas took two minutes for one of its six backward variants; each size compiles all six


def torchrl_of(case: Case, device: torch.device) -> Recurrence:
    need("torchrl", device)
    one_of("its kernel", case.dtype, ("fp32", "bf16"))
    if case.mode == "train" and case.hidden > TORCHRL_TRAINED:
        raise Unavailable(f"above {TORCHRL_TRAINED} hidden units its backward kernel compiles for many minutes")
    kernels: Any = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton")
    products = torch.bfloat16 if case.dtype == "bf16" else torch.float32
    precision = "tf32" if case.tf32 or case.dtype == "bf16" else "ieee"
    return Recurrence(resetting(kernels.gru_triton, products, precision), batch_first=True, dtype=torch.float32)


def resetting(
    gru: Callable[..., tuple[Tensor, Tensor]], products: torch.dtype, precision: str
) -> Callable[..., Tensor]:
    """Its kernel takes a reset state for each step, used where a new episode starts. Here none starts."""

    def run(x: Tensor, h0: Tensor, *weights: Tensor) -> Tensor:  # x (B, T, I)
        states = h0.unsqueeze(1).expand(-1, x.shape[1], -1).contiguous()
        begins = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return gru(x, states, *weights, begins, products, input_precision=precision)[0]

    return run


# FlashRNN


FLASHRNN_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def flashrnn_of(case: Case, device: torch.device) -> Recurrence:
    need("flashrnn", device)
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        raise Unavailable("flashrnn compiles its kernels with nvcc at the first call, and no nvcc was found")
    return Recurrence(flashing("cuda", FLASHRNN_DTYPES[case.dtype]), flashrnn_weights)


def flashrnn_weights(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Weights:
    """Its gates: recurrent part of the candidate, r, z, input part of the candidate, each with one bias."""
    hidden = w_hh.shape[1]
    (w_r, w_z, w_n), (i_r, i_z, i_n), (h_r, h_z, h_n) = (weight.chunk(3) for weight in (w_hh, b_ih, b_hh))
    recurrent = torch.stack((w_n, w_r, w_z)).view(3, 1, hidden, hidden)
    return w_ih, recurrent, torch.stack((h_n, i_r + h_r, i_z + h_z, i_n)).view(4, 1, hidden)


def flashing(backend: str, dtype: str) -> Callable[..., Tensor]:
    flashrnn: Any = importlib.import_module("flashrnn").flashrnn

    def run(x: Tensor, h0: Tensor, w_ih: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
        gx, states = flashrnn_inputs(x, h0, w_ih)
        found, _ = flashrnn(gx, recurrent, bias, states=states, function="gru", backend=backend, dtype=dtype)
        return flashrnn_output(found)

    return run


def flashrnn_inputs(x: Tensor, h0: Tensor, w_ih: Tensor) -> tuple[Tensor, Tensor]:
    """The input's product (B, T, gates, heads, H) and the state (1, B, 1, heads, H)."""
    time, batch = x.shape[:2]
    return linear(x, w_ih).view(time, batch, 3, 1, -1).transpose(0, 1), h0.view(1, batch, 1, 1, -1)


def flashrnn_output(states: Tensor) -> Tensor:
    """All states (1, B, T, heads, H) as y (T, B, H)."""
    return states[0].transpose(0, 1).flatten(2)


# FlashRNN2, a fork of FlashRNN with the same distribution name and tensor layout


FLASHRNN2_MODULE = "flashrnn.flashrnn2.triton_basic"


def flashrnn2_of(case: Case, device: torch.device) -> Recurrence:
    need("flashrnn", device, "install the fork as docs/rivals.md says")
    one_of("its kernel", case.dtype, ("fp16", "bf16"))
    if case.mode == "train":
        raise Unavailable("its GRU kernel has no backward pass")
    if not 16 <= case.hidden <= 128:
        raise Unavailable(f"its GRU kernel takes 16 to 128 hidden units, not {case.hidden}")
    try:
        kernel: Any = importlib.import_module(FLASHRNN2_MODULE)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error}; install the fork as docs/rivals.md says") from error
    return Recurrence(flashing2(kernel.recurrence), flashrnn_weights)


def flashing2(recurrence: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def run(x: Tensor, h0: Tensor, w_ih: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
        gx, initial = flashrnn_inputs(x, h0, w_ih)
        return flashrnn_output(recurrence(gx, recurrent, bias, initial, "gru")[0])

    return run


# haste


def haste_of(case: Case, device: torch.device) -> Recurrence:
    need("haste_pytorch", device, "build it with nvcc as docs/rivals.md says")
    one_of("it", case.dtype, ("fp32", "fp16"))
    function: Any = importlib.import_module("haste_pytorch.gru").GRUFunction
    return Recurrence(hasting(function.apply, case.mode == "train"), haste_weights)


def haste_weights(*weights: Tensor) -> Weights:
    """Transposed, with the gates in the order z, r, n."""

    def own(weight: Tensor) -> Tensor:
        r, z, n = weight.chunk(3)
        return torch.cat((z, r, n)).t().contiguous()  # t() leaves a bias as it is

    return tuple(own(weight) for weight in weights)


def hasting(gru: Callable[..., Tensor], training: bool) -> Callable[..., Tensor]:
    def run(x: Tensor, h0: Tensor, *weights: Tensor) -> Tensor:
        without_zoneout = x.new_empty(0, 0, 0)
        return gru(training, 0.0, x.contiguous(), h0.contiguous(), *weights, without_zoneout)[1:]

    return run


PACKAGES = (
    stacked(
        GRU_QAT,
        "gru-qat",
        f"gru_scan_persistent, its dense Triton kernel, unquantised, after one product for the input; {EACH}",
        gru_qat_of,
    ),
    stacked(
        TORCHRL,
        "torchrl",
        "gru_triton, which recurrent_backend='triton' calls, in fp32 tensors (for a bf16 case with bf16 recurrent "
        f"products), batch first and without resets; {EACH}",
        torchrl_of,
    ),
    stacked(
        FLASHRNN,
        "flashrnn",
        "flashrnn(function='gru', backend='cuda') with one head, its alternating kernels, after one product for the "
        f"input; {EACH}",
        flashrnn_of,
    ),
    stacked(
        FLASHRNN2,
        "flashrnn",
        "recurrence(cell='gru') of the fork 0z5a/flashrnn, its Triton kernel for inference, with one head, after one "
        f"product for the input; {EACH}",
        flashrnn2_of,
    ),
    stacked(
        HASTE,
        "haste_pytorch",
        f"GRUFunction, which haste_pytorch.GRU calls, without zoneout and dropout; {EACH}",
        haste_of,
    ),
)
