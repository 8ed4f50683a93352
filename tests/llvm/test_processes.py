"""In processes of their own: forks, other users of OpenMP, pages that may not become executable, the end of Python."""

import sys
import textwrap

import pytest

pytest.importorskip("llvmlite")

from processes import ROOT, python

from tritongru.planning.instruction_sets import host_sets

pytestmark = [
    pytest.mark.skipif(not host_sets(), reason="no loop for this CPU"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, prctl"),
]

# Sizes at which torch's own operators take one thread: two hang in a child of a fork, after two in the parent.
START = """
import os, sys, time, threading
import torch, tritongru
from tritongru.planning import cpu_plan
assert cpu_plan.LEAST_WORK > 1
cpu_plan.LEAST_WORK = 1  # small calls take all threads
torch.manual_seed(0)
torch.set_num_threads(2)
gru, x = tritongru.GRU(16, 48, bidirectional=True, impl="llvm"), torch.randn(10, 24, 16)


def results(gru=gru):
    y, hn = gru(x)
    return [y.detach(), hn.detach(), *torch.autograd.grad((y, hn), list(gru.parameters()), (y.detach(), hn.detach()))]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def in_child(check, seconds=60):
    \"\"\"Forks; whether the check held in the child, or that it hangs.\"\"\"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        ok = False
        try:
            ok = check()
        finally:
            os._exit(0 if ok else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return "holds" if status == 0 else f"fails with {status}"
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"


"""


def said(code, **environment):
    run = python("-c", START + textwrap.dedent(code), PYTHONPATH=str(ROOT), **environment)
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr[-2000:])
    return run.stdout.split("\n")[:-1]


def test_a_child_of_a_fork_runs_in_one_thread():
    """The parent has used two, by torch's OpenMP; its team is not the child's. Its own children, too."""
    found = said("""
        from tritongru.llvm import threads
        expected = results()
        print(threads.count(), in_child(lambda: threads.count() == 1 and same(results(), expected)))
        print(in_child(lambda: in_child(lambda: same(results(), expected), 20) == "holds"))
        print(threads.count(), same(results(), expected))
    """)
    assert found == ["2 holds", "holds", "2 True"]


def test_a_child_fills_large_tensors_alone():
    """Zeros behind the ends, of gradients, and of states that begin anew; torch's operators would wait for others."""
    found = said("""
        large, x = tritongru.GRU(16, 128, impl="llvm"), torch.randn(40, 300, 16)
        lengths, reset = torch.arange(300) % 41, torch.arange(300) % 3 == 0
        grads = torch.randn(40, 300, 128), torch.randn(1, 300, 128)

        def all_of():
            y, hn = large(x, lengths=lengths)
            some = torch.autograd.grad((y, hn), list(large.parameters()), grads)
            with torch.no_grad():
                return [t.detach().numpy().tobytes() for t in (y, hn, *some, *large.step(x[0], hn, reset=reset))]

        expected = all_of()
        print(in_child(lambda: all_of() == expected, 30))
        print(all_of() == expected)
    """)
    assert found == ["holds", "True"]


@pytest.mark.slow
def test_a_child_compiles_what_the_parent_has_not():
    found = said("""
        twice = tritongru.GRU(16, 48, bidirectional=True, impl="torch").double()
        print(in_child(lambda: bool((results()[0] - gru.to_torch()(x)[0]).abs().max() < 1e-5)))
    """)
    assert found == ["holds"]


@pytest.mark.slow
def test_a_child_of_a_parent_that_compiles_does_not_wait_for_it():
    """A lock that another thread holds at the fork is held in the child for ever."""
    found = said("""
        from tritongru.llvm import compiling
        expected = results()
        taken, done = threading.Event(), threading.Event()

        def compile_long():
            plain = compiling.source

            def slow(*arguments):
                taken.set()
                done.wait(60)
                return plain(*arguments)

            compiling.source = slow
            compiling.cache.read = lambda key: None
            compiling.function_of("sse2" if "sse2" in compiling.SETS and compiling.host_sets()[0] != "sse2" else
                                  compiling.host_sets()[0], "double", "forward")

        compiler = threading.Thread(target=compile_long)
        compiler.start()
        taken.wait(60)

        def both():
            other = tritongru.GRU(16, 40, impl="llvm")  # a size that the launcher has not met
            return same(results(), expected) and other(x)[0].isfinite().all().item()

        print(in_child(both, 15))
        done.set()
        compiler.join()
    """)
    assert found == ["holds"]


@pytest.mark.slow
def test_data_loaders_of_processes():
    """Workers are forked while the parent trains."""
    found = said("""
        from torch.utils.data import DataLoader

        class Features(torch.utils.data.Dataset):
            def __len__(self):
                return 6

            def __getitem__(self, k):
                with torch.no_grad():
                    return gru(x[:, k : k + 1])[0]

        results()
        loaded = list(DataLoader(Features(), batch_size=None, num_workers=2, multiprocessing_context="fork"))
        print(same(loaded, [gru(x[:, k : k + 1])[0].detach() for k in range(6)]))
    """)
    assert found == ["True"]


