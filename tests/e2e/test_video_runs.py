"""Video from pre-training over fine-tuning to the multi-view test, as whole runs of a few steps on tiny clips."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from score_files import load_scores
from tiny_runs import PRETRAINED_BY, QUIET, last_state, log_of, tiny_clip_config

from mfm_core.checkpoint.init_from import init_from
from mfm_core.data.loader import Loader
from mfm_core.interfaces import SampleKey
from mfm_core.monitor.meters import Throughput
from mfm_video import views
from mfm_video.data.build import train_dataset
from mfm_video.data.sampling import ClipSpec, clip_indices, even_start
from mfm_video.entry import doctor, dry_run, main
from mfm_video.models import build_model

FRAMES, FPS = 16, 24
FRESH = ("norm.weight", "norm.bias", "projection.weight", "projection.bias")
CLIPS = {"mvit": ([1, 2], 1), "vit": ([2, 1], 3)}
"""TEST.NUM_TEMPORAL_CLIPS and TEST.NUM_SPATIAL_CROPS of each classifier."""


@pytest.fixture
def only_tests(clip_folder, tmp_path):
    """A folder with test.csv and its clips and nothing else."""
    folder = tmp_path / "only_tests"
    folder.mkdir()
    for file in clip_folder.glob("test*"):
        shutil.copy(file, folder)
    return folder


def multiview(kind, data, output, weights, *overrides):
    clips, crops = CLIPS[kind]
    keys = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", weights, "TEST.NUM_TEMPORAL_CLIPS", clips]
    return tiny_clip_config(kind, data, output, *keys, "TEST.NUM_SPATIAL_CROPS", crops, *overrides)


def scores_by_hand(cfg, data, weights, num_clips):
    """(videos, views, classes) softmax, view by view, of frames that PyAV reads one after the other."""
    model = build_model(cfg)
    init_from(model, str(weights), min_match=1.0)
    mean, std = (torch.tensor(cfg.DATA[key])[:, None, None, None] for key in ("MEAN", "STD"))
    spec = (cfg.DATA.NUM_FRAMES, cfg.DATA.SAMPLING_RATE, cfg.DATA.TARGET_FPS)
    length = spec[0] * spec[1] / spec[2] * FPS
    lefts = [4] if cfg.TEST.NUM_SPATIAL_CROPS == 1 else [0, 4, 8]
    found = []
    for i in range(5):
        with av.open(str(data / f"test_{i}.mp4")) as file:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        assert frames.shape == (FRAMES, 32, 40, 3)
        video = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255
        views_of_it = []
        for clip in range(num_clips):
            start = even_start(FRAMES, length, clip, num_clips, cfg.DATA.USE_OFFSET_SAMPLING)
            chosen = (video[:, clip_indices(ClipSpec(*spec), start, FRAMES, FPS)] - mean) / std
            for left in lefts:
                with torch.no_grad():
                    views_of_it.append(model.eval()(chosen[None, ..., left : left + 32])[0].softmax(0))
        found.append(torch.stack(views_of_it))
    return torch.stack(found)


@pytest.mark.parametrize("kind", CLIPS)
def test_from_pretraining_to_the_test(kind, trained_clips, only_tests, tmp_path, capsys):
    """Tests need test.csv alone; their numbers are those of the single views, and of a run that tests at its end."""
    weights = trained_clips(kind)
    cfg = multiview(kind, only_tests, tmp_path, weights)
    capsys.readouterr()
    assert main(cfg) == 0
    said = capsys.readouterr().out
    (line,) = log_of(tmp_path, "epoch")
    labels, tops = torch.arange(5) % 3, {}
    for clips in CLIPS[kind][0]:
        result, names = load_scores(tmp_path / f"test_scores_{clips}.safetensors")
        expected = scores_by_hand(cfg, only_tests, weights, clips).sum(dim=1)
        torch.testing.assert_close(result.scores, expected, rtol=0, atol=2e-6)
        assert torch.equal(result.labels, labels) and names == [f"test_{i}.mp4" for i in range(5)]
        assert result.views.tolist() == [clips * CLIPS[kind][1]] * 5
        tops[clips] = 100 * float((expected.argmax(1) == labels).float().mean())
        assert line[f"test_top1/clips_{clips}"] == pytest.approx(tops[clips])
        assert line[f"test_top5/clips_{clips}"] == 100.0
    assert line["test_top1"] == pytest.approx(tops[CLIPS[kind][0][0]]) and line["test_videos"] == 5
    assert "clips of a video  test_top1" in said
    (confusion,) = log_of(tmp_path, "picture")
    assert "confusion_" in confusion["file"] and confusion["caption"].startswith("5 videos, per cent")
    tables = {table["name"]: table["rows"] for table in log_of(tmp_path, "table")}
    counted = {row[0]: int(row[1]) for row in tables["accuracy_by_class"]}
    assert counted == {"class 0": 2, "class 1": 2, "class 2": 1} and "missing_videos" not in tables
    page = (tmp_path / "report.html").read_text()
    assert "per cent of each true class" in page and "clips of a video" in page


def test_the_largest_probability_of_any_view(trained_clips, only_tests, tmp_path):
    """DATA.ENSEMBLE_METHOD max: other scores than the sums, in the file and in the accuracy."""
    weights = trained_clips("vit")
    cfg = multiview("vit", only_tests, tmp_path, weights, "DATA.ENSEMBLE_METHOD", "max")
    assert main(cfg) == 0
    (line,) = log_of(tmp_path, "epoch")
    for clips in CLIPS["vit"][0]:
        result, _ = load_scores(tmp_path / f"test_scores_{clips}.safetensors")
        expected = scores_by_hand(cfg, only_tests, weights, clips).amax(dim=1)
        torch.testing.assert_close(result.scores, expected, rtol=0, atol=2e-6)
        top1 = 100 * float((expected.argmax(1) == torch.arange(5) % 3).float().mean())
        assert line[f"test_top1/clips_{clips}"] == pytest.approx(top1)


@pytest.mark.parametrize("kind", CLIPS)
def test_weights_come_from_pretraining(kind, trained_clips, clip_folder, tmp_path, capsys):
    """All of the encoder is taken over, though fine-tuning pools once more, and of MAE's its norm; nothing else."""
    pretrained = trained_clips(PRETRAINED_BY[kind])
    theirs = torch.load(pretrained, weights_only=True)["model_state"]
    still = ["TRAIN.STOP_STEP", "1", "SOLVER.BASE_LR", "1e-9", "SOLVER.WARMUP_START_LR", "0", "SOLVER.COSINE_END_LR"]
    keys = [*QUIET, *still, "0", "TRAIN.CHECKPOINT_FILE_PATH", pretrained]
    capsys.readouterr()
    assert main(tiny_clip_config(kind, clip_folder, tmp_path, *keys)) == 0
    (fresh,) = (line for line in capsys.readouterr().out.splitlines() if "freshly initialised" in line)
    taken = "norm." if kind == "vit" else "none"
    assert set(fresh.split(": ")[1].split(", ")) == {f"head.{part}" for part in FRESH if not part.startswith(taken)}
    ours = last_state(tmp_path)["model_state"]
    encoder = [name for name in theirs if name.startswith("backbone.")]
    assert len(encoder) > 20
    for name in encoder:
        if ours[name].shape == theirs[name].shape:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-8, msg=name)
    changed = {name.split("attn.")[-1] for name in encoder if ours[name].shape != theirs[name].shape}
    assert changed <= {"rel_pos_h", "rel_pos_w", "rel_pos_t"} and bool(changed) == (kind == "mvit")


