"""What each strategy stores on a GPU, for the recipes' models on 1 to 512 GPUs: the tables of docs/scaling.md.

    python tools/scaling.py              prints them
    python tools/scaling.py --write      puts them into the page

Everything is computed from the models' shapes, for training in bfloat16 on GPUs; nothing is built and no GPU is needed.
For one configuration, `run_net.py --cfg … --dry-run` says the same of the strategy and the processes that it names.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mfm_core.config import load_config
from mfm_core.engine.activations import Activations, count_activations
from mfm_core.engine.memory import copies
from mfm_core.optim.build import groups_from_cfg
from mfm_core.parallel.memory import STORED, Options, Sizes
from mfm_image.modality import IMAGES
from mfm_video.modality import VIDEOS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "scaling.md"
BEGIN, END = "<!-- made by tools/scaling.py --write -->", "<!-- end of what tools/scaling.py made -->"
RECIPES = {
    "ViT-B, MAE": (IMAGES, "mae/in1k_VIT_B_16_PT_800e"),
    "ViT-L, MAE": (IMAGES, "mae/in1k_VIT_L_16_PT_800e"),
    "ViT-H/14, MAE": (IMAGES, "mae/in1k_VIT_H_14_PT_800e"),
    "ViT-B, MaskFeat": (IMAGES, "masked_ssl/in1k_VIT_B_MaskFeat_PT"),
    "ViT-L, MaskFeat": (IMAGES, "masked_ssl/in1k_VIT_L_MaskFeat_PT"),
    "MViTv2-S, MaskFeat": (VIDEOS, "masked_ssl/k400_MVITv2_S_16x4_MaskFeat_PT"),
    "MViTv2-L, MaskFeat": (VIDEOS, "masked_ssl/k400_MVITv2_L_16x4_MaskFeat_PT"),
}
PRECISION = "bf16"
GPUS = (2, 8, 64, 512)
ROWS = (
    # what the row is called, DIST.STRATEGY, its options
    ("`sharded_ddp`", "sharded_ddp", {}),
    ("`fsdp2`", "fsdp2", {}),
    ("`fsdp2`, `RESHARD_AFTER_FORWARD False`", "fsdp2", {"reshard": False}),
    ("`fsdp2`, `CPU_OFFLOAD True`", "fsdp2", {"offload": True}),
)
MB, GB = 1024**2, 1024**3


@dataclass(frozen=True)
class Model:
    """What the tables need of a recipe. inputs: of one micro-batch on one GPU, as the recipe has it."""

    config: str
    sizes: Sizes
    activations: Activations
    inputs: int

    @property
    def parameters(self) -> int:
        """How many numbers are trained or fixed."""
        return STORED["single"](self.sizes, 1, Options()).parameters // 4


def load(modality, config: str) -> Model:
    """Of a file in `configs/`."""
    cfg = load_config(str(REPOSITORY / "configs" / f"{config}.yaml"), [])
    with torch.device("meta"):
        model = modality.build_model(cfg)
    example = modality.example_input(cfg, model.backbone.grid)
    return Model(
        config=config,
        sizes=Sizes.of(model, groups_from_cfg(model, cfg)),
        activations=count_activations(model, example, PRECISION),
        inputs=cfg.TRAIN.BATCH_SIZE // (cfg.NUM_GPUS * cfg.TRAIN.ACCUM_STEPS),
    )


def tables() -> str:
    """All of them, in Markdown."""
    models = {title: load(modality, config) for title, (modality, config) in RECIPES.items()}
    parts = ["### What the forward pass leaves for the backward pass", *_table(*_activations(models))]
    for title, model in models.items():
        parts += ["", f"### {title}: {model.parameters / 1e6:.1f} M parameters", *_table(*_stored(model))]
    return "\n".join(parts)


def _activations(models: dict[str, Model]) -> tuple[list[str], Iterator[list[str]]]:
    heads = ["model", "configuration", "GB per input", "with checkpoints", "inputs per GPU", "GB", "with checkpoints"]

    def row(title: str, model: Model) -> list[str]:
        found, inputs = model.activations, model.inputs
        each = [found.per_input / GB, found.checkpointed / GB]
        batch = [found.of(inputs, checkpointed) / GB for checkpointed in (False, True)]
        return [
            *(title, f"`{model.config}`"),
            *(f"{size:.3f}" for size in each),
            *(str(inputs), *(f"{size:.1f}" for size in batch)),
        ]

    return heads, (row(title, model) for title, model in models.items())


def _stored(model: Model) -> tuple[list[str], Iterator[list[str]]]:
    heads = ["strategy", "GPUs", "parameters", "gradients", "AdamW", "SGD, LARS", "put together", "rounded"]
    heads += ["on the GPU, AdamW", "in main memory"]

    def rows() -> Iterator[list[str]]:
        yield ["`single`, `ddp`", "any", *_cells(model, "ddp", 1, {})]
        for title, strategy, changes in ROWS:
            for gpus in GPUS:
                yield [title, str(gpus), *_cells(model, strategy, gpus, changes)]

    return heads, rows()


def _cells(model: Model, strategy: str, gpus: int, changes: dict[str, bool]) -> list[str]:
    adamw = Options(optimizer="adamw", low_precision=PRECISION != "fp32", **changes)
    stored, momentum = (STORED[strategy](model.sizes, gpus, o) for o in (adamw, replace(adamw, optimizer="sgd")))
    rounded = copies(model.activations, strategy, adamw)
    sizes = (stored.parameters, stored.gradients, stored.optimizer, momentum.optimizer, stored.gathered, rounded)
    return [f"{size / MB:,.0f}" for size in (*sizes, stored.device + rounded, stored.host)]


def _table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    line = "| {} |".format
    return ["", line(" | ".join(heads)), "|" + "---|" * len(heads), *(line(" | ".join(row)) for row in rows)]


def made_part(page: str) -> str:
    """What stands between the page's two marks."""
    return page.split(BEGIN)[1].split(END)[0].strip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(REPOSITORY)}")
    if not parser.parse_args().write:
        print(tables())
        return
    before, after = PAGE.read_text().split(BEGIN)[0], PAGE.read_text().split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
