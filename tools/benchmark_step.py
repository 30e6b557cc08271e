"""A pre-training step, forward to optimizer step, beside the same model in its plain form: MaskFeat (ViT-B) and MFM.

Ours is `Trainer.train_step` itself: target, loss, backward, clipping, NaN guard, fused AdamW. The plain side has the
same weights, images and masks; attention, HOG and spectra as the ancestors write them (`benchmark_plain.py`), torch's
clip_grad_norm_ and torch's AdamW as it comes: in fp32 on a CPU, under fp16 autocast with a GradScaler on a GPU.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmark_plain import plain_form, plain_mfm_form
from benchmark_timing import Row, median_times, pictures, product, threads_of
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mfm_core.checkpoint.state import TrainState
from mfm_core.config import load_config, plan_run
from mfm_core.config.plan import IMAGENET_TRAIN_IMAGES
from mfm_core.engine.dry_run import forward_macs
from mfm_core.engine.guard import StepGuard
from mfm_core.engine.precision import DTYPES as ROUNDED
from mfm_core.engine.precision import autocast_factory, computes_bf16
from mfm_core.engine.trainer import Settings, Trainer
from mfm_core.interfaces import Batch
from mfm_core.methods.parts import masks_from_cfg
from mfm_core.objective import Pretraining
from mfm_core.optim.build import build_optimizer
from mfm_core.parallel.strategy import Single, Strategy
from mfm_core.parallel.world import World
from mfm_core.tasks.pretrain import PretrainTask
from mfm_image.models import build_model, example_input

CONFIGS = Path(__file__).parent.parent / "configs"
MASKFEAT = CONFIGS / "masked_ssl" / "in1k_VIT_B_MaskFeat_PT.yaml"
MFM = {
    "ViT-B": CONFIGS / "mfm" / "mfm_pretrain__vit_base__img224__300ep.yaml",
    "ResNet-50": CONFIGS / "mfm" / "mfm_pretrain__resnet50__img224__300ep.yaml",
}
DTYPES = {"fp32": torch.float32, **ROUNDED}
PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices whose product measures what the device can do."""
LOSS_TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}
"""Relative. HOG of 8-bit images has ties (see `mfm_core.targets.hog`), which a GPU convolution may decide otherwise."""
NORM_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}
ROUNDED_TOLERANCE = 1e-2
"""Of the loss in bf16 or fp16."""
DENSE_PEAK = {"H100": 989.0, "H200": 989.0}
"""TFLOP/s of 16-bit matrix products without sparsity, by the manufacturer's data sheets (SXM modules)."""


@dataclass
class Side:
    """One way to take the step: the precision it computes in, the step itself, and the GB it holds at most (GPU)."""

    precision: str
    run: Callable[[], object]
    peak_gb: float | None


class StepTask(PretrainTask):
    """Pre-training's own losses and weights, without its data."""

    def __init__(self, model: Pretraining) -> None:
        self.model = model


PlainForm = Callable[[Pretraining], Pretraining]
"""A copy of the model, with the same weights, in its plain form."""


@dataclass(frozen=True)
class Case:
    """A model to measure: the row's name and the backbone's, its configuration and plain form.

    inputs: (cfg, how many) -> what goes in, normalised. sizes: the step's inputs by device. unit: what an input is.
    """

    name: str
    backbone: str
    config: Path
    plain_form: PlainForm
    inputs: Callable[[CfgNode, int], Tensor]
    example_input: Callable[[CfgNode, tuple[int, ...]], tuple[Tensor, ...]]
    sizes: dict[str, int]
    unit: str


def image_case(name: str, backbone: str, config: Path, plain_form: PlainForm) -> Case:
    """A model of images."""
    return Case(name, backbone, config, plain_form, images, example_input, {"cpu": 8, "cuda": 128}, "images")


def images(cfg: CfgNode, count: int) -> Tensor:
    """`count` pictures, (count, 3, H, W)."""
    return pictures(count, cfg.DATA.TRAIN_CROP_SIZE, torch.device("cpu"))


def benchmark_step(args: argparse.Namespace) -> Iterator[Row]:
    """MaskFeat's step on ViT-B."""
    return step_rows(args, image_case("step", "ViT-B", MASKFEAT, plain_form))


def benchmark_mfm(args: argparse.Namespace) -> Iterator[Row]:
    """MFM's step on ViT-B and on ResNet-50."""
    for backbone, config in MFM.items():
        yield from step_rows(args, image_case("mfm", backbone, config, plain_mfm_form))


