"""What `tools/run_net.py` calls for video: train, test or visualise, dry-run, doctor."""

from __future__ import annotations

from functools import partial

from fvcore.common.config import CfgNode

from mfm_core.tasks import commands
from mfm_video.modality import VIDEOS

dry_run = partial(commands.dry_run, modality=VIDEOS)
doctor = partial(commands.doctor, modality=VIDEOS)


def main(cfg: CfgNode) -> int:
    """One process of a run; returns the exit code."""
    return commands.main(cfg, VIDEOS)
