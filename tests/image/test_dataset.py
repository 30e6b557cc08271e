"""Samples are functions of the seed and the key: workers, resuming and unreadable files change nothing else."""

import random
import shutil

import numpy as np
import pytest
import torch

from mfm_core.data.files import MAX_REPLACEMENTS
from mfm_core.data.loader import build_loader
from mfm_core.data.sampler import EpochCut, EvalSampler, TrainSampler
from mfm_core.errors import UserError
from mfm_core.interfaces import SampleKey
from mfm_image.data.dataset import ImageDataset
from mfm_image.data.decode import decode_image
from mfm_image.data.folder import ImageFolder
from mfm_image.data.transforms import EvalTransform, TrainTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Halves:
    """A mask generator: hides each cell with probability one half."""

    grid = (4, 4)

    def __call__(self, generator, image):
        return torch.rand(self.grid, generator=generator) < 0.5


@pytest.fixture(scope="module")
def photos(photo_folder):
    return photo_folder


@pytest.fixture
def damaged(photos, tmp_path):
    """A copy in which the files 3 of train and 1 of val, counted over all classes, are cut short."""
    root = tmp_path / "damaged"
    shutil.copytree(photos, root)
    for name in ("train/apple/3.JPEG", "val/apple/1.JPEG"):
        (root / name).write_bytes((root / name).read_bytes()[:-200])
    return root


def train_set(root, **options):
    transform = TrainTransform(
        32, MEAN, STD, scale=(0.3, 1.0), auto_augment="rand-m9-mstd0.5-inc1", erase_prob=0.5, erase_mode="pixel"
    )
    return ImageDataset(ImageFolder(root, "train"), transform, **{"seed": 1, "mask_generator": Halves(), **options})


def eval_set(root):
    return ImageDataset(ImageFolder(root, "val"), EvalTransform(32, MEAN, STD), train=False)


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.mask, b.mask)
        assert torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index) and a.bad == b.bad


def epoch_of(root, epoch, step=0, workers=0, rank=0, world_size=1):
    dataset = train_set(root, num_samples=2)
    sampler = TrainSampler(EpochCut(len(dataset), 4), rank, world_size, seed=1, start_epoch=epoch, start_step=step)
    return list(build_loader(dataset, sampler, workers))


def test_the_number_of_workers_does_not_matter(photos):
    assert_equal(epoch_of(photos, epoch=2), epoch_of(photos, epoch=2, workers=2))


def test_resuming_in_mid_epoch_gives_the_same_remaining_batches(photos):
    random.seed(99), torch.manual_seed(99)  # a resumed process has another global state
    assert_equal(epoch_of(photos, epoch=1)[4:], epoch_of(photos, epoch=1, step=4))


def test_two_ranks_see_what_one_process_sees(photos):
    alone = epoch_of(photos, epoch=0)
    ranks = [epoch_of(photos, epoch=0, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(alone, *ranks):
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
        assert torch.equal(batch.mask, torch.cat([part.mask for part in parts]))
        assert batch.index.tolist() == sum((part.index.tolist() for part in parts), [])


def test_everything_random_differs_by_epoch_index_view_and_seed(photos):
    dataset = train_set(photos, num_samples=2)
    one, other_seed = dataset[SampleKey(0, 5)], train_set(photos, num_samples=2, seed=2)[SampleKey(0, 5)]
    other_epoch, other_index = dataset[SampleKey(1, 5)], dataset[SampleKey(0, 6)]
    views = [one, other_seed, other_epoch, other_index]
    masks = [mask for sample in views for mask in sample.masks]
    images = [view for sample in views for view in sample.views]
    for things in (masks, images):
        assert len({thing.numpy().tobytes() for thing in things}) == 8
    assert torch.equal(dataset[SampleKey(0, 5)].views[1], one.views[1])


def test_the_first_view_does_not_depend_on_how_many_there_are(photos):
    one, two = (train_set(photos, num_samples=n)[SampleKey(3, 7)] for n in (1, 2))
    assert torch.equal(one.views[0], two.views[0]) and torch.equal(one.masks[0], two.masks[0])


def test_repetitions_of_a_file_are_augmented_differently(photos):
    dataset = train_set(photos)
    samples = [dataset[SampleKey(0, 5, repetition=turn)] for turn in (0, 1, 2)]
    assert len({sample.views[0].numpy().tobytes() for sample in samples}) == 3
    assert len({sample.masks[0].numpy().tobytes() for sample in samples}) == 3
    assert {sample.index for sample in samples} == {5}
    assert torch.equal(samples[0].views[0], dataset[SampleKey(0, 5)].views[0])


def test_repetitions_do_not_depend_on_workers_or_ranks(photos):
    def batches(workers, rank=0, world_size=1):
        dataset = train_set(photos)
        sampler = TrainSampler(EpochCut(len(dataset), 6), rank, world_size, seed=1, repetitions=3)
        return list(build_loader(dataset, sampler, workers))

    alone = batches(0)
    assert_equal(alone, batches(2))
    for batch, *parts in zip(alone, *(batches(0, rank, 2) for rank in range(2))):
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))


