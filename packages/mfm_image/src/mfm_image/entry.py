"""What `tools/run_net.py` calls for images: train, test or visualise, dry-run, doctor."""

from __future__ import annotations

from functools import partial

from fvcore.common.config import CfgNode

from mfm_core.tasks import commands
from mfm_image.modality import IMAGES
from mfm_image.tasks.visualise import visualise

COMMANDS = {"visualise": visualise}
"""TASK -> what does it, where that is not training or testing a model."""
dry_run = partial(commands.dry_run, modality=IMAGES)
doctor = partial(commands.doctor, modality=IMAGES)


def main(cfg: CfgNode) -> int:
    """One process of a run; returns the exit code."""
    return COMMANDS.get(cfg.TASK, train)(cfg)


def train(cfg: CfgNode) -> int:
    """Trains, or tests where TRAIN.ENABLE is off."""
    return commands.train(cfg, IMAGES)
