"""Does pre-training help on this data? Pre-trains, fine-tunes and trains from scratch at the same budget, and prints
a Markdown table of what the runs logged.

    python tools/compare_pretraining.py --data FOLDER [--seeds 0 1] [--fractions 1.0 0.1] [--out runs/tiny]

Uses configs/tiny_imagenet. Every run resumes, so that the same command continues what was interrupted, and prints the
table again when all is done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs" / "tiny_imagenet"


def run(config: str, output: Path, *overrides: str) -> Path:
    """Runs `config` to its end in the folder `output`, and returns it; exits where the run fails."""
    command = [sys.executable, REPOSITORY / "tools" / "run_net.py", "--cfg", CONFIGS / f"{config}.yaml"]
    print(f"== {output}", flush=True)
    done = subprocess.run([*map(str, command), "OUTPUT_DIR", str(output), *overrides])
    if done.returncode:
        sys.exit(done.returncode)
    return output


def epochs(folder: Path) -> dict[int, dict]:
    """The log line of each epoch of a run, the last one where an epoch was run twice."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["epoch"]: line for line in lines if line["kind"] == "epoch"}


def last(folder: Path, key: str) -> float:
    """`key` of a run's last epoch."""
    logged = epochs(folder)
    return logged[max(logged)][key]


def spread(values: list[float]) -> str:
    """Mean, and half the range where there are several."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.1f}"


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train/<class>/ and val/<class>/")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a fine-tuned and a scratch run for each")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 1.0], help="shares of the labels")
    parser.add_argument("--few-epochs", type=int, default=60, help="fine-tuning epochs below 50 %% of the labels")
    parser.add_argument("overrides", nargs="*", help="KEY VALUE for all runs, after --")
    options = parser.parse_args()
    common = ["DATA.PATH_TO_DATA_DIR", options.data, *options.overrides]
    pretrained = run("pretrain", options.out / "pretrain", *common)
    weights = max((pretrained / "checkpoints").glob("checkpoint_epoch_*.pyth"))
    logged = epochs(pretrained)
    rows = [
        ("k-NN, random weights", spread([logged[0]["knn"]])),
        (f"k-NN after {max(logged)} epochs of MaskFeat", spread([last(pretrained, "knn")])),
    ]
    for fraction in options.fractions:
        few = ["SOLVER.MAX_EPOCH", str(options.few_epochs)] if fraction < 0.5 else []
        # Layer decay spares pre-trained layers; random ones have nothing to spare.
        starts = {
            "scratch": ["SOLVER.LAYER_DECAY", "1.0"],
            "finetune": ["TRAIN.CHECKPOINT_FILE_PATH", str(weights)],
        }
        for name, start in starts.items():
            tops = []
            for seed in options.seeds:
                output = options.out / f"{name}_{fraction:g}_seed{seed}"
                choice = ["DATA.LABEL_FRACTION", str(fraction), "RNG_SEED", str(seed), *few, *start]
                tops.append(last(run("finetune", output, *common, *choice), "top1"))
            title = "from scratch" if name == "scratch" else "after pre-training"
            rows.append((f"top-1 {title}, {fraction:.0%} of the labels", spread(tops)))
    print("\n| | % |\n|---|---|")
    for title, value in rows:
        print(f"| {title} | {value} |")


if __name__ == "__main__":
    main()
