"""Samples of videos: functions of seed and key alone; bad videos give way to others, or are named."""

from __future__ import annotations

import pytest
import torch
from clips import numbered, numbers, write_clip, write_frames, write_sound

from mfm_core.config import get_cfg, validate
from mfm_core.data.loader import build_loader, eval_loader
from mfm_core.data.sampler import EpochCut, EvalSampler, TrainSampler
from mfm_core.errors import UserError
from mfm_core.interfaces import SampleKey
from mfm_core.parallel.world import World
from mfm_video.data import build
from mfm_video.data.dataset import VideoDataset
from mfm_video.data.decode import open_video
from mfm_video.data.transforms import ClipCrop

SIZE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six videos of 40 to 90 frames, 64 x 48, in three lists."""
    root = tmp_path_factory.mktemp("videos")
    lines = [f"{write_clip(root / f'{i}.mp4', 40 + 10 * i, fps=30)} {i % 3}\n" for i in range(6)]
    for split, chosen in (("train", lines), ("val", lines[:3]), ("test", lines[4:])):
        (root / f"{split}.csv").write_text("".join(chosen))
    return root


@pytest.fixture
def spoilt(data, tmp_path):
    """Lists with a good video, and a line of each kind that cannot be used."""
    good = data / "5.mp4"
    (tmp_path / "empty.mp4").touch()
    write_sound(tmp_path / "sound.mp4")
    names = [good, tmp_path / "empty.mp4", tmp_path / "sound.mp4", tmp_path / "absent.mp4"]
    lines = [f"{name} 1\n" for name in names] + [f"{good}\n", f"{good} 9\n"]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("".join(lines))
    return tmp_path


def config(root, *overrides):
    cfg = get_cfg()
    settings = {
        "TASK": "finetune",
        "MODEL.NUM_CLASSES": 3,
        "DATA.PATH_TO_DATA_DIR": str(root),
        "DATA.NUM_FRAMES": 4,
        "DATA.SAMPLING_RATE": 4,
        "DATA.TRAIN_CROP_SIZE": SIZE,
        "DATA.TEST_CROP_SIZE": SIZE,
        "DATA.TRAIN_JITTER_SCALES": [36, 40],
        "DATA.DECODING_SHORT_SIZE": 40,
        "DATA_LOADER.NUM_WORKERS": 0,
        "TEST.NUM_ENSEMBLE_VIEWS": 3,
        "TEST.BATCH_SIZE": 4,
        "AUG.ENABLE": False,
    }
    cfg.merge_from_list([x for pair in settings.items() for x in pair] + list(overrides))
    return cfg


class Whole:
    """Gives the frames as they are, to read their numbers."""

    short_side = 0

    def plan(self, height, width, rng):
        return ClipCrop(0, 0, height, width)

    def apply(self, frames, crop):
        return frames.transpose(0, 1).float()


class Half:
    """Hides tokens of a (2, 2, 2) grid."""

    def __call__(self, generator, clip):
        return torch.rand(2, 2, 2, generator=generator) < 0.5


def shown(view):
    return numbers(view.transpose(0, 1))


def equal(one, two):
    assert (one.index, one.label, one.bad) == (two.index, two.label, two.bad)
    return all(torch.equal(a, b) for a, b in zip(one.views + one.masks, two.views + two.masks, strict=True))


def test_a_training_sample(data):
    cfg = config(data, "AUG.NUM_SAMPLE", 2, "DATA.TRAIN_CROP_NUM_TEMPORAL", 3)
    dataset = build.train_dataset(cfg, Half())
    sample = dataset[SampleKey(0, 4)]
    assert len(dataset) == 6 and (sample.index, sample.label, sample.bad) == (4, 1, [])
    assert [view.shape for view in sample.views] == [(3, 4, SIZE, SIZE)] * 6
    assert [mask.shape for mask in sample.masks] == [(2, 2, 2)] * 6
    assert equal(sample, dataset[SampleKey(0, 4)])
    others = [dataset[SampleKey(1, 4)], dataset[SampleKey(0, 4, repetition=1)]]
    others.append(build.train_dataset(config(data, "AUG.NUM_SAMPLE", 2, "DATA.TRAIN_CROP_NUM_TEMPORAL", 3,
                                             "RNG_SEED", 7), Half())[SampleKey(0, 4)])  # fmt: skip
    assert not any(equal(sample, other) for other in others)
    assert len({mask.numpy().tobytes() for mask in sample.masks}) > 3


def test_clips_are_different_stretches_and_samples_of_one_share_it(data):
    cfg = config(data)
    dataset = VideoDataset(build.videos_of(cfg, "train"), build.clip_spec(cfg), Whole(), clips=4, num_samples=2)
    starts = set()
    for epoch in range(5):
        views = [shown(view) for view in dataset[SampleKey(epoch, 5)].views]
        assert views[::2] == views[1::2]
        for view in views:
            # a stretch of 16 frames, its end included; one that begins between two frames has 15
            assert [b - view[0] for b in view] in ([0, 5, 10, 15], [0, 5, 10, 14])
        starts |= {view[0] for view in views}
    assert len(starts) > 10 and min(starts) < 20 and max(starts) > 55  # of 90 frames


def test_evaluation_takes_the_middle(data):
    cfg = config(data)
    dataset = VideoDataset(build.videos_of(cfg, "val"), build.clip_spec(cfg), Whole(), train=False)
    for index, frames in enumerate((40, 50, 60)):
        start = (frames - 16) // 2
        assert shown(dataset[SampleKey(3, index)].views[0]) == [start, start + 5, start + 10, start + 15]
    evaluated = build.eval_dataset(cfg, "val", ("class 0", "class 1", "class 2"), 0, Half())
    assert equal(evaluated[SampleKey(0, 1)], evaluated[SampleKey(9, 1)])
    few = build.eval_dataset(cfg, "train", count=3)
    assert len(few) == 3 and sorted(few.listing.labels) == [0, 1, 2]


@pytest.mark.parametrize("crops", [1, 3])
def test_views_of_a_test(data, crops):
    cfg = config(data, "TEST.NUM_SPATIAL_CROPS", crops, "DATA.USE_OFFSET_SAMPLING", True)
    dataset = build.test_dataset(cfg)
    assert dataset.num_views == 3 * crops and len(dataset) == 2 * 3 * crops
    views = build.view_transforms(cfg, crops)
    for index in range(len(dataset)):
        video, view = divmod(index, dataset.num_views)
        clip, crop = divmod(view, crops)
        frames = 80 + 10 * video
        start = clip * ((frames - 16) // 2)
        with open_video(str(data / f"{4 + video}.mp4")) as reader:
            expected = reader.read([start, start + 5, start + 10, start + 15])
        sample = dataset[SampleKey(0, index)]
        assert (sample.index, sample.label) == (index, (4 + video) % 3)
        assert torch.equal(sample.views[0], views[crop].apply(expected, views[crop].plan(48, 64)))
    assert build.test_dataset(cfg, num_clips=5).num_views == 5 * crops


def test_views_of_a_clip_share_its_decoding(data, monkeypatch):
    opened = []
    dataset = build.test_dataset(config(data))
    dataset.opener = lambda path: opened.append(path) or open_video(path)
    for index in range(len(dataset)):
        dataset[SampleKey(0, index)]
    assert len(opened) == 2 * 3 and dataset.num_views == 9


def test_workers_change_nothing(data):
    cfg = config(data, "AUG.ENABLE", True, "AUG.NUM_SAMPLE", 2, "DATA.TRAIN_CROP_NUM_TEMPORAL", 2)
    batches = []
    for workers in (0, 2):
        loader = build_loader(build.train_dataset(cfg, Half()), TrainSampler(EpochCut(6, 3), seed=1), workers)
        batches.append(list(loader))
    assert len(batches[0]) == 2 and batches[0][0].inputs.shape == (12, 3, 4, SIZE, SIZE)
    for one, two in zip(*batches):
        assert torch.equal(one.inputs, two.inputs) and torch.equal(one.mask, two.mask)
        assert torch.equal(one.index, two.index)


def folders(root, split, names):
    """Class folders with a clip in each."""
    for name in names:
        (root / split / name).mkdir(parents=True)
        write_clip(root / split / name / "clip.mp4", 4)


def test_class_folders_are_tested_under_the_numbers_of_the_list_that_was_trained_on(tmp_path):
    """Even beside folders from which the list was made, and which sort otherwise."""
    names = ("left", "right", "down")
    for split in ("train", "test"):
        folders(tmp_path, split, names)
    (tmp_path / "classes.txt").write_text("\n".join(names))
    (tmp_path / "train.csv").write_text("".join(f"train/{name}/clip.mp4 {i}\n" for i, name in enumerate(names)))
    for trains in (True, False):
        videos = build.test_dataset(config(tmp_path, "TRAIN.ENABLE", trains)).listing
        found = {videos.paths.relative(i).split("/")[0]: int(videos.labels[i]) for i in range(len(videos))}
        assert found == {"left": 0, "right": 1, "down": 2} and videos.classes == names


def test_some_class_folders_alone_have_no_numbers(tmp_path):
    """Neither the first ones, nor a traceback; with all of the training split's they are known."""
    folders(tmp_path, "test", ("left", "right"))
    cfg = config(tmp_path, "TRAIN.ENABLE", False)
    with pytest.raises(UserError, match="MODEL.NUM_CLASSES is 3, but .*test has 2 classes, and there is no"):
        build.test_dataset(cfg)
    assert ["has 2 classes" in problem for problem in build.check_data(cfg).problems] == [True]
    folders(tmp_path, "train", ("down", "left", "right"))
    videos = build.test_dataset(cfg).listing
    assert videos.labels.tolist() == [1, 2] and len(videos.classes) == 3
    cfg.MODEL.NUM_CLASSES = 4
    with pytest.raises(UserError, match="NUM_CLASSES is 4, but the training videos have 3 classes"):
        build.test_dataset(cfg)


