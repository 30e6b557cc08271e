"""Log files that survive kills, meters, the environment and the health of features."""

import json
import math

import numpy as np
import pytest
import torch

from mfm_core.errors import UserError
from mfm_core.monitor.environment import describe
from mfm_core.monitor.features import feature_health, rank_me
from mfm_core.monitor.meters import Throughput, peak_memory_gb
from mfm_core.monitor.settings import setting_name, setting_tables, split_name
from mfm_core.monitor.writers import JsonLines, TensorBoard, duration, progress_line


def lines(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_json_lines_hold_valid_json(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    with JsonLines(path) as log:
        log.write({"loss": math.nan, "lr": math.inf, "nested": {"x": [1.5, -math.inf]}})
        log.write({"loss": torch.tensor(0.5), "n": np.int64(3), "path": tmp_path, "text": "a\nb", "one": torch.ones(1)})
    first, second = lines(path)
    assert first == {"loss": None, "lr": None, "nested": {"x": [1.5, None]}}
    assert second == {"loss": 0.5, "n": 3, "path": str(tmp_path), "text": "a\nb", "one": 1.0}


def test_lines_are_flushed(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.write({"step": 1})
    assert lines(tmp_path / "log.jsonl") == [{"step": 1}]
    log.close()


@pytest.mark.parametrize(
    "tail, kept",
    [
        (b'{"step": 2, "lo', [1, 3]),
        (b'{"step": 2}', [1, 2, 3]),
        (b"\x00\x00\x00", [1, 3]),
        (b'{"pad": "' + b"x" * 200_000, [1, 3]),
        (b"", [1, 3]),
    ],
)
def test_torn_last_line_is_mended(tmp_path, tail, kept):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    with JsonLines(path) as log:
        log.write({"step": 3})
    assert [record["step"] for record in lines(path)] == kept


def test_file_that_is_one_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step"')
    JsonLines(path).close()
    assert path.read_bytes() == b""


def test_log_that_cannot_be_written_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="log.jsonl"):
        JsonLines(tmp_path / "file" / "log.jsonl")


def test_tensorboard_keeps_numbers_and_images(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.scalars(3, {"loss": torch.tensor(0.25), "top1": None, "kind": "step"}, prefix="train")
    board.image(3, "sheet", np.zeros((8, 8, 4), np.uint8))
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 0.25)]
    assert events.Tags()["images"] == ["sheet"]


def test_tensorboard_takes_no_name_that_it_cannot_encode(tmp_path):
    with pytest.raises(UserError, match="not UTF-8 in this locale; choose another OUTPUT_DIR"):
        TensorBoard(tmp_path / "caf\udce9")


def test_progress_line():
    numbers = {"epochs": 30, "steps": 400, "lr": 1.9e-4, "images_per_s": 412.3, "memory_gb": 2.1}
    line = progress_line(epoch=3, step=120, loss=0.0312, eta_s=751, **numbers)
    assert line.replace("epoch  3", "epoch 3") == (
        "epoch 3/30  step 120/400  loss 0.0312  lr 1.9e-04  412 images/s  mem 2.1 GB  12:31 left"
    )
    later = progress_line(epoch=12, step=4, loss=0.0012, eta_s=math.nan, extra={"top1": 41.25}, **numbers)
    assert "step   4/400  loss 1.20e-03  lr 1.9e-04  top1 41.2500" in later and later.endswith("? left")
    assert line.index("step") == later.index("step")


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (59.6, "1:00"), (751, "12:31"), (3723, "1:02:03"), (183845, "2 d 3:04:05"), (None, "?"), (-1, "?")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_throughput_leaves_out_pauses_and_the_first_step():
    clock = Clock()
    meter = Throughput(clock=clock)
    clock.now += 100
    meter.step(64)
    assert math.isnan(meter.images_per_s) and math.isnan(meter.eta_s(5))
    for _ in range(10):
        clock.now += 2
        with meter.paused():
            clock.now += 30
        meter.step(64)
    assert meter.images_per_s == pytest.approx(32)
    assert meter.eta_s(10) == pytest.approx(20)
    assert meter.eta_s(10, pauses_left=2) == pytest.approx(80)


def test_throughput_follows_a_change_of_speed():
    clock = Clock()
    meter = Throughput(span=10, clock=clock)
    for seconds in [1.0] * 30 + [2.0] * 40:
        clock.now += seconds
        meter.step(10)
    assert meter.images_per_s == pytest.approx(5, rel=0.05)


def test_peak_memory_is_this_process():
    assert 0.05 < peak_memory_gb("cpu") < 100


def test_environment_is_plain_and_names_the_versions():
    found = describe()
    assert found["torch"] == torch.__version__ and found["cores"] >= 1 and found["cpu"]
    assert json.loads(json.dumps(found)) == found
    assert not any("PATH" in key for key in found)


def test_feature_health_of_known_cases():
    g = torch.Generator().manual_seed(0)
    same = feature_health(torch.randn(1, 32, generator=g).expand(100, 32))
    assert same["feature_rank"] == pytest.approx(1, abs=1e-3) and same["feature_std"] == pytest.approx(0, abs=1e-4)
    even = feature_health(torch.randn(20_000, 32, generator=g))
    assert even["feature_rank"] == pytest.approx(32, rel=0.01) and even["feature_std"] == pytest.approx(1, rel=0.01)
    line = torch.randn(500, 3, generator=g) @ torch.randn(3, 64, generator=g)
    assert 1 < rank_me(line) <= 3.001


@pytest.mark.parametrize("shape", [(300, 20), (20, 300)])
def test_rank_me_is_its_definition(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    p = torch.linalg.svdvals(features)
    p = p / p.sum()
    assert rank_me(features) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)


def test_feature_health_without_an_answer_is_nan():
    for features in (torch.empty(0, 4), torch.tensor([[1.0, math.nan]])):
        assert all(math.isnan(v) for v in feature_health(features).values())
    assert rank_me(torch.zeros(4, 3)) == 0


def test_numbers_by_setting_make_tables():
    """In the order of their coming, with gaps; names of other kinds are left alone."""
    names = [(m, s, v) for m in ("top1", "val_loss") for s, v in (("lr", 0.1), ("lr", 1e-5), ("k", 20))]
    values = {setting_name(*name): float(i) for i, name in enumerate(names)}
    assert list(values)[:3] == ["top1/lr_0.1", "top1/lr_1e-05", "top1/k_20"]
    del values["val_loss/lr_0.1"]
    by_lr, by_k = setting_tables({"top1": 9.0, "knn_20": 8.0, **values})
    assert by_lr.head() == ["learning rate", "top-1", "validation loss"]
    assert by_lr.cells() == [["0.1", "0", "–"], ["1e-05", "1", "4"]]
    assert by_k.rows == (("20", (2.0, 5.0)),)
    assert len({len(line) for line in by_lr.lines()}) == 1
    assert split_name("train/loss") is None and split_name("knn_20") is None
