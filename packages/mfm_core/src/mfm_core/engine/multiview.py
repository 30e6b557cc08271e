"""Videos judged by several views: the class probabilities of a video's clips and crops are added up.

The protocol of PySlowFast's tests (Feichtenhofer et al. 2019, SlowFast, section 4): NUM_ENSEMBLE_VIEWS clips, evenly
spread over a video, times NUM_SPATIAL_CROPS crops of each. An image is a video with a single view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfm_core.engine.evaluate import correct_in_top
from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.monitor.settings import setting_name
from mfm_core.parallel.world import World

COMBINE = ("sum", "max")


@dataclass(frozen=True)
class VideoScores:
    """What the views of all videos say together, on CPU and the same on all ranks.

    scores: (videos, classes) float32, the sum (or the largest) of class probabilities over the views that came; zeros
    where none did. labels: (videos,) int64, -1 where no view came or there is no label. views: (videos,) int64, how
    many came.
    """

    scores: Tensor
    labels: Tensor
    views: Tensor
    views_per_video: int

    @property
    def seen(self) -> Tensor:
        """(videos,) bool: at least one view came."""
        return self.views > 0

    @property
    def counted(self) -> Tensor:
        """(videos,) bool: what accuracy is a share of, the videos that were seen and have a label."""
        return self.seen & (self.labels >= 0)

    @property
    def missing(self) -> Tensor:
        """Indices of the videos that lack views, all of them or some."""
        return (self.views < self.views_per_video).nonzero()[:, 0]

    @property
    def predicted(self) -> Tensor:
        """(videos,) int64: the class with the highest score, -1 where no view came."""
        return torch.where(self.seen, self.scores.argmax(dim=1), -1)

    def accuracy(self) -> dict[str, float]:
        """top1 and top5 in percent over the `videos` that are counted; only their number where there are none."""
        scores, labels = self.scores[self.counted], self.labels[self.counted]
        if not len(labels):
            return {"videos": 0}
        found = {f"top{k}": 100 * int(correct_in_top(scores, labels, k)) / len(labels) for k in (1, 5)}
        return {**found, "videos": len(labels)}


def accuracies(results: Mapping[int, VideoScores]) -> dict[str, float]:
    """top1, top5 and videos of the first of several tests, by their number of clips (TEST.NUM_TEMPORAL_CLIPS).

    Where there are more than one, top1/clips_N and top5/clips_N of each follow.
    """
    found = {clips: result.accuracy() for clips, result in results.items()}
    tops = [(clips, top) for clips in found for top in ("top1", "top5") if top in found[clips]]
    each = {setting_name(top, "clips", clips): found[clips][top] for clips, top in tops}
    return next(iter(found.values())) | (each if len(found) > 1 else {})


@torch.inference_mode()
def evaluate_views(
    model: nn.Module,
    loader: Iterable[Batch],
    videos: int,
    views_per_video: int,
    world: World,
    autocast: Callable[[], AbstractContextManager],
    views_per_sample: int = 1,
    combine: str = "sum",
) -> VideoScores:
    """Scores of `videos` videos, from whatever views the ranks' loaders give, in any order.

    View v belongs to video v // views_per_video. A sample holds `views_per_sample` views that follow each other, one
    or all crops of a clip, say: `Batch.index` i stands for the views from i * views_per_sample on. A view that comes
    again, on any rank, counts once. combine: sum | max over a video's views.

    All ranks must call. Raises UserError where no view could be read, ValueError for an index beyond the last view.
    """
    if combine not in COMBINE:
        raise ValueError(f"views are combined by one of {COMBINE}, not '{combine}'")
    found = list(_own_views(model, loader, world, autocast, views_per_sample))
    view = torch.cat([_NONE, *(batch.view for batch in found)])
    if len(view) and int(view.max()) >= videos * views_per_video:
        raise ValueError(f"view {int(view.max())} is not one of {videos} videos with {views_per_video} views each")
    classes = max((batch.probability.shape[1] for batch in found), default=0)
    classes = int(world.all_max(torch.tensor(classes, device=world.device)))
    if not classes:
        raise UserError("None of the files to test on can be read; check them with `run_net.py doctor`.")
    scores = torch.zeros(videos, classes, dtype=torch.float64)  # in float64 the ranks' shares do not show
    views, labels = torch.zeros(videos, dtype=torch.int64), torch.full((videos,), -1)
    for batch, new in zip(found, _first_here(view, world).split([len(batch.view) for batch in found])):
        video, probability = batch.view[new] // views_per_video, batch.probability[new].double()
        if combine == "sum":
            scores.index_add_(0, video, probability)
        else:
            scores.scatter_reduce_(0, video[:, None].expand_as(probability), probability, "amax")
        views += torch.bincount(video, minlength=videos)
        labels.index_copy_(0, video, batch.label[new])
    together = world.all_sum if combine == "sum" else world.all_max
    scores = together(scores.to(world.device))
    views, labels = world.all_sum(views.to(world.device)), world.all_max(labels.to(world.device))
    return VideoScores(scores.cpu().float(), labels.cpu(), views.cpu(), views_per_video)


class _Views(NamedTuple):
    """What a batch says, on CPU: numbers of the views (N,), probabilities (N, classes) float32 and labels (N,)."""

    view: Tensor
    probability: Tensor
    label: Tensor


_NONE = torch.empty(0, dtype=torch.int64)


def _own_views(
    model: nn.Module,
    loader: Iterable[Batch],
    world: World,
    autocast: Callable[[], AbstractContextManager],
    views_per_sample: int,
) -> Iterator[_Views]:
    """This rank's views, batch by batch. Tests are large: they are held once, as another rank may have some, too."""
    for batch in loader:
        if not len(batch):  # all its files were unreadable
            continue
        view = batch.index.cpu() * views_per_sample + _place_in_sample(batch.index.cpu()) % views_per_sample
        with autocast():
            logits = model(batch.inputs.to(world.device, non_blocking=True))
        yield _Views(view, logits.float().softmax(dim=1).cpu(), batch.labels.cpu())


def _place_in_sample(index: Tensor) -> Tensor:
    """For each of (B,) entries, how many equal ones stand right before it: the views of a sample are neighbours."""
    place = torch.arange(len(index))
    starts = torch.ones(len(index), dtype=torch.bool)
    starts[1:] = index[1:] != index[:-1]
    return place - torch.where(starts, place, 0).cummax(dim=0).values


def _first_here(view: Tensor, world: World) -> Tensor:
    """(N,) bool: the first of equal entries of `view` (N,), where no rank before this one has it."""
    order = view.argsort(stable=True)
    ordered = view[order]
    first = torch.ones(len(view), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    before = torch.cat([_NONE, *world.gather(view)[: world.rank]])
    return torch.zeros_like(first).index_copy_(0, order, first & ~torch.isin(ordered, before))