@pytest.mark.slow
def test_beside_torchs_own_parallel_work():
    """torch's operators in two threads of Python while the loop runs in two others: one OpenMP library serves all."""
    found = said("""
        from concurrent.futures import ThreadPoolExecutor
        expected, a = results(), torch.randn(300, 300)
        product = a @ a
        with ThreadPoolExecutor(4) as executor:
            loops = [executor.submit(lambda: [same(results(), expected) for _ in range(5)]) for _ in range(2)]
            products = [executor.submit(lambda: [torch.equal(a @ a, product) for _ in range(50)]) for _ in range(2)]
            print(all(all(f.result(120)) for f in loops), len([f.result(120) for f in products]))
    """)
    assert found == ["True 2"]


@pytest.mark.slow
def test_beside_numba():
    """Another user of LLVM and of threads in one process."""
    pytest.importorskip("numba")
    found = said("""
        import numba, numpy
        expected = results()

        @numba.njit(parallel=True)
        def total(values):
            found = 0.0
            for k in numba.prange(len(values)):
                found += values[k]
            return found

        print(total(numpy.ones(100_000)), same(results(), expected), total(numpy.ones(100_000)))
    """)
    assert found == ["100000.0 True 100000.0"]


@pytest.mark.slow
def test_a_call_while_python_ends():
    """In an atexit function, with the pool: results are what they always are."""
    found = said("""
        import atexit
        from tritongru.llvm import threads
        threads._openmp = lambda: 0
        expected = results()
        atexit.register(lambda: print(same(results(), expected)))
    """)
    assert found == ["True"]


@pytest.mark.slow
def test_no_more_threads_than_torchs():
    """Counted by the system, while the loop runs."""
    found = said("""
        def count():
            return len(os.listdir("/proc/self/task"))

        torch.randn(1000, 1000) @ torch.randn(1000, 1000)
        before, most, done = count(), 0, threading.Event()

        def watch():
            global most
            while not done.is_set():
                most = max(most, count())

        watcher = threading.Thread(target=watch)
        watcher.start()
        with torch.no_grad():
            for _ in range(50):
                gru(x)
        done.set()
        watcher.join()
        print(most - 1 - before)  # the watcher
    """)
    assert int(found[0]) <= 0


REFUSED = """
import ctypes
import logging

prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    print("no such protection")
    sys.exit()
"""


def protected(code):
    found = said(textwrap.dedent(REFUSED) + textwrap.dedent(code))
    if found == ["no such protection"]:
        pytest.skip("the kernel has no PR_SET_MDWE")
    return found


def test_refused_pages_are_a_sentence():
    """Where memory that was written may not become executable, ``impl="llvm"`` says so."""
    found = protected("""
        try:
            gru(x)
        except RuntimeError as error:
            print(error)
        try:
            none = (None,) * 7
            torch.ops.tritongru.gru_forward(x[0], torch.zeros(9, 16), torch.zeros(1, 9, 3), *none, 24, False, "llvm")
        except RuntimeError as error:
            print(error)
    """)
    assert len(found) == 2
    for text in found:
        assert "this process is not allowed to make memory executable, which compiled code needs" in text


def test_refused_pages_leave_torchs_gru():
    """``impl="auto"`` runs it and logs the reason, once."""
    found = protected("""
        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(name)s: %(message)s")
        auto = tritongru.GRU(16, 48, bidirectional=True)
        theirs = auto.to_torch()
        print(same(results(auto), results(theirs)))
        print(torch.equal(auto(x)[0], theirs(x)[0]))
    """)
    reason = "this process is not allowed to make memory executable, which compiled code needs"
    assert found == [f"tritongru: falling back to torch's own GRU: {reason}", "True", "True"]


@pytest.mark.slow
def test_protection_that_comes_after_the_code():
    """What is compiled already goes on; nothing crashes."""
    found = said("""
        import ctypes
        expected = results()
        print(ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0))
        print(same(results(), expected))
    """)
    assert found in (["0", "True"], ["-1", "True"])


@pytest.mark.slow
def test_both_families_in_one_process():
    """The interpreter's kernels and the compiled loop, in turns, on the same layer."""
    pytest.importorskip("triton")
    found = said(
        """
        small = x[:3, :2]
        interpreted = tritongru.GRU(16, 48, bidirectional=True, impl="triton")
        interpreted.load_state_dict(gru.state_dict())
        for _ in range(2):
            ours, theirs = (module(small) for module in (gru, interpreted))
            print(bool((ours[0] - theirs[0]).abs().max() < 1e-5))
            grads = [torch.autograd.grad(y.sum(), list(m.parameters()))
                     for (y, _), m in ((ours, gru), (theirs, interpreted))]
            print(all((a - b).abs().max() < 1e-4 for a, b in zip(*grads)))
        """,
        TRITON_INTERPRET="1",
    )
    assert found == ["True"] * 4
