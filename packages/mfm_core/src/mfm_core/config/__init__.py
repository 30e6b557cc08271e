"""The configuration: keys and defaults, reading, rules across keys, and what follows from them."""

from mfm_core.config.defaults import get_cfg
from mfm_core.config.load import flatten, load_config
from mfm_core.config.plan import (
    RunPlan,
    device_of,
    method_of,
    modality_of,
    pictures_of,
    plan_run,
    schedule_of,
    task_of,
)
from mfm_core.config.validate import validate

__all__ = [
    "RunPlan",
    "device_of",
    "flatten",
    "get_cfg",
    "load_config",
    "method_of",
    "modality_of",
    "pictures_of",
    "plan_run",
    "schedule_of",
    "task_of",
    "validate",
]
