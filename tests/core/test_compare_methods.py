"""What the comparison of methods reads from the logs of its runs."""

import importlib.util
import json
import sys

import pytest
from paths import TOOLS

spec = importlib.util.spec_from_file_location("compare_methods", TOOLS / "compare_methods.py")
tool = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its data classes look for their module
spec.loader.exec_module(tool)
PLAN = {"kind": "run", "plan": {"epochs": 2, "steps_per_epoch": 300, "batch_size": 10}}


@pytest.mark.parametrize(
    ("speeds", "cost"),
    [
        ([None, 10.0, 10.0, 10.0], ("10 min", "3.0 GB")),
        ([None, 50.0], ("2 min", "1.0 GB")),
        ([None], ("", "0.0 GB")),
        ([], ("", "")),
    ],
)
def test_cost_of_whatever_was_logged(speeds, cost, tmp_path):
    """The first step after each start has no speed yet, and short runs log few."""
    steps = [{"kind": "step", "images_per_s": speed, "memory_gb": float(i)} for i, speed in enumerate(speeds)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, [PLAN, *steps])))
    assert tool.cost(tmp_path) == cost
