"""Checks what a caller passes before native code reads it: types, sizes, devices and memory.

Where torch has an error text, it is torch's. Values on a GPU are never read here: the kernels clamp them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritongru.arguments.options import Options, autocast_dtype, steps_of
from tritongru.arguments.records import LayerCall

INTEGERS = (torch.int32, torch.int64)  # of lengths
Others = dict[str, tuple[Tensor | None, tuple[int, ...]]]  # tensors and the shapes that they should have, by name


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_layers(num_layers: object) -> None:
    if not isinstance(num_layers, int) or isinstance(num_layers, bool):
        raise TypeError(f"num_layers should be of type int, got: {type(num_layers).__name__}")
    if num_layers < 1:
        raise ValueError(f"num_layers should be at least 1, got {num_layers}")


def check_flags(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_dropout(dropout: object) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout should be a number in range [0, 1], got {dropout!r}")


def check_tensors(**values: object) -> None:
    """Needed for operators, too: torch passes None even if the schema says Tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} should be a Tensor, got {type(value).__name__}")


def check_dtype(input: Tensor, weight: Tensor) -> None:
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
            f"input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def check_features(input: Tensor, batch_sizes: Tensor | None, features: int) -> None:
    rank = 3 if batch_sizes is None else 2
    if input.dim() != rank:
        raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
    if input.size(-1) != features:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {features}, got {input.size(-1)}")


def check_weights(weights: object, options: Options) -> None:
    """The number of weights, that they are tensors, and that the first two, which determine all sizes, are matrices."""
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence):
        raise TypeError(f"weights should be a list or tuple of tensors, got {type(weights).__name__}")
    expected = options.num_layers * options.directions * options.tensors
    if len(weights) != expected:
        raise ValueError(
            f"weights should hold {expected} tensors ({options.tensors} for each of {options.num_layers} layers and "
            f"{options.directions} directions), got {len(weights)}"
        )
    for k, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            raise TypeError(f"weight {k} of the GRU should be a Tensor, got {type(weight).__name__}")
    for k in (0, 1):
        if weights[k].dim() != 2:
            raise RuntimeError(f"weight {k} of the GRU should have 2 dimensions, got {weights[k].dim()}")


def check_batch_sizes(batch_sizes: Any) -> Tensor:
    """batch_sizes, made contiguous: torch's GRU ignores strides, and reads at least one value."""
    check_tensors(batch_sizes=batch_sizes)
    if batch_sizes.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {scalar_type(batch_sizes)}")
    if batch_sizes.layout is not torch.strided or batch_sizes.dim() != 1:
        kind = str(batch_sizes.layout).removeprefix("torch.")
        raise RuntimeError(
            f"batch_sizes should be a dense 1-D tensor, got a {kind} one with {batch_sizes.dim()} dimensions"
        )
    if batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes should always be on CPU, got {batch_sizes.device}")
    if batch_sizes.shape[0] == 0:
        raise IndexError("index 0 is out of bounds for dimension 0 with size 0")
    return batch_sizes.contiguous()  # type: ignore[no-any-return]


def check_for_kernels(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> None:
    """What a kernel would not notice: it trusts the shapes and types that it is given."""
    check_weights(weights, options)
    if not 0 <= options.dropout <= 1:  # a module's attribute may have changed
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {options.dropout:g}")
    dtype, casts = input.dtype, autocast_dtype(input) is not None
    _check_same_device(input, hx, weights)
    if batch_sizes is None and steps_of(input, None, options) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if hx is not None and hx.dtype != dtype and not casts:
        raise RuntimeError(
            "Input and hidden tensors are not the same dtype, found input tensor with "
            f"{scalar_type(input)} and hidden tensor with {scalar_type(hx)}"
        )
    hidden, directions, each = weights[1].shape[-1], options.directions, options.tensors
    # What is copied on the way is read before the operators check it; they check everything.
    if (casts or directions == 2 or options.batch_first) and not torch.compiler.is_compiling():
        _check_storages((input, hx), weights)
    shapes = ((3 * hidden, input.shape[-1]), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,))
    for k, weight in enumerate(weights):
        shape = shapes[k % each] if k % each or k < directions * each else (3 * hidden, directions * hidden)
        if weight.shape != shape:
            raise RuntimeError(f"weight {k} of the GRU should have the shape {shape}, got {tuple(weight.shape)}")
        if weight.dtype != dtype and not casts:
            raise RuntimeError(f"weight {k} of the GRU should have the dtype {dtype}, got {weight.dtype}")


