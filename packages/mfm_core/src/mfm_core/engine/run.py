"""One run from configuration to finished report: joins the processes, builds, resumes, trains or evaluates."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from functools import partial, reduce
from operator import getitem
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from timm.utils import ModelEmaV3

from mfm_core.checkpoint.init_from import init_from
from mfm_core.checkpoint.resume import machines_of, newest_checkpoint
from mfm_core.checkpoint.saver import saver_from_cfg
from mfm_core.checkpoint.state import TrainState
from mfm_core.config import plan_run, validate
from mfm_core.config.plan import UNTRAINED_TASKS, device_of, task_of, trains
from mfm_core.data.loader import build_loader, death_of_worker
from mfm_core.data.sampler import TrainSampler
from mfm_core.engine.alike import (
    require_one_configuration,
    require_same_weights,
    require_same_work,
    require_shared,
)
from mfm_core.engine.dry_run import describe_run
from mfm_core.engine.guard import StepGuard
from mfm_core.engine.log import RunLog, prepare_folder, setup_logging
from mfm_core.engine.one_writer import only_writer
from mfm_core.engine.precision import choose_precision
from mfm_core.engine.randomness import seed_everything
from mfm_core.engine.start import Setup, begin, clear_away
from mfm_core.engine.trainer import Settings, Trainer
from mfm_core.errors import UserError
from mfm_core.mirror import Mirror
from mfm_core.monitor.environment import describe
from mfm_core.optim.build import build_optimizer
from mfm_core.parallel import signals, stop
from mfm_core.parallel.agree import together, wait_for_main
from mfm_core.parallel.batch_norm import synchronise_norms
from mfm_core.parallel.launch import let_main_speak
from mfm_core.parallel.strategies import build_strategy
from mfm_core.parallel.world import World, is_restart, join_world, leave_world, loss_of_peer
from mfm_core.paths import is_remote

logger = logging.getLogger(__name__)
TaskBuilder = Callable[[CfgNode, World, str], object]
"""(configuration, world, precision) to a `Task`."""


def run(cfg: CfgNode, build_task: TaskBuilder) -> int:
    """Runs one process of `cfg` and returns the exit code.

    0: done, or stopped at TRAIN.STOP_STEP. 2: a user's error. 75: a signal stopped it and it has saved.
    """
    world = World()
    try:
        world = join_world(device_of(cfg), cfg.DIST.TIMEOUT)
        require_one_configuration(cfg, world)
        if not cfg.TRAIN.AUTO_RESUME and is_restart(world):  # "begin anew" was for the first start
            cfg = changed(cfg, "TRAIN.AUTO_RESUME", True)
        mirror = _fetched(cfg, world) if is_remote(cfg.OUTPUT_DIR) else None
        cfg = working_in(mirror.folder, cfg) if mirror else cfg
        folder = together(partial(_prepared, cfg), world)
        if trains(cfg) and cfg.TRAIN.CHECKPOINT_FORMAT == "sharded":
            require_shared(folder, world)
        with only_writer(folder, world, cfg.DIST.TIMEOUT):
            return _run(cfg, build_task, world, mirror, folder)
    except UserError as error:
        let_main_speak()
        return exit_with(error)
    except Exception as error:  # those of training are dealt with where its log is
        if not (lost := loss_of_peer(error, world, cfg.DIST.TIMEOUT)):
            raise
        let_main_speak(3.0)
        exit_with(UserError(lost))
        return 1
    finally:
        # DDP holds the process group. Were it freed after `leave_world`, it would wait for the group's threads while
        # they wait for Python: some runs would hang when all is done.
        gc.collect()
        leave_world()


def _fetched(cfg: CfgNode, world: World) -> Mirror:
    """What stands for the address OUTPUT_DIR, with what is there. Raises UserError where it cannot be written."""
    if world.num_shards > 1 and cfg.TRAIN.CHECKPOINT_FORMAT == "sharded":
        raise UserError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR}: the machines' parts of a checkpoint need one folder that all share; "
            "take such a folder, or TRAIN.CHECKPOINT_FORMAT consolidated."
        )
    mirror = together(partial(Mirror, cfg.OUTPUT_DIR), world)
    together(lambda: _exchange(mirror) if world.is_main else None, world)
    # Where the machines share a home, the others find there what the main one has fetched, and leave it alone.
    together(lambda: mirror.fetch() if world.local_rank == 0 and not world.is_main else None, world)
    return mirror


def _exchange(mirror: Mirror) -> None:
    mirror.fetch()
    mirror.push()


def _prepared(cfg: CfgNode) -> Path:
    """The folder where the run writes. Raises UserError where it cannot."""
    folder = prepare_folder(cfg.OUTPUT_DIR)
    if not trains(cfg):
        return _folder_of_test(cfg, folder)
    prepare_folder(str(folder / "checkpoints"))  # not when training is done
    return folder


def working_in(folder: Path, cfg: CfgNode) -> CfgNode:
    """The configuration of a run that writes to `folder`."""
    return changed(cfg, "OUTPUT_DIR", str(folder))


def changed(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """A copy with another value of one key."""
    cfg = cfg.clone()
    cfg.defrost()
    *sections, name = key.split(".")
    reduce(getitem, sections, cfg)[name] = value
    cfg.freeze()
    return cfg


def _run(cfg: CfgNode, build_task: TaskBuilder, world: World, mirror: Mirror | None, folder: Path) -> int:
    """What happens between joining and leaving the other processes; nothing of it lives on.

    mirror: what OUTPUT_DIR is copied to, where it stands for an address. folder: where the run writes.
    """
    log = RunLog(None)
    try:
        together(partial(setup_logging, folder if world.is_main else None), world)
        warnings = validate(cfg)
        precision = choose_precision(cfg.TRAIN.PRECISION, cfg.TRAIN.MIXED_PRECISION, world.device)
        seed_everything(cfg.RNG_SEED, "weights")
        own = cfg if trains(cfg) else working_in(folder, cfg)
        task = together(partial(build_task, own, world, precision), world)
        require_same_work(task, precision, world)
        plan = plan_run(cfg, task.files, world.size, _machines(cfg, world))
        setup = Setup(cfg, task, plan, world, folder, precision, warnings, mirror)
        if not plan.trains:
            return _evaluate_only(setup)
        with signals.listening():
            trainer = build_trainer(setup)
            log = trainer.log
            finished = trainer.train()
            again = not finished and stop.agreed(world)
            log.end("finished" if finished else "stopped")
            if not finished:
                wait_for_main(world)
            if world.is_main:
                logger.info("%s: %s", "done" if finished else "stopped and saved", folder / "report.html")
            return _code(log, signals.EXIT_AGAIN if again else 0)
    except (UserError, torch.OutOfMemoryError) as error:
        error = error if isinstance(error, UserError) else memory_full(error, world.device)
        log.end("failed", str(error))
        let_main_speak()
        return exit_with(error)
    except KeyboardInterrupt:
        log.end("stopped", "interrupted")
        return 130
    except Exception as error:
        if death := death_of_worker(error, cfg.DATA_LOADER.NUM_WORKERS):
            log.end("failed", str(death))
            let_main_speak()
            return exit_with(death)
        lost = loss_of_peer(error, world, cfg.DIST.TIMEOUT)
        log.end("failed", lost or f"{type(error).__name__}: {error}")
        let_main_speak(3.0 if lost else 10.0)
        if lost is None:
            raise
        exit_with(UserError(lost))
        return 1


def _machines(cfg: CfgNode, world: World) -> int:
    """How many machines the batch is for: those of the first start. torchrun may go on with fewer, or more."""
    here, begun = world.num_shards, None
    if cfg.TRAIN.AUTO_RESUME and cfg.TRAIN.ENABLE and world.is_main:
        begun = machines_of(Path(cfg.OUTPUT_DIR) / "checkpoints", cfg.TRAIN.BATCH_SIZE * here)
    return world.from_main(begun) or here


def build_trainer(setup: Setup) -> Trainer:
    """The trainer of a run, with weights, optimizer and position restored where there is something to restore."""
    cfg, task, plan, world, folder = setup.cfg, setup.task, setup.plan, setup.world, setup.folder
    strategy = build_strategy(cfg.DIST, world, setup.precision)
    model = task.model.to(world.device)
    summary = _summary(setup)  # of norms that do not wait for other processes, which make none
    if cfg.BN.NORM_TYPE == "sync_batchnorm":
        synchronise_norms(model, world)
    average = ModelEmaV3(model, decay=cfg.TRAIN.EMA_DECAY) if cfg.TRAIN.EMA_DECAY > 0 else None
    for sharded in (model, average.module) if average is not None else (model,):
        strategy.shard(sharded)
    guard = StepGuard.from_cfg(cfg, world.device, setup.precision)
    state = TrainState(
        model=model,
        optimizer=build_optimizer(model, cfg, strategy.optimizer),
        scaler=strategy.scaler(setup.precision == "fp16"),
        average=average.module if average is not None else None,
        guard=guard,
        strategy=strategy,
        meters={
            name: torch.zeros((), dtype=torch.float64, device=world.device) for name in ("loss", "steps", "clipped")
        },
    )
    restored = begin(setup, state)
    notes = [f"strategy: {strategy.name}", *restored.notes]
    if plan.left_out:
        why = "AUG.REPEATED_SAMPLER" if plan.repetitions > 1 else "DATA_LOADER.DROP_LAST False takes all"
        notes.append(f"each epoch leaves out {plan.left_out} of {plan.files} files, others each time ({why})")
    notes += clear_away(cfg, world, folder, restored.continued)
    # What a run that continues nothing finds is another's, the numbers before training too.
    done = state.step if restored.continued else -1
    log = RunLog(folder if world.is_main else None, done, rewind=True, mirror=setup.mirror)
    _log_start(setup, log, notes, summary, restored.warnings)
    sampler = TrainSampler(plan.cut, world.rank, world.size, cfg.RNG_SEED, repetitions=plan.repetitions)
    pin_memory = cfg.DATA_LOADER.PIN_MEMORY and world.device.type == "cuda"
    stepped = torch.compile(model) if cfg.TRAIN.COMPILE else model
    return Trainer(
        task=task,
        model=strategy.wrap(stepped),
        state=state,
        average=average,
        loader=build_loader(task.train_set, sampler, cfg.DATA_LOADER.NUM_WORKERS, pin_memory),
        plan=plan,
        settings=Settings.from_cfg(cfg, setup.precision),
        world=world,
        guard=guard,
        log=log,
        saver=saver_from_cfg(cfg, folder / "checkpoints", plan, world),
    )


def _summary(setup: Setup) -> list[str]:
    """The table of the dry run, where LOG_MODEL_INFO wants it; the model is still in one piece."""
    cfg, task, world = setup.cfg, setup.task, setup.world
    if not world.is_main or not cfg.LOG_MODEL_INFO:
        return []
    return describe_run(task.model, task.summary_input, cfg, setup.plan, setup.precision, world.device.type).lines()


def _log_start(setup: Setup, log: RunLog, notes: list[str], summary: list[str], more: list[str]) -> None:
    """What is run, with what and where; notes: what was restored. more: what to warn of about that."""
    cfg, task, plan, world = setup.cfg, setup.task, setup.plan, setup.world
    warnings = [*setup.warnings, *more]
    if not world.is_main:
        return
    for line in summary:
        logger.info("%s", line)
    where = f"{world.size} process(es) on {world.device.type}"
    copied = f", copied to {setup.mirror.address}" if setup.mirror else ""
    logger.info("%s, %s, %d training files, output in %s%s", where, setup.precision, plan.files, log.folder, copied)
    if cfg.NUM_GPUS > 1 and world.size == 1:
        note = f"NUM_GPUS {cfg.NUM_GPUS}: one process runs, for there is no GPU (or torchrun says so)."
        warnings = [*warnings, note]
    for note in notes:
        logger.info("%s", note)
    parameters = sum(p.numel() for p in task.model.parameters())
    training = {
        "epochs": plan.epochs,
        "steps_per_epoch": plan.steps_per_epoch,
        "batch_size": plan.batch_size,
        "lr": plan.schedule.base,
    }
    if not plan.trains:
        training = {}
    log.run(
        name=Path(cfg.OUTPUT_DIR).resolve().name,
        config=_plain(cfg),
        environment={**describe(), "precision": setup.precision, "processes": world.size, "device": str(world.device)},
        plan={"task": plan.task, "modality": plan.modality, "parameters": parameters, "images": plan.files, **training},
    )
    for message in [*warnings, *task.warnings]:
        log.warn(message)


def _folder_of_test(cfg: CfgNode, folder: Path) -> Path:
    """Where a run that trains nothing writes: OUTPUT_DIR, or test/ (knn/) in it where that is a training run's.

    What the training run logged and reported, and the scores of its own test, stay as they are.
    """
    if not (folder / "checkpoints").is_dir():
        return folder
    task = task_of(cfg)
    return prepare_folder(str(folder / (task if task in UNTRAINED_TASKS else "test")))


def _evaluate_only(setup: Setup) -> int:
    """TRAIN.ENABLE False, or a task that never trains: the numbers of the weights to test.

    They are logged as epoch 0, whatever the weights went through: the configuration does not say how long that was.
    """
    cfg, task, plan, world = setup.cfg, setup.task, setup.plan, setup.world
    if plan.task not in UNTRAINED_TASKS and not cfg.TEST.ENABLE:
        raise UserError("TRAIN.ENABLE and TEST.ENABLE are both off: there is nothing to do.")
    path = _weights_to_test(cfg, world)
    how = {"min_match": 1.0, "key": "TEST.CHECKPOINT_FILE_PATH", "average": True, "cfg": cfg}
    report = together(partial(init_from, task.model, path, **how), world)
    require_same_weights(task.model.state_dict(), path, world)
    lacking = [name for name in report.missing + report.other_shape if name not in task.model.optional]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; it cannot be tested by this config.")
    log = RunLog(setup.folder if world.is_main else None, mirror=setup.mirror)
    _log_start(setup, log, [f"testing {path}", *report.lines()], _summary(setup), report.warnings)
    model = task.model.to(world.device).eval()
    log.epoch(0, 0, task.evaluate(model, plan.epochs, last=True))
    for name, thing, caption in task.pictures(model, plan.epochs, last=True):
        log.picture(name, thing, caption, 0, 0)
    for loader in task.eval_loaders():
        met = {file.path: file for files in world.gather(list(loader.bad.values())) for file in files}
        log.bad_files(list(met.values()), 0)
    log.end("finished")
    return _code(log, 0)


def _weights_to_test(cfg: CfgNode, world: World) -> str:
    """What is named, or the newest checkpoint in OUTPUT_DIR. Raises UserError where there is none."""
    if cfg.TEST.CHECKPOINT_FILE_PATH:
        return cfg.TEST.CHECKPOINT_FILE_PATH
    folder = Path(cfg.OUTPUT_DIR) / "checkpoints"
    newest = world.from_main(newest_checkpoint(folder) if world.is_main else None)
    if newest is None:
        raise UserError(
            "TEST.CHECKPOINT_FILE_PATH is empty and OUTPUT_DIR has no checkpoints; name the weights to test."
        )
    return str(folder / newest.name)


def _code(log: RunLog, code: int) -> int:
    """The exit code of a run that came to its end, unless its files did not get to where OUTPUT_DIR is."""
    if log.is_copied:
        return code
    return exit_with(UserError(f"OUTPUT_DIR lacks what the run wrote last (see the warning); it lies in {log.folder}."))


def _plain(node: CfgNode) -> dict:
    return {key: _plain(value) if isinstance(value, dict) else value for key, value in node.items()}


TRAIN_IN_LESS = (
    "raise TRAIN.ACCUM_STEPS, lower TRAIN.BATCH_SIZE, or set MODEL.ACT_CHECKPOINT True. In evaluation, lower "
    "TEST.BATCH_SIZE"
)


def memory_full(error: torch.OutOfMemoryError, device: torch.device, remedy: str = TRAIN_IN_LESS) -> UserError:
    """One line for the user: whose memory is full, what torch says of it, and the remedy."""
    return UserError(f"The memory of {device} is full ({' '.join(str(error).split())[:160]}); {remedy}.")


def exit_with(error: UserError) -> int:
    """Prints the one line of a user's error and gives exit code 2."""
    sys.stderr.write(f"error: {error}\n")
    return 2
