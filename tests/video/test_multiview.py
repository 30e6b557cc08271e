"""Several views make one answer per video: the published numbers, in any order, from any rank, each counted once."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from golden_cases import cases, load_case
from score_files import load_scores
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mfm_core.engine.multiview import VideoScores, accuracies, evaluate_views
from mfm_core.engine.result_exhibits import exhibits_of
from mfm_core.engine.score_file import save_scores
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.monitor.settings import setting_tables
from mfm_core.parallel.world import World

VIDEOS, VIEWS, CLASSES = 5, 6, 7
ONE = World()


class LogOf(nn.Module):
    """The input holds the probabilities; softmax of their logarithm gives them back."""

    def forward(self, x):
        return x.log()


def views(seed=0):
    """(videos * views, classes) probabilities and (videos,) labels."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(VIDEOS * VIEWS, CLASSES, generator=generator)).softmax(dim=1)
    return probabilities, torch.randint(CLASSES, (VIDEOS,), generator=generator)


def batches(order, size, probabilities, labels, views_per_video):
    """Batches of single views in the given order."""
    for start in range(0, len(order), size):
        index = torch.as_tensor(order[start : start + size])
        yield Batch(probabilities[index], labels[index // views_per_video], None, index)


def evaluate(loader, world=ONE, videos=VIDEOS, views_per_video=VIEWS, **how):
    return evaluate_views(LogOf(), loader, videos, views_per_video, world, nullcontext, **how)


@pytest.mark.parametrize("folder", cases("pyslowfast/multiview"), ids=lambda p: p.name)
def test_golden(folder):
    case, io = load_case(folder)
    config, tolerance = case["config"], {k: case["tolerance"][k] for k in ("rtol", "atol")}
    videos, per_video = config["num_videos"], config["views_per_video"]
    for combine, accuracy in config["results"].items():
        loader = batches(io["in_order"].tolist(), 5, io["in_view_probs"], io["in_video_labels"], per_video)
        result = evaluate(loader, videos=videos, views_per_video=per_video, combine=combine)
        torch.testing.assert_close(result.scores, io[f"out_video_scores_{combine}"], **tolerance)
        assert torch.equal(result.labels, io["in_video_labels"]) and not len(result.missing)
        found = result.accuracy()
        assert {k: round(found[k], 2) for k in accuracy} == accuracy and found["videos"] == videos


def test_a_view_that_comes_twice_counts_once():
    """Neither in the batch that holds it, nor in a later one."""
    probabilities, labels = views()
    order = torch.randperm(VIDEOS * VIEWS, generator=torch.Generator().manual_seed(1)).tolist()
    whole = evaluate(batches(order, 4, probabilities, labels, VIEWS))
    padded = evaluate(batches([order[0], *order, order[3], order[0]], 4, probabilities, labels, VIEWS))
    assert torch.equal(whole.scores, padded.scores) and padded.views.tolist() == [VIEWS] * VIDEOS
    torch.testing.assert_close(whole.scores, probabilities.view(VIDEOS, VIEWS, CLASSES).sum(1), rtol=1e-5, atol=1e-6)


def test_what_is_missing_is_named_and_not_counted():
    """Video 2 lost a view and keeps its label, video 4 lost all; the loader's empty batch is passed over."""
    probabilities, labels = views()
    lost = [2 * VIEWS + 1, *range(4 * VIEWS, 5 * VIEWS)]
    order = [v for v in range(VIDEOS * VIEWS) if v not in lost]
    empty = Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), None, torch.empty(0, dtype=torch.int64))
    result = evaluate([empty, *batches(order, 4, probabilities, labels, VIEWS)])
    assert result.missing.tolist() == [2, 4] and result.views.tolist() == [6, 6, 5, 6, 0]
    assert result.labels.tolist() == [*labels[:4].tolist(), -1] and result.predicted[4] == -1
    kept = probabilities.view(VIDEOS, VIEWS, CLASSES).clone()
    kept[2, 1] = 0
    right = (kept[:4].sum(1).argmax(1) == labels[:4]).float().mean()
    assert result.accuracy()["top1"] == pytest.approx(100 * float(right)) and result.accuracy()["videos"] == 4
    unlabelled = labels.clone()
    unlabelled[0] = -1
    result = evaluate(batches(order, 4, probabilities, unlabelled, VIEWS))
    right = (kept[1:4].sum(1).argmax(1) == labels[1:4]).float().mean()
    assert result.accuracy()["top1"] == pytest.approx(100 * float(right)) and result.accuracy()["videos"] == 3
    unlabelled = torch.full_like(labels, -1)
    assert evaluate(batches(order, 4, probabilities, unlabelled, VIEWS)).accuracy() == {"videos": 0}
    with pytest.raises(UserError, match="can be read"):
        evaluate([empty])
    with pytest.raises(ValueError, match="view 30"):
        evaluate(batches([30], 1, torch.cat([probabilities, probabilities]), torch.cat([labels, labels]), VIEWS))