def test_testing_repeats_what_training_ended_with(trained_clips, clip_folder, tmp_path):
    """The same numbers at the end of a run and from its checkpoint; TEST.NUM_ENSEMBLE_VIEWS where no list is given."""
    keys = [*QUIET, "TEST.NUM_ENSEMBLE_VIEWS", "2", "SOLVER.MAX_EPOCH", "1", "TRAIN.EVAL_PERIOD", "1"]
    assert main(tiny_clip_config("mvit", clip_folder, tmp_path, *keys)) == 0
    trained = log_of(tmp_path, "epoch")[-1]
    assert trained["images"] == 5 and trained["test_videos"] == 5 and (tmp_path / "test_scores_2.safetensors").exists()
    first, _ = load_scores(tmp_path / "test_scores_2.safetensors")
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(tiny_clip_config("mvit", clip_folder, tmp_path, *keys, "TRAIN.ENABLE", "False")) == 0
    assert {path: path.read_bytes() for path in left} == left
    (tested,) = log_of(tmp_path / "test", "epoch")
    assert {key: tested[key] for key in tested if key.startswith("test_")} == {
        key: trained[key] for key in trained if key.startswith("test_")
    }
    again, _ = load_scores(tmp_path / "test" / "test_scores_2.safetensors")
    assert torch.equal(first.scores, again.scores)