def test_loading_does_not_touch_the_random_state_of_this_process(photos):
    dataset = train_set(photos)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for index in range(6):
        dataset[SampleKey(0, index)]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_labels_and_pixels_belong_together(photos):
    folder = ImageFolder(photos, "train")
    dataset = ImageDataset(folder, EvalTransform(32, MEAN, STD, crop_ratio=0))
    for index in (0, 9, 23):
        sample = dataset[SampleKey(0, index)]
        assert (sample.index, sample.label) == (index, index // 8)
        pixels = decode_image(folder.paths[index])
        crop = dataset.transform.plan(*pixels.shape[1:], None)
        assert torch.equal(sample.views[0], dataset.transform.apply(pixels, crop))


def test_evaluation_is_the_same_in_every_epoch(photos):
    dataset = ImageDataset(
        ImageFolder(photos, "val"), TrainTransform(32, MEAN, STD), mask_generator=Halves(), train=False
    )
    first, later = dataset[SampleKey(0, 3)], dataset[SampleKey(7, 3)]
    assert torch.equal(first.views[0], later.views[0]) and torch.equal(first.masks[0], later.masks[0])


def test_unreadable_training_file_is_replaced_recorded_and_named(damaged):
    dataset = train_set(damaged)
    sample, again = dataset[SampleKey(0, 3)], dataset[SampleKey(0, 3)]
    assert [file.path for file in sample.bad] == [str(damaged / "train/apple/3.JPEG")]
    assert "truncated" in sample.bad[0].reason
    assert sample.index != 3 and sample.index == dataset.file_of(SampleKey(0, 3, replacement=1))
    assert sample.label == sample.index // 8
    assert sample.index == again.index and torch.equal(sample.views[0], again.views[0])
    assert len({dataset[SampleKey(epoch, 3)].index for epoch in range(10)}) > 3
    own = dataset[SampleKey(0, sample.index)]
    assert not torch.equal(own.views[0], sample.views[0])  # not the same view twice in an epoch
    continued = dataset[SampleKey(0, 3, replacement=1)]
    assert torch.equal(continued.views[0], sample.views[0]) and continued.bad == []


def test_unreadable_evaluation_file_is_left_out_of_its_batch_and_counted(damaged):
    dataset = eval_set(damaged)
    batches = list(build_loader(dataset, EvalSampler(len(dataset), 2), num_workers=1))
    assert [batch.index.tolist() for batch in batches] == [[0], [2, 3], [4, 5]]
    assert [len(batch.bad) for batch in batches] == [1, 0, 0]
    alone = list(build_loader(dataset, [[SampleKey(0, 1)]], num_workers=0))
    assert len(alone[0]) == 0 and alone[0].bad[0].path.endswith("val/apple/1.JPEG")


def test_a_folder_full_of_unreadable_files_is_an_error_of_one_line(tmp_path):
    for i in range(30):
        path = tmp_path / "train" / "a" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no image")
    with pytest.raises(UserError, match=f"{MAX_REPLACEMENTS + 1} of {MAX_REPLACEMENTS + 1} tried") as error:
        train_set(tmp_path)[SampleKey(0, 0)]
    assert str(tmp_path / "train") in str(error.value) and "\n" not in str(error.value)


def test_first_view_stays_whole(photos):
    """AUG.RE_SPLIT: erasing, in the later views only; the rest of each view is as without it."""
    folder = ImageFolder(photos, "train")
    whole = TrainTransform(32, MEAN, STD)
    erased = TrainTransform(32, MEAN, STD, erase_prob=1.0, erase_mode="const")
    plain = ImageDataset(folder, whole, seed=1, num_samples=2)[SampleKey(0, 0)].views
    split = ImageDataset(folder, erased, seed=1, num_samples=2, first_view=whole)[SampleKey(0, 0)].views
    torch.testing.assert_close(split[0], plain[0], rtol=0, atol=0)
    changed = (split[1] != plain[1]).any(dim=0)
    assert 0 < changed.float().mean() < 0.5 and (split[1][:, changed] == 0).all()
