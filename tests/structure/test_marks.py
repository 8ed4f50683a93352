"""Which tests run by default, and which are slow."""

import types

import conftest
import pytest
from processes import ROOT

pytestmark = pytest.mark.quick


def test_every_third_case_runs_by_default():
    slow = []

    class Item(types.SimpleNamespace):
        def get_closest_marker(self, name):
            return pytest.mark.every(3).mark if name == "every" and "often" not in self.nodeid else None

        def add_marker(self, mark):
            slow.append((self.nodeid, mark.name))

    conftest.leave_some([Item(nodeid=f"test.py::{name}[{case}]") for case in range(5) for name in ("often", "seldom")])
    assert slow == [(f"test.py::seldom[{case}]", "slow") for case in (1, 2, 4)]


def test_of_the_others_every_second_is_slow_and_the_rest_are_rare():
    marked = []

    class Item(types.SimpleNamespace):
        def get_closest_marker(self, name):
            return pytest.mark.every(3, slow=2).mark

        def add_marker(self, mark):
            marked.append((self.nodeid, mark.name))

    conftest.leave_some([Item(nodeid=f"test.py::many[{case}]") for case in range(8)])
    kinds = {1: "slow", 2: "rare", 4: "slow", 5: "rare", 7: "slow"}
    assert marked == [(f"test.py::many[{case}]", kind) for case, kind in kinds.items()]


def test_ci_runs_the_default_and_the_slow_tests():
    text = (ROOT / ".ci" / "run").read_text()
    assert 'bash -euo pipefail -c "$command"' in text
    assert "-m pytest -m slow" in text
    assert "not slow and not rare" in (ROOT / "pyproject.toml").read_text()
