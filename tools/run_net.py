#!/usr/bin/env python
"""The one entry point: trains, tests, describes or checks what a configuration says.

python tools/run_net.py --cfg configs/masked_ssl/in1k_VIT_B_MaskFeat_PT.yaml DATA.PATH_TO_DATA_DIR path
python tools/run_net.py --cfg … --dry-run
python tools/run_net.py doctor --cfg …
python tools/run_net.py --cfg … --slurm --partition gpu --nodes 2 --gpus-per-node 8 --time 24:00:00
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from mfm_core.parallel import signals

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d's traces, before the one line that says what is wrong
if __name__ == "__main__" and not {"doctor", "--dry-run", "--slurm"} & set(sys.argv):
    signals.leave_until_listening()  # before what takes seconds to load

from fvcore.common.config import CfgNode  # noqa: E402

from mfm_core.config import device_of, load_config, modality_of, plan_run, validate  # noqa: E402
from mfm_core.errors import UserError  # noqa: E402
from mfm_core.parallel import slurm  # noqa: E402
from mfm_core.parallel.launch import check_shard, launch, local_processes  # noqa: E402
from mfm_core.paths import write_any_name  # noqa: E402

PACKAGES = {"image": "mfm_image", "video": "mfm_video"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does; --help shows the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see run_net.py --help.")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line: a command, options, and KEY VALUE KEY VALUE in any order with them."""
    parser = Parser(
        prog="run_net.py",
        usage="run_net.py [doctor] --cfg FILE [--dry-run] [--slurm] [options] [KEY VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a YAML configuration")
    parser.add_argument("--dry-run", action="store_true", help="describe the run and leave")
    parser.add_argument("--shard_id", type=int, default=0, help="this machine's number, from 0 to NUM_SHARDS - 1")
    parser.add_argument("--num_shards", type=int, metavar="N", help="the number of machines: NUM_SHARDS N")
    parser.add_argument("--opts", action="store_true", help="may stand before KEY VALUE, as in PySlowFast")
    parser.add_argument("--init_method", default="tcp://localhost:0", help="tcp://host:port of machine 0")
    slurm.add_options(parser)
    doctor = arguments[:1] == ["doctor"]
    arguments = slurm.join_seeds(arguments)
    options, overrides = parser.parse_known_args(arguments[1:] if doctor or arguments[:1] == ["train"] else arguments)
    unknown = [word for word in overrides[::2] if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    shards = [] if options.num_shards is None else ["NUM_SHARDS", str(options.num_shards)]
    options.doctor, options.overrides = doctor, [*overrides, *shards]
    slurm.check_options(parser, options)
    return options


def main(arguments: list[str]) -> int:
    """Returns the exit code.

    0: done. 1: the doctor found something to put right. 2: one line said what the user can put right. 75: a signal
    stopped the run, which has saved; the same command continues it. 130: interrupted from the keyboard.
    """
    write_any_name()
    try:
        options = parse(arguments)
        cfg = load_config(options.cfg, options.overrides)
        entry = entry_of(cfg)
        if options.doctor:
            lines, healthy = entry.doctor(cfg)
            print("\n".join(lines))
            return 0 if healthy else 1
        if options.slurm or options.dry_run:
            return describe_or_submit(cfg, entry, options)
        if signals.asked():
            return signals.EXIT_AGAIN
        if "RANK" in os.environ:  # torchrun has counted
            return entry.main(cfg)
        validate(cfg)  # here, and not in every process
        check_shard(options.shard_id, cfg.NUM_SHARDS)
        processes = local_processes(cfg.NUM_GPUS, device_of(cfg))
        return launch(entry.main, (cfg,), processes, cfg.NUM_SHARDS, options.shard_id, options.init_method)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def describe_or_submit(cfg: CfgNode, entry: ModuleType, options: argparse.Namespace) -> int:
    """For --slurm and --dry-run. What a description finds wrong is said before the job waits in a queue."""
    command = [str(Path(__file__).resolve()), "--cfg", options.cfg, *options.overrides]
    request = slurm.JobRequest.from_cfg(cfg, options, command) if options.slurm else None
    if request is not None:
        cfg = load_config(options.cfg, request.runs[0][3:])
        plan_run(cfg, sys.maxsize, request.nodes * request.processes_per_node)  # a description would take fewer
    lines = [*entry.dry_run(cfg), *(request.lines() if request else ())]
    if options.dry_run:
        print("\n".join(lines))
        return 0
    jobs = slurm.submit(request)
    warnings = [line for line in lines if line.startswith("warning:")]
    print(
        "\n".join([*warnings, *request.lines(), *(f"job {job.job_id}: its log is {job.paths.stdout}" for job in jobs)])
    )
    print(f"cancel with: scancel {jobs[0].job_id.split('_')[0]}")
    return 0


def entry_of(cfg: CfgNode) -> ModuleType:
    """The package that runs this configuration's kind of data."""
    package = PACKAGES[modality_of(cfg)]
    try:
        return importlib.import_module(f"{package}.entry")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(package):
            raise
        raise UserError(
            f"TRAIN.DATASET {cfg.TRAIN.DATASET} needs the package {package}, which is not installed; "
            f"pip install packages/{package}."
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
