"""tools/run_net.py as a module, once for all tests."""

from __future__ import annotations

import importlib.util

from paths import TOOLS

_spec = importlib.util.spec_from_file_location("run_net", TOOLS / "run_net.py")
run_net = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run_net)
