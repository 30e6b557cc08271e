"""k-NN on frozen features: the published tool's numbers, and features gathered over uneven ranks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mfm_core.errors import UserError
from mfm_core.interfaces import Batch
from mfm_core.parallel.world import World
from mfm_core.probe import knn
from mfm_core.probe.features import collect
from mfm_core.probe.knn import knn_accuracy, knn_predict, shared_knn_accuracy

GOLDEN = Path(os.environ.get("MFM_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")
CASES = sorted(path.parent for path in GOLDEN.glob("*/knn*/case.json"))


@pytest.fixture(params=CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def case(request):
    case = json.loads((request.param / "case.json").read_text())
    arrays = {name: torch.from_numpy(value) for name, value in np.load(request.param / "io.npz").items()}
    return case, arrays


def test_golden_scores_and_rankings(case):
    case, arrays = case
    config = case["config"]
    inputs = [arrays["in_train_features"], arrays["in_train_labels"], arrays["in_test_features"]]
    scores = knn_predict(*inputs, config["classes"], config["ks"], config["T"])
    assert list(scores) == config["ks"]
    for k, score in scores.items():
        torch.testing.assert_close(score, arrays[f"out_scores_k{k}"], **case["tolerance"])
        ranking = score.argsort(dim=1, descending=True, stable=True)
        assert torch.equal(ranking, arrays[f"out_ranking_k{k}"])
        assert torch.equal(ranking[:, 0], arrays[f"out_pred_k{k}"])


def test_golden_accuracies(case):
    case, arrays = case
    config = case["config"]
    names = ["in_train_features", "in_train_labels", "in_test_features", "in_test_labels"]
    for classes in (config["classes"], config["tool_default_num_classes"]):
        best, five = (
            knn_accuracy(*(arrays[n] for n in names), classes, config["ks"], config["T"], top=top) for top in (1, 5)
        )
        for k in config["ks"]:
            assert [best[k], five[k]] == pytest.approx(case["results"][f"k{k}_classes{classes}"])
        bank, queries = (arrays[names[0]], arrays[names[1]]), (arrays[names[2]], arrays[names[3]])
        shared = shared_knn_accuracy(bank, queries, classes, config["ks"], config["T"], World())
        assert shared == {k: pytest.approx((best[k], five[k])) for k in config["ks"]}


def blobs(n, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    return 3 * torch.eye(4, 16)[labels] + torch.randn(n, 16, generator=g), labels


def test_chunks_do_not_change_the_scores(monkeypatch):
    (bank, bank_labels), (queries, _) = blobs(100, 0), blobs(37, 1)
    whole = knn_predict(bank, bank_labels, queries, 4, [1, 7])
    monkeypatch.setattr(knn, "_CHUNK_ELEMENTS", 500)
    for k, scores in knn_predict(bank, bank_labels, queries, 4, [1, 7]).items():
        torch.testing.assert_close(scores, whole[k], rtol=1e-5, atol=1e-3)


def test_scale_of_features_does_not_matter():
    (bank, bank_labels), (queries, labels) = blobs(200, 0), blobs(50, 1)
    plain = knn_accuracy(bank, bank_labels, queries, labels, 4, [10])
    assert plain == knn_accuracy(bank * 8, bank_labels, queries * 0.25, labels, 4, [10])
    assert plain[10] > 80


@pytest.mark.parametrize("temperature", [1e-4, 0.005, 0.01, 0.0165, 0.0168])
@pytest.mark.parametrize("opposite", [False, True])
def test_low_temperatures_rank_as_exact_numbers_do(temperature, opposite):
    """Of float32, exp(similarity / temperature) leaves infinities or zeros, from similarities of 1 or of -1."""
    (bank, bank_labels), (queries, _) = blobs(200, 0), blobs(50, 1)
    if opposite:
        bank, queries = bank.abs(), -queries.abs()
    similarity = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    similarity, nearest = similarity.topk(20, dim=1)
    votes = ((similarity - similarity[:, :1]).double() / temperature).exp()
    exact = torch.zeros(50, 4, dtype=torch.float64).scatter_add_(1, bank_labels[nearest], votes)
    scores = knn_predict(bank, bank_labels, queries, 4, [20], temperature)[20]
    assert scores.isfinite().all() and torch.equal(scores.argmax(1), exact.argmax(1))
    shares = scores.double() / scores.double().sum(1, keepdim=True)
    torch.testing.assert_close(shares, exact / exact.sum(1, keepdim=True), rtol=0, atol=2e-2)


@pytest.mark.parametrize(("k", "said"), [([], "KNN.K"), ([0], "KNN.K"), ([201], "KNN.K.*only 200.*doctor")])
def test_neighbours_that_cannot_be_had(k, said):
    bank, labels = blobs(200, 0)
    with pytest.raises(UserError, match=said):
        knn_predict(bank, labels, bank, 4, k)


def test_labels_and_shapes_are_checked():
    bank, labels = blobs(20, 0)
    with pytest.raises(ValueError, match="0..2"):
        knn_predict(bank, labels, bank, 3, [1])
    with pytest.raises(ValueError, match=r"\(20, 16\)"):
        knn_predict(bank, labels, bank[:, :3], 4, [1])


def batches(index, size):
    """Batches over a data set of 3x2x2 images whose pixels follow from their position in it."""
    for part in torch.tensor(index, dtype=torch.int64).split(size) if index else []:
        images = torch.stack([torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(int(i))) for i in part])
        yield Batch(inputs=images, labels=part % 5, mask=None, index=part)


def features_of(images):
    return images.flatten(1) * 2


def test_collect_orders_and_counts_once():
    autocast = torch.autocast("cpu", torch.bfloat16)
    features, labels = collect(features_of, batches([3, 1, 0, 2, 3, 0], 4), "cpu", autocast)
    expected = torch.cat([features_of(b.inputs) for b in batches([0, 1, 2, 3], 4)])
    assert torch.equal(features, expected) and features.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="can be read"):
        collect(features_of, [], "cpu")


SHARES = [([0, 2, 4, 6, 0], [5, 1, 3]), ([1, 0, 2], [])]


def _rank(rank, folder):
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = [collect(features_of, batches(shares[rank], 2), "cpu") for shares in SHARES]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_uneven_ranks_give_what_one_process_gives(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for shares, (features, labels) in zip(SHARES, found):
            one = collect(features_of, batches(sorted(set(shares[0] + shares[1])), 3), "cpu")
            assert torch.equal(features, one[0]) and torch.equal(labels, one[1])
