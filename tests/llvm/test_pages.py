"""Large tensors are asked for in large pages; small ones, and what was written, are left alone."""

import re
from pathlib import Path

import pytest
import torch

from tritongru.llvm import pages

SMAPS = Path("/proc/self/smaps")
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_only_large_tensors_are_asked_for_and_only_whole_pages_of_their_own(monkeypatch):
    asked = []
    monkeypatch.setattr(pages, "_advise", lambda: lambda address, length: asked.append((address, length)))
    pages.in_large_pages(torch.empty(pages.LEAST // 4 - 1))
    assert not asked
    tensor = torch.empty(pages.LEAST // 4 + 5)[5:]
    assert pages.in_large_pages(tensor) is tensor
    ((address, length),) = asked
    assert address % pages.mmap.PAGESIZE == 0
    assert tensor.data_ptr() <= address < tensor.data_ptr() + pages.mmap.PAGESIZE
    assert address + length == tensor.data_ptr() + tensor.nbytes


def test_without_a_system_to_ask_nothing_happens(monkeypatch):
    monkeypatch.setattr(pages, "_advise", lambda: None)
    tensor = torch.empty(pages.LEAST // 4)
    assert pages.in_large_pages(tensor) is tensor


@pytest.mark.skipif(not SMAPS.exists(), reason="the system does not tell what it was asked for")
def test_the_system_has_understood():
    def flags_of(address):
        """Of the mapping that an address lies in."""
        inside = False
        for line in SMAPS.read_text().splitlines():
            bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if bounds:
                inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
            elif inside and line.startswith("VmFlags:"):
                return line.split()[1:]
        raise AssertionError("no such mapping")

    if pages._advise() is None or not SWITCH.exists():
        pytest.skip("the system has no large pages")
    plain, asked = torch.empty(pages.LEAST // 4), pages.in_large_pages(torch.empty(pages.LEAST))
    assert "hg" not in flags_of(plain.data_ptr() + pages.LEAST // 2)
    assert "hg" in flags_of(asked.data_ptr() + pages.LEAST // 2)


def test_outputs_and_what_is_kept_are_asked_for(monkeypatch):
    pytest.importorskip("llvmlite")
    import tritongru
    from tritongru.llvm import launch

    asked = []
    monkeypatch.setattr(launch, "in_large_pages", lambda tensor: asked.append(tuple(tensor.shape)) or tensor)
    gru = tritongru.GRU(3, 4, bidirectional=True, impl="llvm")
    x = torch.randn(5, 2, 3, requires_grad=True)
    gru(x)[0].sum().backward()
    assert asked == [(10, 2, 4), (10, 2, 5, 4), (10, 3)]