REASONS = ["the file is empty", "at most sound", "no such file", "no label", "label 9"]


def test_training_goes_on_with_another_video(spoilt):
    dataset = build.train_dataset(config(spoilt))
    bad = {}
    for index in range(6):
        sample = dataset[SampleKey(0, index)]
        assert sample.index == 0 and sample.label == 1 and len(sample.views) == 1
        assert bool(sample.bad) == (index > 0)
        if index:
            bad[index] = sample.bad[0]
            assert equal(sample, dataset[SampleKey(0, index)])
    assert all(reason in bad[i].reason for i, reason in enumerate(REASONS, 1))
    assert all(f"(train.csv line {i + 1})" in bad[i].reason for i in bad)


def test_loaders_list_what_is_bad(spoilt):
    loader = build_loader(build.train_dataset(config(spoilt)), TrainSampler(EpochCut(6, 6)), 2)
    batch = next(iter(loader))
    assert len(batch) == 6 and set(batch.index.tolist()) == {0}
    assert {"empty.mp4", "sound.mp4", "absent.mp4"} <= {path.split("/")[-1] for path in loader.bad}


def test_tests_say_which_videos_are_missing(spoilt):
    cfg = config(spoilt)
    dataset = build.test_dataset(cfg)
    loader = eval_loader(cfg, dataset, World(0, 1, torch.device("cpu")))
    counted = torch.cat([batch.index for batch in loader if len(batch)])
    assert counted.tolist() == list(range(dataset.num_views))  # all views of the first video, none of the others
    named = {path.split("/")[-1]: file.reason for path, file in loader.bad.items()}
    assert "the file is empty (test.csv line 2)" in named["empty.mp4"]
    assert "sound" in named["sound.mp4"] and "no such file" in named["absent.mp4"]
    evaluated = build.eval_dataset(cfg, "val")
    assert [len(evaluated[SampleKey(0, i)].views) for i in range(6)] == [1, 0, 0, 0, 0, 0]