def step_rows(args: argparse.Namespace, case: Case) -> Iterator[Row]:
    """A row for each way to take the step; one for the matrix products, which bound what a smaller format can gain."""
    device = torch.device(args.device)
    cpu = device.type == "cpu"
    size = args.batch or case.sizes[device.type]
    cfg = load_config(str(case.config), ["TRAIN.BATCH_SIZE", str(size), *args.set])
    threads = max(args.threads) if cpu else 0
    with threads_of(threads) if cpu else nullcontext():
        torch.manual_seed(0)
        model = build_model(cfg).to(device).train()
        batch = make_batch(cfg, model.backbone.grid, case.inputs(cfg, size), device)
        compiled = args.compile if args.compile is not None else not cpu
        sides = build_sides(cfg, model, case.plain_form, batch, compiled)
        equal = check_equal(model, case.plain_form(model), batch, {side.precision for side in sides.values()})
        kinds = dict.fromkeys(side.precision for side in sides.values())
        products = {kind: product(PRODUCT[device.type], DTYPES[kind], device) for kind in kinds}
        times = median_times({**{name: side.run for name, side in sides.items()}, **products}, args.repeats, device)
    flops = 6 * forward_macs(model, case.example_input(cfg, model.backbone.grid)) * size
    rates = {kind: 2 * PRODUCT[device.type] ** 3 / times[kind] for kind in kinds}
    peak = args.peak_tflops or dense_peak(device)
    model_name = " ".join([case.backbone, *args.set])
    base = next(iter(sides))
    for way, side in sides.items():
        remark = utilisation(flops, size, case.unit, times[way], side, rates[side.precision], peak)
        remark += f"; {equal}" if way == base else ""
        yield Row(case.name, f"{model_name}, batch {size}, {way}", threads, times[base], times[way], remark)
    yield from product_rows(case.name, sides[base].precision, kinds, times, rates, PRODUCT[device.type], threads)


def product_rows(
    name: str,
    base: str,
    kinds: Iterable[str],
    times: dict[str, float],
    rates: dict[str, float],
    side: int,
    threads: int,
) -> Iterator[Row]:
    """The matrix product of each precision beside the one of `base`; rates: FLOP/s."""
    for kind in kinds:
        if kind != base:
            remark = (
                f"{rates[base] / 1e12:.3g} and {rates[kind] / 1e12:.3g} TFLOP/s: "
                f"bounds what {kind} gains where the time goes into products"
            )
            yield Row(name, f"product {side}^3, {base} beside {kind}", threads, times[base], times[kind], remark)


def dense_peak(device: torch.device) -> float | None:
    """TFLOP/s by the data sheet, None for a device that is not in `DENSE_PEAK`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in DENSE_PEAK.items() if key in name), None)


def make_batch(cfg: CfgNode, grid: tuple[int, ...], inputs: Tensor, device: torch.device) -> Batch:
    """The inputs with the masks of the configuration, on the device."""
    masks, generator = masks_from_cfg(cfg, grid), torch.Generator().manual_seed(0)
    return Batch(
        inputs=inputs.to(device),
        labels=torch.zeros(len(inputs), dtype=torch.int64, device=device),
        mask=torch.stack([masks(generator, one) for one in inputs]).to(device),
        index=torch.arange(len(inputs)),
    )


def build_sides(
    cfg: CfgNode, model: Pretraining, plain_form: PlainForm, batch: Batch, compiled: bool
) -> dict[str, Side]:
    """The plain side first, then ours by precision; each with a copy of the weights of `model`."""
    device = batch.inputs.device
    base = "fp32" if device.type == "cpu" else "fp16"
    ours = ["fp32"] if device.type == "cpu" else []
    ours += ["bf16"] if computes_bf16(device) else []
    builders = {f"plain {base}": (base, lambda: plain_step(cfg, plain_form(model), batch, base))}
    for kind in ours:
        builders[f"ours {kind}"] = kind, lambda kind=kind: our_step(cfg, model, batch, kind, compiled=False)
    if compiled:
        last = ours[-1]
        builders[f"ours {last}, compiled"] = last, lambda: our_step(cfg, model, batch, last, compiled=True)
    return {name: Side(kind, *measured(build, device)) for name, (kind, build) in builders.items()}


def measured(build: Callable[[], Callable], device: torch.device) -> tuple[Callable, float | None]:
    """What `build` makes, and the GB that it adds at most to a GPU's memory, the batch left out; None on a CPU."""
    if device.type != "cuda":
        return build(), None
    before = torch.cuda.memory_allocated(device)
    run = build()
    for _ in range(2):  # the first step compiles and makes the optimizer's state
        run()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return run, (torch.cuda.max_memory_allocated(device) - before) / 1e9


@dataclass(frozen=True)
class Way:
    """How steps of image models are taken, in the device's best precision. threads: of a CPU; 0 on a GPU."""

    device: torch.device
    size: int
    precision: str
    compiled: bool
    threads: int

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Way:
        """As the command line says: 8 images on a CPU, 128 on a GPU, where it says nothing."""
        device = torch.device(args.device)
        cpu = device.type == "cpu"
        return cls(
            device=device,
            size=args.batch or (8 if cpu else 128),
            precision="bf16" if computes_bf16(device) else "fp32",
            compiled=args.compile if args.compile is not None else not cpu,
            threads=max(args.threads) if cpu else 0,
        )

    def __str__(self) -> str:
        return f"batch {self.size}, {self.precision}{', compiled' if self.compiled else ''}"

    def threads_set(self) -> AbstractContextManager:
        """Inside, torch computes on these threads."""
        return threads_of(self.threads) if self.threads else nullcontext()


