"""The training loop: data, forward, loss, backward, clip, step. It never asks what it trains."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial

import torch
from fvcore.common.config import CfgNode
from timm.utils import ModelEmaV3
from torch import Tensor

from mfm_core.checkpoint.saver import Saver
from mfm_core.checkpoint.state import TrainState
from mfm_core.config.plan import RunPlan
from mfm_core.data.loader import Loader
from mfm_core.engine.guard import RunningStatistics, StepGuard
from mfm_core.engine.log import RunLog
from mfm_core.engine.precision import autocast_factory
from mfm_core.engine.randomness import seed_everything
from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile, Batch, Task
from mfm_core.monitor.meters import Throughput, peak_memory_gb
from mfm_core.optim.build import follow
from mfm_core.parallel import stop
from mfm_core.parallel.world import World

logger = logging.getLogger(__name__)
A_FEW = 5
"""Unreadable files that stop no run, in whatever small folder."""


@dataclass(frozen=True)
class Settings:
    """The keys that the loop itself reads."""

    seed: int
    precision: str
    clip_norm: float | None
    clip_value: float | None
    log_period: int
    checkpoint_period: int
    checkpoint_steps: int
    stop_step: int
    max_bad_share: float

    @classmethod
    def from_cfg(cls, cfg: CfgNode, precision: str) -> Settings:
        """Read from the configuration; `precision` is already decided."""
        return cls(
            seed=cfg.RNG_SEED,
            precision=precision,
            clip_norm=cfg.SOLVER.CLIP_GRAD_L2NORM or None,
            clip_value=cfg.SOLVER.CLIP_GRAD_VAL or None,
            log_period=cfg.LOG_PERIOD,
            checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
            checkpoint_steps=cfg.TRAIN.CHECKPOINT_STEPS,
            stop_step=cfg.TRAIN.STOP_STEP,
            max_bad_share=cfg.DATA.MAX_BAD_SHARE,
        )


class Trainer:
    """Trains `task` from `state.step` to the end of `plan`.

    model: what is called in the step (wrapped, perhaps compiled); state.model is the bare one. average: the moving
    average of the weights, or None.
    """

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        state: TrainState,
        average: ModelEmaV3 | None,
        loader: Loader,
        plan: RunPlan,
        settings: Settings,
        world: World,
        guard: StepGuard,
        log: RunLog,
        saver: Saver,
    ) -> None:
        self.task, self.model, self.state, self.average = task, model, state, average
        self.loader, self.plan, self.settings, self.strategy = loader, plan, settings, state.strategy
        self.world, self.guard, self.log, self.saver = world, guard, log, saver
        self.autocast = autocast_factory(settings.precision, world.device)
        self.statistics = RunningStatistics(state.model, world)
        self.throughput = Throughput()
        self.vote = stop.StopVote(world)
        self._saved_step = -1

    def train(self) -> bool:
        """Runs to the end; False where it was told to stop before and has saved."""
        try:
            return self._train()
        finally:
            self.saver.leave()

    def _train(self) -> bool:
        whole = self._log_missing_epoch()
        while self.state.step < self.plan.total_steps:
            if self._stops_here() or stop.agreed(self.world):
                self.settle(wait=True)
                if self._saved_step != self.state.step:
                    self.check()
                    self.save(required=True)
                return False
            self.train_epoch()
            if self.state.step % self.plan.steps_per_epoch == 0:
                whole = self.end_epoch()
        return whole

    def _log_missing_epoch(self) -> bool:
        """Evaluates the untrained model, as epoch 0; or the epoch that was saved before a kill, and not evaluated."""
        epoch, inside = divmod(self.state.step, self.plan.steps_per_epoch)
        missing = inside == 0 and self.world.from_main(self.log.last_epoch) != epoch
        return self.log_epoch() if missing else True

    def train_epoch(self) -> None:
        """The rest of the epoch that `state.step` is in, or until the run shall stop."""
        epoch, done = divmod(self.state.step, self.plan.steps_per_epoch)
        if done == 0:
            for meter in self.state.meters.values():
                meter.zero_()
        self.loader.batch_sampler.set_position(epoch, done)
        self.model.train()
        for batch in self.loader:
            loss, grad_norm = self.train_step(batch)
            self.throughput.step(len(self.plan.cut[done]) * self.plan.views)
            done += 1
            if self.state.step % self.settings.log_period == 0:
                self.log_step(loss, grad_norm)
            if self._stops_here() or self.vote.decided():
                return
            steps = self.settings.checkpoint_steps
            if steps and self.state.step % steps == 0 and self.state.step % self.plan.steps_per_epoch:
                with self.throughput.paused():
                    self.check()
                    self.save()

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step; the loss over the whole global batch and the gradient norm before clipping."""
        step, optimizer, scaler = self.state.step, self.state.optimizer, self.state.scaler
        seed_everything(self.settings.seed, "step", step, self.world.rank)
        follow(optimizer, partial(self.plan.lr, step))
        parts = [self.task.prepare(part) for part in batch.to(self.world.device).split(self.plan.accum_steps)]
        weights = torch.stack([self.task.weight(part) for part in parts])
        total, votes = self.world.all_sum(self.vote.with_vote(weights.sum())).unbind()
        self.vote.count(votes)
        shares = weights / total
        losses, statistics = [], self.statistics.read()
        for i, (part, share) in enumerate(zip(parts, shares)):
            with self.strategy.accumulate(self.model, last=i == len(parts) - 1):
                with self.autocast():
                    part_loss = self.task.loss(self.model, part)
                scaler.scale(part_loss * share * self.world.size).backward()
            losses.append(part_loss.detach() * share)
        loss = self.world.all_sum(sum(losses))
        scaler.unscale_(optimizer)
        grad_norm = self.strategy.clip(optimizer, self.settings.clip_norm, self.settings.clip_value)
        fault = self.guard.judge(step, loss, grad_norm, batch.index, torch.stack(losses))
        self._optimizer_step(fault)
        self.statistics.settle(statistics, fault)
        if self.average is not None:
            self.strategy.update_average(self.average, self.state.model)
        self.state.step += 1
        self._count(loss, grad_norm, fault)
        return loss, grad_norm

    def _optimizer_step(self, fault: Tensor) -> None:
        """Leaves weights and moments alone where `fault` is 1.

        torch's fp16 scaler has seen the gradients in `unscale_` and adapts its scale.
        """
        self.strategy.step(self.state.optimizer, fault)
        self.state.scaler.update()
        self.strategy.zero_grad(self.model, self.state.optimizer)

    def _count(self, loss: Tensor, grad_norm: Tensor, fault: Tensor) -> None:
        meters, clip = self.state.meters, self.settings.clip_norm
        meters["loss"] += torch.where(fault > 0, 0.0, loss)
        meters["steps"] += 1 - fault
        if clip is not None:
            meters["clipped"] += grad_norm > clip

    def log_step(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Reads the numbers of this step from the device and logs them."""
        self.check()
        self.settle(wait=False)
        step = self.state.step
        epoch, inside = divmod(step - 1, self.plan.steps_per_epoch)
        values = {
            "epoch": step / self.plan.steps_per_epoch,
            "loss": float(loss),
            "lr": self.plan.lr(step - 1),
            "grad_norm": float(grad_norm),
            "images_per_s": self.throughput.images_per_s,
            "memory_gb": peak_memory_gb(self.world.device),
            "eta_s": self.throughput.eta_s(self.plan.total_steps - step, self.plan.epochs - epoch),
            "skipped_steps": int(self.guard.skipped),
            **{name: float(value) for name, value in self.task.metrics().items()},
        }
        counters = {
            "epoch": epoch + 1,
            "epochs": self.plan.epochs,
            "step": inside + 1,
            "steps": self.plan.steps_per_epoch,
            "unit": self.plan.unit,
        }
        self.log.step(step, counters, values)

    def end_epoch(self) -> bool:
        """Saves where that is due, then evaluates: what a kill in between leaves out, the next start makes up for.

        False where the run was told to stop during evaluation.
        """
        epoch = self.state.step // self.plan.steps_per_epoch
        last = epoch == self.plan.epochs
        due = last or epoch % self.settings.checkpoint_period == 0
        with self.throughput.paused():
            self.check()
            if due:
                self.save(required=last)
            whole = self.log_epoch()
            if due and not last:  # the end of the run writes it, too
                self.log.report()
        return whole

    def log_epoch(self) -> bool:
        """Evaluates, and logs the epoch that has just ended (0: before training); False where it was interrupted."""
        epoch = self.state.step // self.plan.steps_per_epoch
        last = epoch == self.plan.epochs
        start = time.time()
        values = self._epoch_means()
        model = self.evaluated()
        try:
            values |= self.task.evaluate(model, epoch, last)
        except stop.Interrupted:
            return False
        if values:  # before the pictures, whose errors must not cost the numbers
            self.log.epoch(epoch, self.state.step, {**values, "evaluation_s": time.time() - start})
        for name, image, caption in self.task.pictures(model, epoch, last):
            self.log.picture(name, image, caption, epoch, self.state.step)
        self._log_bad_files([file for loader in self.task.eval_loaders() for file in loader.bad.values()])
        return True

    def evaluated(self) -> torch.nn.Module:
        """The model that evaluation looks at: the average where there is one, in evaluation mode."""
        model = self.average.module if self.average is not None else self.state.model
        return self.strategy.whole(model).eval()

    def save(self, required: bool = False) -> None:
        """Writes a checkpoint; a full disk costs this checkpoint only, unless it is `required`."""
        self.settle(wait=True)
        self.saver.start(self.state)
        self.settle(wait=required or not self.saver.background, required=required)

    def settle(self, wait: bool, required: bool = False) -> None:
        """Says how the save that is under way ended, if it has or we `wait`. All processes call."""
        outcome = self.saver.outcome(wait)
        if outcome is None:
            return
        if outcome.error is None:
            self._saved_step = outcome.step
            logger.info("saved %s", outcome.path)
            self.log.copy()
        elif required:
            raise UserError(outcome.error)
        else:
            self.log.warn(f"{outcome.error} Training goes on; the next checkpoint is tried as planned.")

    def _epoch_means(self) -> dict[str, float]:
        meters = self.state.meters
        steps = float(meters["steps"])
        if steps == 0:
            return {}
        means = {"train_loss": float(meters["loss"]) / steps}
        if self.settings.clip_norm is not None:
            means["clipped_share"] = float(meters["clipped"]) / steps
        return {**means, "images_per_s": self.throughput.images_per_s}

    def check(self) -> None:
        """Lists unreadable files of all ranks; raises UserError for too many of them and for a step that must stop.

        Files are counted from this start on: they may have been mended since the last, and an epoch meets them all.
        """
        for line in self.guard.check(self.task.file_name, self.world.gather):
            self.log.warn(line)
        met = self._log_bad_files(list(self.loader.bad.values()))
        share, files = self.settings.max_bad_share, self.plan.files
        if len(met) > tolerated(share, files):
            worst = met[0]
            raise UserError(
                f"{len(met)} of {files} training files cannot be read, more than the {tolerated(share, files)} that "
                f"DATA.MAX_BAD_SHARE {share:g} allows; the first is {worst.path} ({worst.reason}). "
                "List them all with `run_net.py doctor`."
            )

    def _log_bad_files(self, own: list[BadFile]) -> list[BadFile]:
        """Lists the unreadable files of all ranks, and returns them, each once."""
        met = {file.path: file for files in self.world.gather(own) for file in files}
        self.log.bad_files(list(met.values()), self.state.step // self.plan.steps_per_epoch)
        return list(met.values())

    def _stops_here(self) -> bool:
        return 0 < self.settings.stop_step <= self.state.step


def tolerated(share: float, files: int) -> int:
    """How many of so many training files may be unreadable: this share, or a few but no more than half; 0 is none."""
    return max(int(share * files + 1e-9), min(A_FEW, files // 2)) if share > 0 else 0