@pytest.mark.parametrize("per_sample", [1, 2, 3, 6])
def test_samples_of_several_views(per_sample):
    """A sample's views are neighbours in its batch, and the index is the sample's: also where it comes twice."""
    probabilities, labels = views()
    count = VIDEOS * VIEWS // per_sample
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2)).tolist()
    order = [order[0], *order, order[-1]]
    whole = evaluate(batches(range(VIDEOS * VIEWS), 7, probabilities, labels, VIEWS))

    def loader():
        for start in range(0, len(order), 2):
            samples = torch.tensor(order[start : start + 2]).repeat_interleave(per_sample)
            view = samples * per_sample + torch.arange(len(samples)) % per_sample
            yield Batch(probabilities[view], labels[view // VIEWS], None, samples)

    result = evaluate(loader(), views_per_sample=per_sample)
    assert torch.equal(result.scores, whole.scores) and torch.equal(result.views, whole.views)


class Largest(TorchDispatchMode):
    """Notes the numbers of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        self.size = max(self.size, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_the_probabilities_of_all_views_are_never_put_together(combine):
    """There are most of them in a large test: beside the batches', which are held, only a video's sums are."""
    probabilities, labels = views()
    with Largest() as largest:
        evaluate(list(batches(range(VIDEOS * VIEWS), 3, probabilities, labels, VIEWS)), combine=combine)
    assert largest.size == VIDEOS * CLASSES < len(probabilities) * CLASSES


def test_probabilities_are_taken_in_float32():
    """Softmax follows the autocast, whose logits may be bfloat16."""
    logits = torch.randn(VIEWS, CLASSES, generator=torch.Generator().manual_seed(3)).bfloat16()
    index = torch.arange(VIEWS)
    batch = Batch(logits, torch.zeros(VIEWS, dtype=torch.int64), None, index)
    result = evaluate_views(nn.Identity(), [batch], 1, VIEWS, World(), nullcontext)
    torch.testing.assert_close(result.scores[0], logits.float().softmax(1).sum(0), rtol=1e-6, atol=0)


# What two ranks read: uneven, with views that both have (in a later and in an earlier place), and one with nothing.
SHARES = [
    (list(range(0, 30, 2)) + [1, 0], list(range(29, 0, -2)) + [4, 4]),
    ([], list(range(30))),
    (list(range(29)), []),
]


def _rank(rank, folder):
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for i, shares in enumerate(SHARES):
        for combine in ("sum", "max"):
            result = evaluate(batches(shares[rank], 4, *views(), VIEWS), World(rank, 2), combine=combine)
            save_scores(f"{folder}/{rank}_{i}_{combine}", result, ["x"] * VIDEOS)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_what_one_gives(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for i, shares in enumerate(SHARES):
        for combine in ("sum", "max"):
            one = evaluate(batches(sorted({*shares[0], *shares[1]}), 4, *views(), VIEWS), combine=combine)
            for rank in range(2):
                result, _ = load_scores(tmp_path / f"{rank}_{i}_{combine}")
                for name in ("scores", "labels", "views"):
                    assert torch.equal(getattr(result, name), getattr(one, name)), (i, combine, rank, name)
            assert one.missing.tolist() == ([4] if i == 2 else [])


def test_scores_come_back_from_their_file(tmp_path):
    result = VideoScores(torch.rand(3, 4), torch.tensor([1, -1, 3]), torch.tensor([2, 0, 1]), 2)
    names = ["a b.mp4", "ü.mp4", "c"]
    save_scores(tmp_path / "new" / "scores.safetensors", result, names)
    again, called = load_scores(tmp_path / "new" / "scores.safetensors")
    assert called == names and torch.equal(again.scores, result.scores) and again.missing.tolist() == [1, 2]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["scores.safetensors"]
    (tmp_path / "other").write_bytes(b"no folder")
    with pytest.raises(UserError, match="cannot be written"):
        save_scores(tmp_path / "other" / "x", result, names)


def test_one_line_for_each_number_of_clips():
    """The first of the list is the one that counts."""
    right = VideoScores(torch.eye(6), torch.arange(6), torch.full((6,), 5), 5)
    wrong = VideoScores(torch.eye(6), torch.tensor([0, 1, 2, 4, 5, 3]), torch.full((6,), 10), 10)
    assert accuracies({10: wrong, 5: right}) == {
        **{"top1": 50.0, "top5": pytest.approx(wrong.accuracy()["top5"]), "videos": 6},
        **{"top1/clips_10": 50.0, "top5/clips_10": pytest.approx(wrong.accuracy()["top5"])},
        **{"top1/clips_5": 100.0, "top5/clips_5": 100.0},
    }
    assert accuracies({5: right}) == {"top1": 100.0, "top5": 100.0, "videos": 6}
    (table,) = setting_tables(accuracies({10: wrong, 5: right}))
    assert table.head()[0] == "clips of a video" and [row[0] for row in table.cells()] == ["10", "5"]


def test_the_report_names_missing_videos():
    scores = torch.tensor([[0.9, 0.1], [0.2, 1.8], [0.0, 0.0], [1.5, 0.5]])
    result = VideoScores(scores, torch.tensor([0, 1, -1, 1]), torch.tensor([1, 2, 0, 2]), 2)
    names = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    confusion, by_class, missing = exhibits_of(result, ["up", "down"], names.__getitem__)
    assert confusion[0] == "confusion" and "3 videos" in confusion[2]
    assert by_class[1].rows == [["up", "1", "100.0", "–"], ["down", "2", "50.0", "up (1)"]]
    assert missing[0] == "missing_videos" and "1 of 4 videos" in missing[2]
    assert missing[1].rows == [["a.mp4", "1 of 2"], ["c.mp4", "0 of 2"]]
    whole = VideoScores(scores, torch.tensor([0, 1, 0, 1]), torch.tensor([2, 2, 2, 2]), 2)
    assert len(exhibits_of(whole, ["up", "down"], names.__getitem__)) == 2
