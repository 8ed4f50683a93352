"""What a GRU means, whatever the numbers: segments, rows, directions, padding."""

import pytest
import torch
from layers import Case, build
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import tritongru

# In TF32 a difference in the last bit may move an operand by 2^-11; meaning is tested in full fp32.
pytestmark = pytest.mark.usefixtures("ieee")

CASE = Case(T=6, B=4, H=7)
EXACT = {"rtol": 0, "atol": 0}
ROUNDED = {"rtol": 0, "atol": 1e-6}  # products of another shape may sum in another order


def test_segments_with_carried_state_are_the_whole(device):
    gru, x, hx = build(CASE, device)
    whole, h_n = gru(x, hx)
    first, state = gru(x[:2], hx)
    second, state = gru(x[2:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole, **ROUNDED)
    torch.testing.assert_close(state, h_n, **ROUNDED)


def test_gradients_flow_across_segments(device):
    gru, x, hx = build(CASE, device)
    x.requires_grad_()
    whole = torch.autograd.grad(gru(x, hx)[1].sum(), x)[0]
    _, state = gru(x[:2], hx)
    parts = torch.autograd.grad(gru(x[2:], state)[1].sum(), x)[0]
    torch.testing.assert_close(parts, whole, **ROUNDED)


def test_a_row_alone_is_the_row_in_its_batch(device):
    gru, x, hx = build(Case(T=6, B=20, H=7, bidirectional=True), device)
    together, h_n = gru(x, hx)
    for b in (0, 15, 16, 19):
        alone, state = gru(x[:, b : b + 1].contiguous(), hx[:, b : b + 1].contiguous())
        torch.testing.assert_close(alone, together[:, b : b + 1], **ROUNDED)
        torch.testing.assert_close(state, h_n[:, b : b + 1], **ROUNDED)


def test_reverse_is_forward_on_the_flipped_input(device):
    both, x, hx = build(Case(T=6, B=4, H=7, bidirectional=True), device)
    one = tritongru.GRU(4, 7, impl="triton").to(device)
    one.load_state_dict({n: p for n, p in both.state_dict().items() if not n.endswith("_reverse")})
    reverse = tritongru.GRU(4, 7, impl="triton").to(device)
    reverse.load_state_dict(
        {n.removesuffix("_reverse"): p for n, p in both.state_dict().items() if n.endswith("_reverse")}
    )
    output, h_n = both(x, hx)
    ahead, ahead_state = one(x, hx[:1])
    back, back_state = reverse(x.flip(0), hx[1:])
    torch.testing.assert_close(output, torch.cat((ahead, back.flip(0)), dim=-1), **ROUNDED)
    torch.testing.assert_close(h_n, torch.cat((ahead_state, back_state)), **ROUNDED)


def test_final_states_are_in_the_output(device):
    gru, x, hx = build(Case(T=6, B=4, H=7, bidirectional=True), device)
    output, h_n = gru(x, hx)
    torch.testing.assert_close(output[-1, :, :7], h_n[0], **EXACT)
    torch.testing.assert_close(output[0, :, 7:], h_n[1], **EXACT)


def test_two_layers_are_one_over_the_other(device):
    gru, x, hx = build(Case(T=6, B=4, H=7, layers=2), device)
    lower = tritongru.GRU(4, 7, impl="triton").to(device)
    upper = tritongru.GRU(7, 7, impl="triton").to(device)
    state = gru.state_dict()
    lower.load_state_dict({n: p for n, p in state.items() if n.endswith("l0")})
    upper.load_state_dict({n.replace("l1", "l0"): p for n, p in state.items() if n.endswith("l1")})
    middle, first = lower(x, hx[:1])
    top, second = upper(middle, hx[1:])
    output, h_n = gru(x, hx)
    torch.testing.assert_close(output, top, **EXACT)
    torch.testing.assert_close(h_n, torch.cat((first, second)), **EXACT)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("sort", [True, False])
def test_packed_rows_are_rows_alone(sort, memory, device):
    """Padding never leaks: each sequence gives what it gives on its own, forward and backward."""
    lengths = [6, 4, 3, 1] if sort else [3, 6, 1, 4]
    gru, x, hx = build(Case(T=6, B=4, H=7, bidirectional=True, memory=memory), device)
    x.requires_grad_()
    hx.requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
    output, h_n = gru(packed, hx)
    padded, _ = pad_packed_sequence(output)
    weight = torch.randn_like(padded)
    leaves = (x, hx, *gru.parameters())
    found = torch.autograd.grad((padded * weight).sum() + h_n.sum(), leaves)
    total = 0.0
    for b, length in enumerate(lengths):
        alone, state = gru(x[:length, b : b + 1], hx[:, b : b + 1].contiguous())
        torch.testing.assert_close(padded[:length, b : b + 1], alone, **ROUNDED)
        torch.testing.assert_close(h_n[:, b : b + 1], state, **ROUNDED)
        assert padded[length:, b].eq(0).all()
        total = total + (alone * weight[:length, b : b + 1]).sum() + state.sum()
    for a, b in zip(found, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_packed_many_tiles(device):
    """More rows than one tile, and tiles whose every row ends early."""
    gru, _, _ = build(Case(H=5, bidirectional=True), device)
    rows = [torch.randn(length, 4, device=device) for length in [7] * 3 + [5] * 14 + [1] * 20]
    output, h_n = gru(pack_sequence(rows))
    expected, expected_h = gru.to_torch()(pack_sequence(rows))
    torch.testing.assert_close(output.data, expected.data, **ROUNDED)
    torch.testing.assert_close(h_n, expected_h, **ROUNDED)


def test_the_reset_gate_acts_after_the_product(device):
    """With r = 0 the recurrent part of n, b_hn included, is gone; with z = 0 the state is n."""
    gru, x, hx = build(CASE, device)
    with torch.no_grad():
        gru.bias_ih_l0[:7] = -1e4  # r = 0
        gru.bias_ih_l0[7:14] = -1e4  # z = 0
        gru.bias_hh_l0[14:] = 5.0
    expected = torch.tanh(x @ gru.weight_ih_l0[14:].t() + gru.bias_ih_l0[14:])
    torch.testing.assert_close(gru(x, hx)[0], expected, **ROUNDED)


def test_a_full_update_gate_keeps_the_state(device):
    gru, x, hx = build(CASE, device)
    with torch.no_grad():
        gru.bias_ih_l0[7:14] = 1e4  # z = 1
    torch.testing.assert_close(gru(x, hx)[0], hx.expand(6, 4, 7), **ROUNDED)