def test_a_tab_between_path_and_label(spoilt):
    """As YAML writes it, and as a shell passes it on."""
    (spoilt / "train.csv").write_text("my a.mp4\t0\nb.mp4\t2\n")
    for written in ("\t", "\\t"):
        videos = build.videos_of(config(spoilt, "DATA.PATH_LABEL_SEPARATOR", written), "train")
        assert videos.paths.relative(0) == "my a.mp4" and videos.labels.tolist() == [0, 2] and not videos.problems


def test_only_bad_videos_end_a_run(spoilt):
    (spoilt / "train.csv").write_text("".join(f"/absent/{i}.mp4 0\n" for i in range(30)))
    with pytest.raises(UserError, match="full of unreadable files.*absent.*doctor"):
        build.train_dataset(config(spoilt))[SampleKey(0, 0)]


def test_pretraining_needs_no_labels(spoilt):
    cfg = config(spoilt, "TASK", "pretrain")
    assert list(build.videos_of(cfg, "train").problems) == [4]
    (spoilt / "train.csv").write_text("a.mp4\nb.mp4\n")
    assert not build.videos_of(cfg, "train").problems


def test_a_video_shorter_than_a_clip_repeats_its_last_frame(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 6, fps=30)
    (tmp_path / "train.csv").write_text(f"{path} 0\n")
    cfg = config(tmp_path)
    dataset = VideoDataset(build.videos_of(cfg, "train"), build.clip_spec(cfg), Whole())
    assert shown(dataset[SampleKey(0, 0)].views[0]) == [0, 5, 5, 5]


