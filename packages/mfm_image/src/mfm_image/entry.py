"""What `tools/run_net.py` calls for images: train, test or visualise, dry-run, doctor."""

from __future__ import annotations

from functools import partial

from fvcore.common.config import CfgNode

from mfm_core.tasks import commands
from mfm_image.modality import IMAGES

dry_run = partial(commands.dry_run, modality=IMAGES)
doctor = partial(commands.doctor, modality=IMAGES)


def main(cfg: CfgNode) -> int:
    """One process of a run; returns the exit code."""
    return commands.main(cfg, IMAGES)
