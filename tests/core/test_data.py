"""Order, ranks, resuming and collating: the parts of loading that know nothing of images."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from golden_cases import cases, load_case
from torch.utils.data import Dataset

from mfm_core.config import load_config, plan_run
from mfm_core.data.loader import build_loader, collate
from mfm_core.data.sampler import EpochCut, EvalSampler, TrainSampler
from mfm_core.data.seeding import derive_seed, seeded
from mfm_core.errors import UserError
from mfm_core.interfaces import BadFile, Sample, SampleKey


def indices(batches):
    return [[key.index for key in batch] for batch in batches]


def global_states():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def assert_same_states(first, second):
    assert first[0] == second[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1], second[1]))
    assert torch.equal(first[2], second[2])


class Numbers(Dataset):
    """Sample i of epoch e is the number 1000 e + i."""

    def __getitem__(self, key):
        return Sample(key.index, [torch.tensor([1000.0 * key.epoch + key.index])], label=key.index % 3)


class Failing(Dataset):
    def __getitem__(self, key):
        raise UserError("one line, for the user")


class Dying(Dataset):
    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_derived_seeds_are_the_same_everywhere_and_differ_in_every_part():
    assert derive_seed(0, "order", 1) == 8024286156118006313  # recorded: it must not change between releases
    assert derive_seed(np.int64(0), "order", np.int64(1)) == derive_seed(0, "order", 1)
    names = [(0, "order", 1), (1, "order", 0), (0, "order", 11), (0, "orde", 1), (0, "order", 1, 0), (0, "order")]
    assert len({derive_seed(*name) for name in names}) == len(names)


def test_seeded_block_repeats_and_leaves_the_outer_state_alone():
    before = global_states()
    draws = []
    for _ in range(2):
        with seeded(7):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item(), np.random.choice([1, 2, 3])))
            with seeded(8):  # nesting must not disturb the outer block
                np.random.rand()
            draws[-1] += (np.random.rand(),)
    assert draws[0] == draws[1]
    assert_same_states(before, global_states())
    with pytest.raises(ValueError), seeded(7):
        raise ValueError
    assert_same_states(before, global_states())


# --- samplers ------------------------------------------------------------------------------------------------------


def test_train_sampler_permutes_by_epoch_and_drops_the_last_incomplete_batch():
    sampler = TrainSampler(EpochCut(23, 5), seed=3)
    epochs = []
    for epoch in (0, 1):
        sampler.set_position(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 4
        assert all(key.epoch == epoch and key.replacement == 0 for batch in batches for key in batch)
        flat = sum(indices(batches), [])
        assert len(set(flat)) == 20 and set(flat) <= set(range(23))
        epochs.append(flat)
    assert epochs[0] != epochs[1]
    assert indices(TrainSampler(EpochCut(23, 5), seed=3)) == [epochs[0][i : i + 5] for i in range(0, 20, 5)]
    assert indices(TrainSampler(EpochCut(23, 5), seed=4)) != indices(TrainSampler(EpochCut(23, 5), seed=3))


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("cut", [EpochCut(50, 12), EpochCut(50, 12, drop_last=False)], ids=["whole", "uneven"])
def test_ranks_together_see_the_global_batches_of_one_process(cut, world_size):
    alone = TrainSampler(cut, seed=1, start_epoch=2)
    ranks = [TrainSampler(cut, r, world_size, seed=1, start_epoch=2) for r in range(world_size)]
    joined = [sum(parts, []) for parts in zip(*ranks)]
    assert joined == list(alone)
    assert {len(rank) for rank in ranks} == {len(alone)}
    for parts in zip(*ranks):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1, "no rank waits for another's larger share"


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("repetitions", [1, 3])
@pytest.mark.parametrize(("length", "batch"), [(48, 12), (50, 12), (23, 4), (12, 12)])
def test_an_epoch_comes_to_each_sample_once_but_those_it_says(length, batch, repetitions, drop_last):
    """Over the ranks of any number; after a stop in its middle, with other ranks than before; by as many workers as
    there are. Over some epochs, what is left out changes."""
    keys = {"TRAIN.BATCH_SIZE": batch, "AUG.REPEATED_SAMPLER": repetitions, "DATA_LOADER.DROP_LAST": drop_last}
    cfg = load_config(None, [str(word) for item in keys.items() for word in item])
    plan = plan_run(cfg, length, 1)
    assert plan.left_out == 0 or drop_last or repetitions > 1
    left_out = set()
    for epoch in range(3):
        counts = torch.zeros(length, dtype=torch.int64)
        stop = plan.steps_per_epoch // 2
        for world_size, steps in ((2, range(stop)), (3, range(stop, plan.steps_per_epoch))):
            for rank in range(world_size):
                sampler = TrainSampler(plan.cut, rank, world_size, 5, epoch, steps.start, repetitions=repetitions)
                loader = build_loader(Numbers(), sampler, num_workers=rank % 2 if epoch == 0 else 0)
                for _, got in zip(steps, loader):
                    counts += torch.bincount(got.index, minlength=length)
        assert counts.sum() == plan.cut.places and counts.max() <= repetitions
        assert (counts == 0).sum() == plan.left_out
        if drop_last:
            assert ((counts > 0) & (counts < repetitions)).sum() <= 1, "the last one may go on in no other batch"
        left_out.add(tuple((counts == 0).nonzero()[:, 0].tolist()))
    assert len(left_out) == (3 if plan.left_out else 1)


@pytest.mark.parametrize(
    ("length", "batch", "sizes"),
    [(50, 12, [10] * 5), (23, 4, [3, 4, 4, 4, 4, 4]), (13, 12, [6, 7]), (48, 12, [12] * 4), (5, 12, [5])],
)
def test_batches_of_an_epoch_that_drops_nothing_differ_by_one_sample(length, batch, sizes):
    cut = EpochCut(length, batch, drop_last=False)
    assert sorted(map(len, cut)) == sizes and len(cut) == len(sizes) and cut.smallest == sizes[0]
    assert [place for places in cut for place in places] == list(range(length))


def test_resuming_in_mid_epoch_yields_exactly_the_rest():
    whole = TrainSampler(EpochCut(40, 4), seed=5, start_epoch=3)
    resumed = TrainSampler(EpochCut(40, 4), seed=5, start_epoch=3, start_step=7)
    assert list(resumed) == list(whole)[7:]
    assert len(resumed) == len(whole) == 10
    resumed.set_position(3, 10)
    assert list(resumed) == []
    with pytest.raises(ValueError):
        resumed.set_position(3, 11)


@pytest.mark.parametrize("folder", cases("mfm_coincheung/recipes"), ids=lambda p: p.name)
def test_repeated_augmentation_takes_what_the_published_sampler_takes(folder, monkeypatch):
    """The same steps with the same files, each as often; which rank has which is another matter."""
    case, io = load_case(folder)
    about = case["config"]["repeated_augmentation_example"]
    size, ranks, repetitions = about["dataset"], about["replicas"], about["repetitions"]
    generator = torch.Generator().manual_seed(about["seed"] + about["epoch"])
    order = torch.randperm(size, generator=generator)
    monkeypatch.setattr(TrainSampler, "order", lambda self, epoch: order)
    position = {int(file): i for i, file in enumerate(order)}
    per_rank = 32
    cut = EpochCut(size, per_rank * ranks)
    samplers = [TrainSampler(cut, rank, ranks, repetitions=repetitions) for rank in range(ranks)]
    assert len(samplers[0]) == about["len_rank0"] // per_rank
    for step, parts in enumerate(zip(*samplers)):
        places = sorted(position[key.index] * repetitions + key.repetition for part in parts for key in part)
        assert places == list(range(step * per_rank * ranks, (step + 1) * per_rank * ranks))
        for rank in (0, 1):
            files = [int(order[place // repetitions]) for place in places if place % ranks == rank]
            assert files == io[f"out_ra_rank{rank}"][step * per_rank : (step + 1) * per_rank].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_repetitions_come_in_one_batch_and_apart(world_size):
    """The same global batches for any number of ranks and after a stop; no two of a file side by side."""
    alone = list(TrainSampler(EpochCut(100, 24), seed=1, start_epoch=2, repetitions=3))
    options = {"world_size": world_size, "seed": 1, "start_epoch": 2, "repetitions": 3}
    ranks = [TrainSampler(EpochCut(100, 24), rank, **options) for rank in range(world_size)]
    assert [sum(parts, []) for parts in zip(*ranks)] == alone and len(alone) == 100 // 24
    resumed = [TrainSampler(EpochCut(100, 24), rank, start_step=2, **options) for rank in range(world_size)]
    assert [sum(parts, []) for parts in zip(*resumed)] == alone[2:]
    plain = TrainSampler(EpochCut(100, 24), seed=1).order(2)[: 4 * 8].tolist()
    for step, keys in enumerate(alone):
        assert sorted((key.index, key.repetition) for key in keys) == sorted(
            (index, turn) for index in plain[step * 8 : step * 8 + 8] for turn in range(3)
        )
        assert all(one.index != other.index for one, other in zip(keys, keys[1:]))


def test_a_repetition_has_a_random_stream_of_its_own():
    """The first keeps the name it has without repetitions: it must not change between releases."""
    assert SampleKey(3, 7).stream == (3, 7, 0) and SampleKey(3, 7, 2).stream == (3, 7, 2)
    streams = {
        SampleKey(*key).stream for key in ((3, 7), (3, 7, 0, 1), (3, 7, 0, 2), (3, 7, 1), (3, 7, 1, 1), (3, 7, 2))
    }
    assert len(streams) == 6
    assert derive_seed(1, "sample", *SampleKey(3, 7).stream, 0) == derive_seed(1, "sample", 3, 7, 0, 0)


def test_batch_larger_than_the_data_set_is_one_clear_line():
    with pytest.raises(UserError, match="TRAIN.BATCH_SIZE 256 is larger than the 100 training files") as error:
        TrainSampler(EpochCut(100, 256), world_size=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("length", "batch_size", "world_size"), [(23, 4, 1), (23, 4, 2), (9, 4, 3), (8, 4, 2), (3, 4, 2)]
)
def test_eval_sampler_yields_each_sample_once_over_all_ranks(length, batch_size, world_size):
    ranks = [EvalSampler(length, batch_size, rank, world_size) for rank in range(world_size)]
    assert sorted(key.index for rank in ranks for batch in rank for key in batch) == list(range(length))
    for rank in ranks:
        batches = list(rank)
        assert len(batches) == len(rank)
        assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert indices(EvalSampler(9, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


# --- collating -----------------------------------------------------------------------------------------------------


def test_collate_keeps_the_views_of_a_sample_together_and_repeats_its_label():
    samples = [
        Sample(
            i,
            [torch.full((1, 2, 2), 10.0 * i + v) for v in range(2)],
            label=i + 5,
            masks=[torch.eye(2) > v for v in range(2)],
        )
        for i in (3, 1)
    ]
    batch = collate(samples)
    assert batch.inputs[:, 0, 0, 0].tolist() == [30, 31, 10, 11]
    assert batch.labels.tolist() == [8, 8, 6, 6] and batch.labels.dtype == torch.int64
    assert batch.index.tolist() == [3, 3, 1, 1]
    assert batch.mask.dtype == torch.bool and batch.mask[:, 0, 0].tolist() == [True, False, True, False]


def test_collate_drops_samples_without_views_but_keeps_their_bad_files():
    bad = [BadFile("a.jpg", "truncated")]
    good = Sample(1, [torch.ones(3, 2, 2)], label=4)
    batch = collate([Sample(0, [], label=2, bad=bad), good])
    assert batch.labels.tolist() == [4] and batch.index.tolist() == [1] and batch.bad == bad and batch.mask is None
    empty = collate([Sample(0, [], label=2, bad=bad)])
    assert len(empty) == 0 and empty.labels.shape == (0,) and empty.bad == bad


# --- the loader ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_follows_the_sampler_through_epochs_and_after_a_stop(workers):
    sampler = TrainSampler(EpochCut(20, 4), seed=2)
    loader = build_loader(Numbers(), sampler, workers)
    for epoch, step in ((0, 0), (1, 0), (5, 3)):
        sampler.set_position(epoch, step)
        expected = [[1000.0 * key.epoch + key.index for key in batch] for batch in sampler]
        assert [batch.inputs[:, 0].tolist() for batch in loader] == expected
    sampler.set_position(6)
    next(iter(loader))  # a run that stops here, and goes on elsewhere with the same workers
    sampler.set_position(7, 2)
    assert [batch.inputs[0, 0].item() for batch in loader] == [7000.0 + batch[0].index for batch in sampler]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_random_state_of_the_training_process_alone(workers):
    loader = build_loader(Numbers(), TrainSampler(EpochCut(20, 4)), workers)
    before = global_states()
    for _ in range(2):
        list(loader)
    assert_same_states(before, global_states())


@pytest.mark.parametrize("workers", [0, 1])
def test_user_errors_of_a_data_set_arrive_as_they_are(workers):
    with pytest.raises(UserError, match="^one line, for the user$"):
        list(build_loader(Failing(), TrainSampler(EpochCut(8, 4)), workers))


def test_a_dead_worker_is_explained():
    with pytest.raises(UserError, match="memory.*DATA_LOADER.NUM_WORKERS") as error:
        list(build_loader(Dying(), TrainSampler(EpochCut(8, 4)), 1))
    assert "\n" not in str(error.value)


def test_sample_keys_travel_to_workers_as_keys():
    """A worker that received plain tuples would lose `key.epoch`."""
    batch = next(iter(build_loader(Numbers(), [[SampleKey(2, 1)]], 1)))
    assert batch.inputs.item() == 2001