def test_the_workers_of_a_test_end_with_it(trained_clips, only_tests, tmp_path, monkeypatch):
    """Each of several tests has its own; what they could not read stays listed."""
    alive = []
    evaluate = views.evaluate_views

    def counted(*arguments, **keywords):
        result = evaluate(*arguments, **keywords)
        alive.append(len(multiprocessing.active_children()) - before)
        return result

    monkeypatch.setattr(views, "evaluate_views", counted)
    (only_tests / "test_0.mp4").write_bytes(b"")
    keys = ["DATA_LOADER.NUM_WORKERS", "1", "TEST.NUM_TEMPORAL_CLIPS", "[1, 2, 3]"]
    cfg = multiview("mvit", only_tests, tmp_path, trained_clips("mvit"), *keys)
    before = len(multiprocessing.active_children())
    assert main(cfg) == 0
    assert alive == [1, 1, 1] and len(multiprocessing.active_children()) == before
    assert [Path(line["path"]).name for line in log_of(tmp_path, "bad_file")] == ["test_0.mp4"]


def test_what_is_to_be_tested_can_be_described_and_checked(only_tests, tmp_path):
    cfg = multiview("mvit", only_tests, tmp_path, "none")
    assert any("parameters" in line for line in dry_run(cfg))
    lines, healthy = doctor(cfg)
    assert healthy and any("test: 5 videos" in line for line in lines), lines


@pytest.mark.parametrize("kind", ["maskfeat", "mvit"])
def test_several_clips_and_samples_per_file(kind, clip_folder, tmp_path, monkeypatch):
    """Two stretches of each video, two views of each: side by side in the batch, counted, and no longer an epoch."""
    batches, counted = [], []
    iterate, step = Loader.__iter__, Throughput.step
    monkeypatch.setattr(Loader, "__iter__", lambda self: (batches.append(b) or b for b in iterate(self)))
    monkeypatch.setattr(Throughput, "step", lambda self, images: counted.append(images) or step(self, images))
    several = ["AUG.NUM_SAMPLE", "2", "DATA.TRAIN_CROP_NUM_TEMPORAL", "2", "DATA.TRAIN_JITTER_SCALES", "[32, 32]"]
    quiet = [*QUIET, "TEST.ENABLE", "False", "TRAIN.EVAL_PERIOD", "10"]
    cfg = tiny_clip_config(kind, clip_folder, tmp_path, *quiet, *several, "SOLVER.MAX_EPOCH", "1")
    assert main(cfg) == 0
    assert last_state(tmp_path)["step"] == 3 and counted == [16, 16, 16]
    batches = [batch for batch in batches if len(batch) == 16]
    assert len(batches) == 3
    seen = torch.cat([batch.index for batch in batches])
    assert torch.equal(seen, seen[::4].repeat_interleave(4)) and sorted(seen[::4].tolist()) == list(range(12))
    differ: list[bool] = []
    for batch in batches:
        assert batch.labels.tolist() == [i % 3 for i in batch.index.tolist()]
        views = batch.inputs.unflatten(0, (4, 2, 2))  # files, stretches, samples; frames of 32 x 32 leave no choice
        assert torch.equal(views[:, :, 0], views[:, :, 1])
        differ += [not torch.equal(file[0, 0], file[1, 0]) for file in views]
        if kind == "maskfeat":
            assert len({mask.numpy().tobytes() for mask in batch.mask}) > 8
    assert len(differ) == 12 and sum(differ) > 6, "few beginnings are possible, and two may be the same"


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_loader_worker_stays_small(backend, clip_folder, tmp_path):
    """Over an epoch of 300 clips in one process: every decoder is closed, and nothing is kept."""
    dataset = train_dataset(tiny_clip_config("mvit", clip_folder, tmp_path, "DATA.DECODING_BACKEND", backend))
    process = Path("/proc/self")
    sizes, files = [], []
    for epoch in range(25):
        for index in range(12):
            assert dataset[SampleKey(epoch, index)].bad == []
        gc.collect()
        sizes.append(int((process / "statm").read_text().split()[1]) * resource.getpagesize())
        files.append(len(list((process / "fd").iterdir())))
    assert files[-1] == files[0]
    assert min(sizes[-5:]) - max(sizes[:5]) < 4e6, "a decoder that stays open costs a megabyte"