def check_for_torch(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> None:
    """What torch's own GRU would not notice: it reads past a storage that is too small, returns uninitialized memory
    for a bias on the device meta, and without biases reads the gates of a ``w_ih`` with too few rows out of bounds."""
    _check_storages((input, None, batch_sizes), weights if input.is_cuda else ())  # torch checks views itself
    _check_same_device(input, hx, weights)
    if options.bias:
        return
    for k, weight in enumerate(weights):
        if weight.dim() == 2 and weight.shape[0] < 3:
            raise RuntimeError(
                f"weight {k} of the GRU should have at least 3 rows, one for each gate, got {weight.shape[0]}"
            )


def check_order(data: Tensor, hx: Tensor | None, *indices: Tensor | None) -> None:
    """The indices of packed rows: torch reorders states by them without checking them."""
    if torch.compiler.is_compiling():
        return
    for name, order in zip(("sorted_indices", "unsorted_indices"), indices, strict=True):
        if order is not None:
            check_tensors(**{name: order})
            if order.device != data.device:
                raise RuntimeError(f"{name} should be on the device of the data, {data.device}, got {order.device}")
            _check_storage(name, order)
    if isinstance(hx, Tensor):
        _check_storage("hx", hx)


def _check_storages(own: Sequence[Tensor | None], weights: Sequence[Tensor]) -> None:
    """The storages of input, hx and batch_sizes, and of the weights."""
    for name, tensor in zip(("input", "hx", "batch_sizes"), own, strict=False):
        if tensor is not None:
            _check_storage(name, tensor)
    for k, weight in enumerate(weights):
        _check_storage(k, weight)


def _check_storage(name: str | int, tensor: Tensor) -> None:
    """The storage of a named tensor or numbered weight; tensors of a transform or a compiler have none."""
    if tensor.layout is torch.strided and torch._C._has_storage(tensor):
        check_memory(name, tensor)


def _check_same_device(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> None:
    device = input.device
    if hx is not None and hx.device != device:
        raise _elsewhere(input, "hidden", hx)
    for weight in weights:
        if weight.device != device:
            raise _elsewhere(input, "parameter", weight)


def _elsewhere(input: Tensor, kind: str, tensor: Tensor) -> RuntimeError:
    return RuntimeError(
        f"Input and {kind} tensors are not at the same device, found input tensor at {input.device} and {kind} tensor "
        f"at {tensor.device}"
    )


def scalar_type(tensor: Tensor) -> str:
    """The dtype as torch's C++ messages spell it: Float, Double, BFloat16."""
    return tensor.type().rpartition(".")[2].removesuffix("Tensor")


def check_ranks(x: Tensor, w_hh: Tensor) -> None:
    """The ranks of the two tensors that determine the sizes of all others."""
    if x.dim() != 2 or w_hh.dim() != 3:
        raise RuntimeError(f"x should have 2 dimensions and w_hh 3, got {x.dim()} and {w_hh.dim()}")


def check_needs(needs: Sequence[bool]) -> None:
    """Which of x, w_ih, w_hh, b_ih, b_hh, h0 and reset_state need a gradient."""
    if len(needs) != 7:
        raise RuntimeError(f"needs should hold 7 values, got {len(needs)}")


def check_layer(
    call: LayerCall,
    others: Others | None = None,  # tensors of a backward pass, each with its shape
    casts: bool = False,  # whether the dtypes may differ
) -> None:
    """The arguments of an operator, which anybody may call: a kernel trusts the sizes and types that it is given."""
    x, (w_ih, w_hh, b_ih, b_hh), h0, rows, reset_state = call
    batch, offsets = rows.batch, rows.offsets
    if x is None or w_ih is None or w_hh is None:
        check_tensors(x=x, w_ih=w_ih, w_hh=w_hh)
    check_ranks(x, w_hh)
    (N, I), (D, _, H) = x.shape, w_hh.shape
    if D not in (1, 2) or H < 1 or batch < 0:
        raise RuntimeError(
            f"there should be 1 or 2 directions, at least 1 hidden unit and a batch size of at least 0, got {D} "
            f"directions, hidden size {H} and batch size {batch}"
        )
    if (b_ih is None) != (b_hh is None):
        raise RuntimeError(f"b_ih and b_hh should be given together, got only {'b_hh' if b_ih is None else 'b_ih'}")
    device, dtype, size, strided = x.device, None if casts else x.dtype, x.itemsize, torch.strided
    given: Others = {
        "x": (x, (N, I)),
        "w_ih": (w_ih, (D * 3 * H, I)),
        "w_hh": (w_hh, (D, 3 * H, H)),
        "b_ih": (b_ih, (D * 3 * H,)),
        "b_hh": (b_hh, (D, 3 * H)),
        "h0": (h0, (D, batch, H)),
    }
    if others is not None:
        given |= others
    if reset_state is not None:
        one = reset_state.dim() == 3 and reset_state.shape[1] == 1
        given["reset_state"] = reset_state, (D, 1 if one else batch, H)
    for name, (tensor, shape) in given.items():
        if tensor is None or (
            tensor.dtype is dtype
            and tensor.shape == shape
            and tensor.device == device
            and tensor.layout is strided
            and tensor.is_contiguous()
            and tensor.storage_offset() * size + tensor.nbytes <= tensor.untyped_storage().nbytes()
        ):
            continue  # valid, and faster to find out than with check_tensor
        check_tensor(name, tensor, shape, dtype, device)
    if rows.ragged or reset_state is not None:
        _check_ragged(call, device)
    if offsets is not None:
        _check_offsets(offsets, N, batch, device)
    elif batch == 0 and N > 0:
        raise RuntimeError(f"x should have no rows for a batch size of 0, got {N}")
    elif batch > 0 and N == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    elif batch > 0 and N % batch > 0:
        raise RuntimeError(f"the number of rows of x should be a multiple of the batch size {batch}, got {N}")


def check_devices(**tensors: Tensor | None) -> None:
    """Devices, checked by the fake operators: torch also calls them if only one tensor is on the device meta, and would
    use the uninitialized memory that they return as the result."""
    first = next(iter(tensors))
    device: Any = getattr(tensors[first], "device", None)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise RuntimeError(f"{name} should be on the device of {first}, {device}, got {tensor.device}")


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device
) -> None:
    if tensor.shape != shape:
        raise RuntimeError(f"{name} should have the shape {shape}, got {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise RuntimeError(f"{name} should have the dtype {dtype} of x, got {tensor.dtype}")
    if tensor.device != device:
        raise RuntimeError(f"{name} should be on the device of x, {device}, got {tensor.device}")
    check_memory(name, tensor)


def check_kind(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    if tensor.dtype not in dtypes:
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        short = {torch.bool: "bool", torch.int64: "long"}[dtypes[-1]]
        raise RuntimeError(f"{name} should be {kinds}, got {tensor.dtype}; convert it with .{short}()")


def check_memory(name: str | int, tensor: Tensor) -> None:
    """A storage may be smaller than its tensor: FSDP, for example, frees that of unused parameters."""
    if tensor.layout is not torch.strided:
        raise RuntimeError(f"{name} should be a dense tensor, got layout {tensor.layout}")
    needed = int(tensor.nbytes)
    if needed and not tensor.is_contiguous():
        steps = ((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        needed = int(1 + sum(steps)) * tensor.itemsize
    if needed:
        needed += int(tensor.storage_offset()) * tensor.itemsize
    held = tensor.untyped_storage().nbytes()
    if held < needed:
        what = f"weight {name} of the GRU" if isinstance(name, int) else name
        raise RuntimeError(f"{what} needs {needed} bytes, but its storage, freed or shrunk, holds {held}")


def check_not_captured(data: Tensor) -> None:
    """batch_sizes is in host memory, so a CUDA graph would keep its values for every replay."""
    if data.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a PackedSequence cannot be captured into a CUDA graph, which would keep its lengths for every replay; "
            "capture a call with padded input, or call the layer outside the graph"
        )


def _check_ragged(call: LayerCall, device: torch.device) -> None:
    """Lengths of all values: what is not between 0 and T is clamped by every kernel."""
    batch, offsets, lengths, resets = call.rows
    if offsets is not None:
        raise RuntimeError("lengths and resets should not be given with offsets, which packed rows have instead")
    if resets is None and call.reset_state is not None:
        raise RuntimeError("reset_state needs resets, which say where it is used")
    if lengths is not None:
        check_kind("lengths", lengths, *INTEGERS)
        check_tensor("lengths", lengths, (batch,), None, device)
    if resets is not None:
        check_kind("resets", resets, torch.bool)
        T = call.x.shape[0] // batch if batch else resets.shape[0]
        check_tensor("resets", resets, (T, batch), None, device)


def _check_offsets(offsets: Tensor, rows: int, batch: int, device: torch.device) -> None:
    """Values on a GPU are not read: the kernels clamp them to the rows."""
    if offsets.dim() != 1 or offsets.shape[0] < 2 or offsets.dtype != torch.int64:
        raise RuntimeError(
            "offsets should be a 1-D int64 tensor with one more value than there are steps, got "
            f"{offsets.dtype} of shape {tuple(offsets.shape)}"
        )
    check_tensor("offsets", offsets, tuple(offsets.shape), None, device)
    if device.type == "cpu":
        sizes = offsets.diff()
        if offsets[0] != 0 or offsets[-1] != rows or sizes[0] > batch or (sizes < 0).any() or (sizes.diff() > 0).any():
            raise RuntimeError(
                f"offsets should rise from 0 to {rows}, the number of rows, by at most {batch} at first and never by "
                f"more than before, got {offsets.tolist()}"
            )


def check_rows(data: Tensor, batch_sizes: Tensor) -> int:
    """The number of rows that batch_sizes counts, for kernels; torch's error if the data has fewer."""
    check_memory("batch_sizes", batch_sizes)
    if (batch_sizes[1:] > batch_sizes[:-1]).any():
        raise RuntimeError(f"batch_sizes should never grow from step to step, got {batch_sizes.tolist()}")
    if batch_sizes[-1] < 0:
        raise RuntimeError(f"batch_sizes should never be negative, got {batch_sizes.tolist()}")
    rows = data.shape[0]
    counts = batch_sizes.clamp(max=rows + 1)  # the sums of larger ones might overflow
    ends = counts.cumsum(0)
    if ends[-1] > rows:
        step = int(torch.searchsorted(ends, rows, right=True))
        start = int(ends[step] - counts[step])
        raise RuntimeError(f"start ({start}) + length ({int(batch_sizes[step])}) exceeds dimension size ({rows}).")
    return int(ends[-1])
