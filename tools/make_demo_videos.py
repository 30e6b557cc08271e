"""Draws the demo clips: mp4 files whose class is their motion, with the lists train.csv, val.csv and test.csv, offline.

The same bytes for the same seed (and the same x264). `python tools/make_demo_videos.py --out data/demo_video`
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from demo_folder import make

from mfm_video.demo import MOTIONS, SPLITS, demo_clips, write_demo_clip, write_lists

VERSION = 3
"""Of the drawing; data of another version are made anew."""


def write(root: Path, parameters: dict[str, int]) -> None:
    """All files below `root`, by as many processes as there are cores."""
    clips = demo_clips({split: parameters[split] for split in SPLITS})
    for folder in {(root / clip.path).parent for clip in clips}:
        folder.mkdir(parents=True)
    one = partial(write_demo_clip, root=root, **{key: parameters[key] for key in ("seed", "size", "frames")})
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as processes:
        list(processes.map(one, clips, chunksize=8))
    write_lists(root, clips)


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description="Draws the demo clips (H.264 in mp4, with lists of them).")
    parser.add_argument("--out", type=Path, default=Path("data/demo_video"))
    parser.add_argument("--train", type=int, default=60, help="training clips per class")
    parser.add_argument("--val", type=int, default=8, help="validation clips per class")
    parser.add_argument("--test", type=int, default=8, help="test clips per class")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels, even")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    if options["size"] % 2:
        parser.error("--size must be even: H.264 halves the resolution of colours")
    out, parameters = options.pop("out"), {**options, "version": VERSION}
    clips = " + ".join(str(parameters[split]) for split in SPLITS)
    print(make(out, parameters, partial(write, parameters=parameters), f"{len(MOTIONS)} motions, {clips} clips each"))


if __name__ == "__main__":
    main()
