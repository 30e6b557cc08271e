"""Which pre-training helps on this data? Pre-trains by each method, then measures what it learned, at the same budget.

    python tools/compare_methods.py --data FOLDER [--methods maskfeat mae] [--seeds 0 1] [--fractions 0.1 1.0]

For each method of configs/tiny_imagenet: k-NN and a linear probe of the frozen features, fine-tuning on shares of the
labels, training from scratch on the same shares; then one Markdown table of what the runs logged. Every run resumes:
the same command continues what was interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs" / "tiny_imagenet"


@dataclass(frozen=True)
class Method:
    """A row of the table: its title, its pre-training configuration, and the overrides of its backbone elsewhere."""

    title: str
    config: str
    backbone: tuple[str, ...] = ()


RESNET = ("MODEL.ARCH", "resnet", "SOLVER.LAYER_DECAY", "1.0")
"""Without layer decay, as the published recipes fine-tune it."""
METHODS = {
    "maskfeat": Method("MaskFeat", "pretrain"),
    "mae": Method("MAE", "mae"),
    "mff": Method("MFF", "mff"),
    "mfm": Method("MFM, ViT", "mfm"),
    "mfm_resnet": Method("MFM, ResNet-50", "mfm_resnet", RESNET),
}


def run(config: str, output: Path, *overrides: str) -> Path:
    """Runs `config` to its end in the folder `output`, and returns it; exits where the run fails."""
    command = [sys.executable, REPOSITORY / "tools" / "run_net.py", "--cfg", CONFIGS / f"{config}.yaml"]
    print(f"== {output}", flush=True)
    done = subprocess.run([*map(str, command), "OUTPUT_DIR", str(output), *overrides])
    if done.returncode:
        sys.exit(done.returncode)
    return output


def lines(folder: Path, kind: str) -> list[dict]:
    """The log lines of one kind, in order."""
    logged = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [line for line in logged if line["kind"] == kind]


def last(folder: Path, key: str) -> float:
    """`key` of the last epoch that has it."""
    return [line[key] for line in lines(folder, "epoch") if key in line][-1]


def spread(values: Iterable[float]) -> str:
    """Mean, and half the range where there are several."""
    values = list(values)
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.1f}"


def cost(folder: Path) -> tuple[str, str]:
    """Minutes of training steps, and the most memory that a logging line saw, of a pre-training run.

    The minutes are those of the pace that a tenth of the logging lines reached or beat: what else the machine does
    now and then slows some of them, and no method is to pay for that. "" for what no line says.
    """
    steps = lines(folder, "step")
    plan = lines(folder, "run")[0]["plan"]
    speeds = [line["images_per_s"] for line in steps if line["images_per_s"]]  # a start's first step has none yet
    memory = f"{max(line['memory_gb'] for line in steps):.1f} GB" if steps else ""
    if not speeds:
        return "", memory
    speed = statistics.quantiles(speeds, n=10)[-1] if len(speeds) > 1 else speeds[0]
    minutes = plan["epochs"] * plan["steps_per_epoch"] * plan["batch_size"] / speed / 60
    return f"{minutes:.0f} min", memory


class Comparison:
    """The runs of one data set, in one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.common = ["DATA.PATH_TO_DATA_DIR", options.data, *options.overrides]

    def finetuned(self, name: str, backbone: tuple[str, ...], weights: Path | None, fraction: float) -> str:
        """Top-1 after fine-tuning from `weights`, or from scratch, on a share of the labels; over the seeds."""
        options = self.options
        few = ["SOLVER.MAX_EPOCH", str(options.few_epochs)] if fraction < 0.5 else []
        # Layer decay spares pre-trained layers; random ones have nothing to spare.
        start = ["TRAIN.CHECKPOINT_FILE_PATH", str(weights)] if weights else ["SOLVER.LAYER_DECAY", "1.0"]
        tops = []
        for seed in options.seeds:
            choice = ["DATA.LABEL_FRACTION", str(fraction), "RNG_SEED", str(seed), *few, *start, *backbone]
            output = options.out / f"{name}_finetune_{fraction:g}_seed{seed}"
            tops.append(last(run("finetune", output, *self.common, *choice), "top1"))
        return spread(tops)

    def scratch(self, title: str, name: str, backbone: tuple[str, ...]) -> list[str]:
        """The row of training without pre-training; its frozen features are those of random weights."""
        tops = [self.finetuned(name, backbone, None, fraction) for fraction in self.options.fractions]
        return [title, "", "", *tops, "", ""]

    def method(self, name: str) -> list[str]:
        """The row of a pre-training method."""
        method, options = METHODS[name], self.options
        epochs = ["SOLVER.MAX_EPOCH", str(options.epochs)] if options.epochs else []
        pretrained = run(method.config, options.out / name, *self.common, *epochs)
        weights = max((pretrained / "checkpoints").glob("checkpoint_epoch_*.pyth"))
        probe = ["SOLVER.MAX_EPOCH", str(options.probe_epochs)] if options.probe_epochs else []
        probe += ["TRAIN.CHECKPOINT_FILE_PATH", str(weights), *method.backbone]
        probed = run("probe", options.out / f"{name}_probe", *self.common, *probe)
        before = lines(pretrained, "epoch")[0]["knn"]
        knn = f"{before:.1f} → {last(pretrained, 'knn'):.1f}"
        tops = [self.finetuned(name, method.backbone, weights, fraction) for fraction in options.fractions]
        return [method.title, knn, f"{last(probed, 'top1'):.1f}", *tops, *cost(pretrained)]


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train/<class>/ and val/<class>/")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of fine-tuning and of training from scratch")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 1.0], help="shares of the labels")
    parser.add_argument("--epochs", type=int, default=0, help="of pre-training; 0 is what the configurations say")
    parser.add_argument("--probe-epochs", type=int, default=0, help="of the linear probe; 0 is what its file says")
    parser.add_argument("--few-epochs", type=int, default=60, help="of fine-tuning below 50 %% of the labels")
    parser.add_argument("overrides", nargs="*", help="KEY VALUE for all runs, after --")
    options = parser.parse_args()
    comparison = Comparison(options)
    rows = [comparison.scratch("from scratch, ViT", "scratch", ())]
    if any(METHODS[name].backbone for name in options.methods):
        rows.append(comparison.scratch("from scratch, ResNet-50", "scratch_resnet", RESNET))
    rows += [comparison.method(name) for name in options.methods]
    tops = [f"top-1, {fraction:.0%} of the labels" for fraction in options.fractions]
    titles = ["", "k-NN before → after", "linear probe", *tops, "pre-training", "memory"]
    for row in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