def build_step(cfg: CfgNode, way: Way) -> tuple[Callable, float | None, int]:
    """A training step, the GB that it adds to a GPU's memory, and the multiply-adds of an image's forward pass."""
    torch.manual_seed(0)
    model = build_model(cfg).to(way.device).train()
    batch = make_batch(cfg, model.backbone.grid, images(cfg, way.size), way.device)
    run, peak = measured(lambda: our_step(cfg, model, batch, way.precision, way.compiled), way.device)
    return run, peak, forward_macs(model, example_input(cfg, model.backbone.grid))


def our_step(cfg: CfgNode, model: Pretraining, batch: Batch, precision: str, compiled: bool) -> Callable:
    """One call of the training loop's step on a copy of `model`."""
    return step_under(Single(World(device=batch.inputs.device)), cfg, copy.deepcopy(model), batch, precision, compiled)


def step_under(
    strategy: Strategy, cfg: CfgNode, model: Pretraining, batch: Batch, precision: str, compiled: bool = False
) -> Callable:
    """One call of the training loop's step on `model`, which the strategy may take apart; batch: this process's."""
    device = batch.inputs.device
    guard = StepGuard.from_cfg(cfg, device, "fp32")
    strategy.shard(model)
    state = TrainState(
        model=model,
        optimizer=build_optimizer(model, cfg, strategy.optimizer),
        scaler=strategy.scaler(precision == "fp16"),
        average=None,
        guard=guard,
        strategy=strategy,
        meters={name: torch.zeros((), dtype=torch.float64, device=device) for name in ("loss", "steps", "clipped")},
    )
    trainer = Trainer(
        task=StepTask(model),
        model=strategy.wrap(torch.compile(model) if compiled else model),
        state=state,
        average=None,
        loader=None,
        plan=plan_run(cfg, IMAGENET_TRAIN_IMAGES, world_size=1),
        settings=Settings.from_cfg(cfg, precision),
        world=strategy.world,
        guard=guard,
        log=None,
        saver=None,
    )
    return lambda: trainer.train_step(batch)


def plain_step(cfg: CfgNode, model: Pretraining, batch: Batch, precision: str) -> Callable:
    """The step as one writes it down, on a `model` in its plain form."""
    device = batch.inputs.device
    autocast = autocast_factory(precision, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.SOLVER.WARMUP_START_LR)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def run() -> None:
        with autocast():
            loss = model(batch.inputs, batch.mask).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), cfg.SOLVER.CLIP_GRAD_L2NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return run


def check_equal(model: Pretraining, plain: Pretraining, batch: Batch, precisions: set[str]) -> str:
    """Whether both sides compute the same loss and gradient norm, in words; raises SystemExit where they do not."""
    device = batch.inputs.device.type
    loss, norm = loss_and_norm(plain, batch, "fp32")
    our_loss, our_norm = loss_and_norm(copy.deepcopy(model), batch, "fp32")
    errors = {"loss, fp32": (abs(our_loss / loss - 1), LOSS_TOLERANCE[device])}
    errors["gradient norm, fp32"] = abs(our_norm / norm - 1), NORM_TOLERANCE[device]
    for precision in sorted(precisions - {"fp32"}):
        rounded, _ = loss_and_norm(copy.deepcopy(model), batch, precision)
        errors[f"loss, {precision}"] = abs(rounded / loss - 1), ROUNDED_TOLERANCE
    for what, (error, tolerance) in errors.items():
        if not error <= tolerance:
            raise SystemExit(f"ours and plain differ: {what}, by {error:.1e} (at most {tolerance:g})")
    return "ours differs by " + ", ".join(f"{error:.0e} ({what})" for what, (error, _) in errors.items())


def loss_and_norm(model: Pretraining, batch: Batch, precision: str) -> tuple[float, float]:
    """Of one forward and backward pass."""
    with autocast_factory(precision, batch.inputs.device)():
        loss = model(batch.inputs, batch.mask).loss
    loss.backward()
    return loss.item(), nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()


def utilisation(flops: float, size: int, unit: str, seconds: float, side: Side, rate: float, peak: float | None) -> str:
    """Images or clips per second, memory, and the model's operations per second as shares of what the device can do.

    flops: of the model per step (forward and backward, 3 times the forward pass; nothing is counted for HOG and the
    optimizer). rate: FLOP/s of a large matrix product in the same format. peak: TFLOP/s of the data sheet.
    """
    speed = flops / seconds
    digits = 0 if size / seconds >= 100 else 1 if size / seconds >= 1 else 3
    parts = [f"{size / seconds:.{digits}f} {unit}/s"]
    parts += [f"peak memory {side.peak_gb:.1f} GB"] if side.peak_gb is not None else []
    scale, unit = (1e12, "TFLOP/s") if speed > 1e12 else (1e9, "GFLOP/s")
    parts += [f"{speed / scale:.{1 if scale > 1e9 else 0}f} {unit}, {speed / rate:.0%} of a {side.precision} product's"]
    parts += [f"{speed / peak / 1e12:.1%} of {peak:g} TFLOP/s"] if peak and side.precision != "fp32" else []
    return ", ".join(parts)