def test_frame_folders_have_the_target_rate(tmp_path):
    write_frames(tmp_path / "train" / "a" / "clip", 30)
    cfg = config(tmp_path, "DATA.TARGET_FPS", 15, "MODEL.NUM_CLASSES", 1)
    dataset = VideoDataset(build.videos_of(cfg, "train"), build.clip_spec(cfg), Whole(), train=False,
                           opener=build.opener(cfg))  # fmt: skip
    assert shown(dataset[SampleKey(0, 0)].views[0]) == [7, 12, 17, 22]


def test_decoding_at_reduced_size_is_for_training_only(tmp_path):
    path = write_clip(tmp_path / "a.mp4", [numbered(i, 256, 160) for i in range(20)])
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text(f"{path} 0\n")
    sizes = {}

    class Noting:
        def __init__(self, video):
            self.video, self.frames, self.fps = video, video.frames, video.fps

        def read(self, indices, short_side=0):
            sizes.setdefault(self.name, short_side)
            return self.video.read(indices, short_side)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.video.close()

    cfg = config(tmp_path)
    sets = {"train": build.train_dataset(cfg), "val": build.eval_dataset(cfg, "val"), "test": build.test_dataset(cfg)}
    for name, dataset in sets.items():
        noting = type(name, (Noting,), {"name": name})
        dataset.opener = lambda path, noting=noting: noting(open_video(path))
        assert dataset[SampleKey(0, 0)].views[0].shape == (3, 4, SIZE, SIZE)
    assert sizes == {"train": 40, "val": 0, "test": 0}


def test_sampler_and_views_fit(data):
    """A batch of the test keeps a video's views in order, so that a decoded clip serves all its crops."""
    dataset = build.test_dataset(config(data))
    keys = [key.index for batch in EvalSampler(len(dataset), 4) for key in batch]
    assert keys == list(range(len(dataset)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DATA.TRAIN_JITTER_SCALES", [40, 36]], "TRAIN_JITTER_SCALES"),
        (["DATA.TEST_CROP_SIZE", 64], "TEST_CROP_SIZE 64"),
        (["DATA.PATH_LABEL_SEPARATOR", ""], "PATH_LABEL_SEPARATOR"),
        (["DATA.TARGET_FPS", 0], "TARGET_FPS"),
        (["DATA.TRAIN_JITTER_SCALES", [40]], "TRAIN_JITTER_SCALES"),
    ],
)
def test_refused_settings(overrides, message):
    with pytest.raises(UserError, match=message):
        validate(runnable(*overrides))


def test_warned_settings():
    warnings = " ".join(validate(runnable()))
    assert "DECODING_BACKEND torchvision" in warnings and "PyAV" in warnings
    warnings = " ".join(validate(runnable("DATA.DECODING_BACKEND", "pyav", "DATA.TRAIN_CROP_TYPE", "padded")))
    assert "DECODING_BACKEND" not in warnings and "TRAIN_CROP_TYPE padded acts on images only" in warnings


def runnable(*overrides):
    """A whole fine-tuning configuration."""
    return config(".", "MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", *overrides)
