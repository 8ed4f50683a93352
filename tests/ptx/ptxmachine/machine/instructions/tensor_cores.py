"""Matrix products, in float64 and then cut off as tensor cores do."""

import re
from typing import Any

import numpy as np

from ptxmachine.code.half import half
from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, f32, f64, u16, u32, u64
from ptxmachine.machine.instructions.descriptors import operand_offsets
from ptxmachine.machine.instructions.fragments import SHAPES, SUM, wide_sum
from ptxmachine.machine.instructions.lanes import Lanes
from ptxmachine.machine.memory import POISON

TF32 = u32(0xFFFFE000)  # the bits that count


class TensorCores(Lanes):
    def mma(
        self, name: str, ty: str, a: list[Array], b: list[Array], c: list[Array], mask: Array | None
    ) -> list[Array]:
        self.check_whole(mask, None, "mma")
        shape = SHAPES[name, 4 if ty == "tf32" else 2]
        A = self._operand(a, ty, shape.a, (shape.M, shape.K)).astype(f64)
        B = self._operand(b, ty, shape.b, (shape.K, shape.N)).astype(f64)
        C = np.stack(c, 2).reshape(self.num_warps, -1)[:, SUM].reshape(self.num_warps, shape.M, shape.N)
        found = np.empty((self.num_warps, shape.M * shape.N), f32)
        found[:, SUM] = self._rounded(A @ B + C).reshape(self.num_warps, -1)
        words = found.view(u32).reshape(*self.shape, -1)
        return [np.ascontiguousarray(words[:, :, i]) for i in range(words.shape[2])]

    def wgmma(
        self,
        name: str,
        ty: str,
        d: list[Array | None],
        a: Any,
        b: Any,
        scale: Any,
        flags: list[int],
        mask: Array | None,
        n: int,
    ) -> list[Array]:
        """`a` is a list of registers or, as `b`, a descriptor; `scale` tells whether d is added."""
        at = self.launch.instructions[n]
        self.check_whole(mask, at, "wgmma")
        N, K = map(int, re.findall(r"\d+", name)[1:])
        size = 4 if ty == "tf32" else 2
        # the signs of a and b; then, of 16 bits alone, what is transposed: b, or a and b
        turned = flags[2:] if size == 2 else []
        B = self._from_shared(b, (N, K), ty, turned[-1:] == [1], at)
        if isinstance(a, list):
            A = self._operand(a, ty, SHAPES["m16n8k16" if size == 2 else "m16n8k8", size].a, (16, K))
        else:
            whole = self._from_shared(a, (64, K), ty, len(turned) > 1 and turned[0] == 1, at)
            rows = 16 * (np.array(self.warps) % 4)[:, None] + np.arange(16)  # each warp has its own
            A = whole[np.arange(self.num_warps)[:, None], rows]
        row, column = wide_sum(N)
        old = np.stack([self.full(POISON[4] if value is None else value, u32) for value in d], 2)
        C = np.empty((self.num_warps, 16, N), f32)
        C[:, row, column] = old.view(f32)
        added = self.full(scale, np.bool_)[:, :1, None]
        product = A.astype(f64) @ np.swapaxes(B, 1, 2).astype(f64)
        found = self._rounded(product + np.where(added, C, f32(0)))
        words = np.ascontiguousarray(found[:, row, column]).view(u32)
        return [np.ascontiguousarray(words[:, :, i]) for i in range(N // 2)]

    def wgmma_fence(self) -> None:
        """Products are done at once."""

    def wgmma_commit(self) -> None: ...

    def wgmma_wait(self, left: int) -> None: ...

    def _operand(self, registers: list[Array], ty: str, places: Array, shape: tuple[int, int]) -> Array:
        """(warps, *shape) of an operand in registers."""
        words = np.stack([self.full(value, u32) for value in registers], 2)
        values = (words & TF32).view(f32) if ty == "tf32" else half(ty, words.view(u16), 0)
        return values.reshape(self.num_warps, -1)[:, places].reshape(self.num_warps, *shape)

    def _from_shared(
        self, descriptors: Any, shape: tuple[int, int], ty: str, transposed: bool, at: Instruction
    ) -> Array:
        """(warps, rows, K) of an operand in shared memory; four warps have a descriptor together."""
        words = self.full(descriptors, u64)
        assert (words == words[:, :1]).all()
        size = 4 if ty == "tf32" else 2
        known: dict[int, Array] = {}
        for descriptor in words[:, 0].tolist():
            if descriptor not in known:
                offsets = operand_offsets(descriptor, *shape, size, transposed)
                offsets = self.shared.inside(offsets, size, at, "wgmma")
                self.shared.read_by_tensor_core(offsets, size, self.warps, at)
                values = self.shared.views[size][offsets // size].reshape(shape)
                known[descriptor] = (values & TF32).view(f32) if ty == "tf32" else half(ty, values, 0)
        return np.stack([known[descriptor] for descriptor in words[:, 0].tolist()])

    def _rounded(self, exact: Array) -> Array:
        """float64 to float32, towards zero if tensor cores are to cut off."""
        near = exact.astype(f32)
        if not self.launch.options.truncate:
            return near
        over = np.abs(near.astype(f64)) > np.abs(exact)
        return np.where(over & np.isfinite(near), np.nextafter(near, f32(0)), near)
