"""The multiscale transformer: its attention written out, torchvision's models, other sizes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mvit_cases import recipe
from torchvision.models.video import mvit as torchvision_mvit
from torchvision.models.video import mvit_v1_b, mvit_v2_s

from mfm_core.checkpoint.formats import read_checkpoint
from mfm_core.checkpoint.init_from import init_from
from mfm_core.config import get_cfg, validate
from mfm_core.config.idle import warnings
from mfm_core.errors import UserError
from mfm_core.masking.enlarged import enlarge
from mfm_core.nn import attention
from mfm_video.backbones.mvit import mvit_from_cfg
from mfm_video.backbones.pooling_attention import PoolingAttention
from mfm_video.backbones.relative_positions import distances
from mfm_video.backbones.stages import BlockPlan, Pooling, adaptive_strides, multiplied, plan_blocks
from mfm_video.models import build_model

POOL = Pooling((3, 3, 3), (1, 2, 2))
COARSE = Pooling((3, 3, 3), (2, 4, 2))


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All parameters anew, so that no bias, norm or table is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim == 1 or "rel_pos" in name else 0.1))
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)
    return module


# ---- attention ----------------------------------------------------------------------------------------------------


def written_out(attn: PoolingAttention, x, grid):
    """Pooling attention as it is published, each logit's three position terms added one by one."""
    plan, prefix = attn.plan, attn.prefix
    q, k, v = attn.qkv(x).unflatten(2, (3, plan.heads, -1)).permute(2, 0, 3, 1, 4)

    def pooled(x, pool, norm):
        if pool is None:
            return x
        volume = torch.stack([head.transpose(1, 2).unflatten(2, grid) for head in x[:, :, prefix:].unbind(1)])
        body = torch.stack([pool(head).flatten(2).transpose(1, 2) for head in volume], dim=1)
        x = torch.cat([x[:, :, :prefix], body], dim=2)
        return x if norm is None else norm(x)

    q = pooled(q, attn.pool_q, attn.norm_q)
    k, v = pooled(k, attn.pool_k, attn.norm_k), pooled(v, attn.pool_v, attn.norm_v)
    q_grid, k_grid = plan.out_grid(grid), plan.key_grid(grid)
    logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    bias = torch.zeros(*q.shape[:2], *q_grid, *k_grid)
    body = q[:, :, prefix:].unflatten(2, q_grid)
    for axis, table in enumerate((attn.rel_pos_t, attn.rel_pos_h, attn.rel_pos_w)):
        if table is None:
            continue
        n, m = q_grid[axis], k_grid[axis]
        rows = 2 * max(n, m) - 1
        if len(table) != rows:
            table = F.interpolate(table.T[None], size=rows, mode="linear")[0].T
        for i in range(n):
            for j in range(m):
                row = table[int(i * max(m / n, 1) - j * max(n / m, 1) + (m - 1) * max(n / m, 1))]
                term = (body.select(2 + axis, i) * row).sum(-1)[..., None, None]
                bias.select(2 + axis, i).select(4 + axis, j).add_(term)
    full = F.pad(bias.flatten(5).flatten(2, 4), (prefix, 0, prefix, 0))
    out = (logits + full).softmax(dim=-1) @ v
    if attn.residual_pooling:
        out = torch.cat([out[:, :, :prefix], out[:, :, prefix:] + q[:, :, prefix:]], dim=2)
    return attn.proj(out.transpose(1, 2).flatten(2))


CASES = {
    "as published": (POOL, COARSE, (4, 8, 8), 1, {}),
    "no class token, oblong, odd": (POOL, COARSE, (3, 7, 10), 0, {}),
    "fewer queries than keys": (Pooling((3, 3, 3), (2, 4, 4)), POOL, (4, 8, 8), 1, {}),
    "sizes without a common multiple": (Pooling((1, 2, 2), (1, 2, 2)), Pooling((3, 3, 3), (1, 3, 3)), (2, 9, 9), 1, {}),
    "space only": (POOL, COARSE, (4, 8, 8), 1, {"rel_pos_temporal": False}),
    "time only": (POOL, COARSE, (4, 8, 8), 1, {"rel_pos_spatial": False}),
    "no positions, no residual": (
        POOL,
        COARSE,
        (4, 8, 8),
        1,
        {"rel_pos_spatial": False, "rel_pos_temporal": False, "residual_pooling": False},
    ),
    "nothing pooled": (None, None, (2, 4, 4), 1, {}),
    "averages": (POOL, COARSE, (4, 8, 8), 1, {"mode": "avg"}),
    "maxima": (POOL, COARSE, (4, 8, 8), 1, {"mode": "max"}),
}


@pytest.mark.parametrize("kernel", ["fused", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_attention_is_exact(case, kernel, monkeypatch):
    """Outputs and all gradients, through both ways that `attend_extended` can take on a CPU."""
    monkeypatch.setattr(attention, "PLAIN_ON_CPU", {4: 10_000 if kernel == "plain" else 0})
    pool_q, pool_kv, grid, prefix, options = CASES[case]
    attn = randomised(PoolingAttention(BlockPlan(24, 24, 24, 2, pool_q, pool_kv), grid, prefix, **options))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, prefix + grid[0] * grid[1] * grid[2], 24, generator=generator, requires_grad=True)
    got, expected = attn(x, grid), written_out(attn, x, grid)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(expected.shape, generator=generator)
    wanted = (x, *attn.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(out, wanted, upstream) for out in (got, expected))):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5 * float(theirs.abs().max()) + 1e-5)


def test_distances_are_truncated():
    """Rows of the table for 3 queries and 2 keys: steps of 1 and 1.5 on the finer scale."""
    assert distances(3, 2).tolist() == [[1, 0], [2, 1], [3, 2]]
    assert distances(2, 4).tolist() == [[3, 2, 1, 0], [5, 4, 3, 2]]


@pytest.mark.parametrize("kernel", ["fused", "plain"])
def test_bf16_autocast(kernel, monkeypatch):
    """Under autocast the norms behind the pooling give float32; the products are bfloat16's, the result close."""
    monkeypatch.setattr(attention, "PLAIN_ON_CPU", {2: 10_000 if kernel == "plain" else 0})
    seen = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *a, **k: seen.append(q) or original(q, *a, **k))
    attn = randomised(PoolingAttention(BlockPlan(24, 24, 24, 2, POOL, COARSE), (4, 8, 8), 1))
    x = torch.randn(2, 257, 24, generator=torch.Generator().manual_seed(1))
    exact = attn(x, (4, 8, 8)).detach()
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attn(x, (4, 8, 8))
    assert out.dtype == torch.bfloat16
    assert float((out.detach() - exact).norm() / exact.norm()) < 0.02
    assert [(q.dtype, q.shape[-1] % 8) for q in seen] == ([(torch.bfloat16, 0)] if kernel == "fused" else [])


# ---- torchvision's models -----------------------------------------------------------------------------------------


def torchvision_config(side: int, frames: int, version: int):
    """MViTv2-S, or MViT-B, as torchvision builds them."""
    cfg = get_cfg()
    cfg.TRAIN.DATASET = "kinetics"
    cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.NUM_FRAMES = side, frames
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH, cfg.MODEL.NUM_CLASSES = "MViT", "mvit", 11
    mvit = cfg.MVIT
    mvit.PATCH_PADDING, mvit.POOL_KVQ_KERNEL = [1, 3, 3], [3, 3, 3]
    mvit.DIM_MUL = mvit.HEAD_MUL = [[1, 2.0], [3, 2.0], [14, 2.0]]
    down, pooled = (1, 3, 14), range(16) if version == 2 else (1, 3, 14)
    mvit.POOL_Q_STRIDE = [[i, 1, 2, 2] if i in down else [i, 1, 1, 1] for i in pooled]
    mvit.POOL_KV_STRIDE_ADAPTIVE = [1, 8, 8]
    relative = version == 2
    mvit.DIM_MUL_IN_ATT = mvit.REL_POS_SPATIAL = mvit.REL_POS_TEMPORAL = mvit.RESIDUAL_POOLING = relative
    mvit.USE_ABS_POS, mvit.SEP_POS_EMBED = not relative, not relative
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "make", "side", "frames"), [(2, mvit_v2_s, 224, 16), (2, mvit_v2_s, 96, 4), (1, mvit_v1_b, 96, 4)]
)
def test_equals_torchvision(version, make, side, frames, tmp_path, monkeypatch):
    """Random weights through the checkpoint layout, all of them used: the same logits."""
    sized = torchvision_mvit.MViT
    monkeypatch.setattr(  # its functions know one size only
        torchvision_mvit,
        "MViT",
        lambda spatial_size, temporal_size, **rest: sized(spatial_size=(side, side), temporal_size=frames, **rest),
    )
    theirs = randomised(make(num_classes=11)).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_model(torchvision_config(side, frames, version)).eval()
    report = init_from(ours, str(tmp_path / "theirs.pth"))
    assert report.layout == "torchvision MViT"
    assert not report.missing and not report.unused and not report.resampled and not report.other_shape
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    clip = torch.randn(1, 3, frames, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs(clip)
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(ours(clip), expected, rtol=1e-4, atol=1e-4)


def test_torchvision_at_full_size():
    """The published size, 34,537,744 parameters for 400 classes, and every name of it."""
    cfg = torchvision_config(224, 16, version=2)
    cfg.MODEL.NUM_CLASSES = 400
    with torch.device("meta"):
        ours, theirs = build_model(cfg), mvit_v2_s()
    assert sum(p.numel() for p in ours.parameters()) == 34_537_744
    checkpoint = read_checkpoint(theirs.state_dict(), "x.pth")
    checkpoint.rename(checkpoint.layout.token_norm, "head.norm.")
    shapes = {name: t.numel() for name, t in checkpoint.state.items()}
    assert shapes == {name: t.numel() for name, t in ours.state_dict().items()}


# ---- the model ----------------------------------------------------------------------------------------------------


def tiny(**mvit):
    """A small multiscale configuration, 4 frames of 64 pixels."""
    cfg = get_cfg()
    cfg.TRAIN.DATASET = cfg.TEST.DATASET = "kinetics"
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = 64
    cfg.DATA.NUM_FRAMES = 4
    cfg.MODEL.MODEL_NAME, cfg.MODEL.ARCH, cfg.MODEL.NUM_CLASSES = "MViT", "mvit", 5
    values = {
        "EMBED_DIM": 16,
        "DEPTH": 4,
        "PATCH_PADDING": [1, 3, 3],
        "POOL_KVQ_KERNEL": [3, 3, 3],
        "DIM_MUL": [[1, 2.0]],
        "HEAD_MUL": [[1, 2.0]],
        "POOL_Q_STRIDE": [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 2, 2]],
        "POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4],
        "REL_POS_SPATIAL": True,
        "REL_POS_TEMPORAL": True,
        "RESIDUAL_POOLING": True,
        "USE_ABS_POS": False,
        "DROPPATH_RATE": 0.0,
    }
    for key, value in {**values, **mvit}.items():
        cfg.MVIT[key] = value
    cfg.MASK.PRED_HOG, cfg.MASK.PRETRAIN_DEPTH = True, [3]
    return cfg


def test_other_sizes_resample_positions():
    """A clip of another size is encoded as by a model of that size that starts from this one's checkpoint."""
    for positions in ({}, {"USE_ABS_POS": True}, {"USE_ABS_POS": True, "SEP_POS_EMBED": True}):
        model = randomised(mvit_from_cfg(tiny(**positions))).eval()
        clip = torch.randn(1, 3, 6, 96, 96, generator=torch.Generator().manual_seed(0))
        tokens = model.tokens(clip)
        assert tokens.shape == (1, 1 + 3 * 6 * 6, 32)
        cfg = tiny(**positions)
        cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.NUM_FRAMES = 96, 6
        larger = mvit_from_cfg(cfg).eval()
        state = larger.state_dict()
        for name, tensor in model.state_dict().items():
            if state[name].shape != tensor.shape and "rel_pos" in name:
                tensor = F.interpolate(tensor.T[None], size=len(state[name]), mode="linear")[0].T
            if state[name].shape == tensor.shape:
                state[name].copy_(tensor)
        if positions:
            table = model._positions(larger.embed_grid)
            with torch.no_grad():
                larger._positions = lambda grid, table=table: table
        torch.testing.assert_close(larger.tokens(clip), tokens, rtol=1e-4, atol=1e-5)


def test_separable_positions_are_sums():
    model = randomised(mvit_from_cfg(tiny(USE_ABS_POS=True, SEP_POS_EMBED=True)))
    table = model._positions(model.embed_grid)[0]
    t, h, w = model.embed_grid
    for place in ((0, 0, 0), (1, 2, 3), (1, 15, 0)):
        row = 1 + (place[0] * h + place[1]) * w + place[2]
        expected = model.pos_embed.temporal[0, place[0]] + model.pos_embed.spatial[0, place[1] * w + place[2]]
        torch.testing.assert_close(table[row], expected)
    torch.testing.assert_close(table[0], model.pos_embed.cls[0, 0])
    resampled = model._positions((t, h, 2 * w))
    assert resampled.shape == (1, 1 + t * h * 2 * w, 16)
    torch.testing.assert_close(resampled[0, 1], table[1])  # half-pixel centres: the first lies outside the old ones


def test_checkpointing_changes_no_number():
    cfg = tiny()
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        cfg.MODEL.ACT_CHECKPOINT = recompute
        model = randomised(mvit_from_cfg(cfg))
        model.tokens(clip).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for mine, theirs in zip(*gradients):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_compiles_without_a_break():
    model = randomised(mvit_from_cfg(tiny()))
    clip = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model.tokens, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(clip), model.tokens(clip))


def test_heads_of_several_depths():
    """Blocks of one grid and of different widths; the losses add up."""
    cfg = tiny(POOL_Q_STRIDE=[[0, 1, 2, 2], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 1, 1]], DIM_MUL=[[1, 2.0], [3, 2.0]])
    cfg.MODEL.MODEL_NAME, cfg.MASK.PRETRAIN_DEPTH = "MaskMViT", [1, 3]
    model = build_model(cfg)
    assert (model.backbone.dims, model.backbone.grid) == ([32, 32, 64, 64], (2, 4, 4))
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    output = model(clip, mask)
    hidden = enlarge(mask, model.backbone.embed_grid).flatten(1)
    features = model.backbone.encode(model.corruption(model.backbone.embed(clip), hidden), [1, 3])
    each = [model.loss(p, output.target, mask.flatten(1)) for p in model.head([x[:, 1:] for x in features])]
    torch.testing.assert_close(output.loss, each[0] + each[1])
    assert abs(each[0].item() - each[1].item()) > 1e-5
    cfg.MASK.PRETRAIN_DEPTH = [0, 3]
    with pytest.raises(UserError, match="has another grid of tokens"):
        build_model(cfg)
    cfg = tiny()
    cfg.MODEL.MODEL_NAME, cfg.DATA.TRAIN_CROP_SIZE = "MaskMViT", 72
    with pytest.raises(UserError, match="DATA.TRAIN_CROP_SIZE 72 to be a multiple of 16"):
        build_model(cfg)


def test_drop_path_grows_and_layers_are_counted():
    cfg = tiny(DROPPATH_RATE=0.3, USE_ABS_POS=True, SEP_POS_EMBED=True)
    model = mvit_from_cfg(cfg)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["pos_embed.temporal"] == layers["cls_token"] == layers["patch_embed.proj.weight"] == 0
    assert layers["blocks.2.attn.rel_pos_h"] == 3 and model.num_layers == 5
    assert model.no_weight_decay() == {
        *("cls_token", "pos_embed.spatial", "pos_embed.temporal", "pos_embed.cls"),
        *(f"blocks.{i}.attn.rel_pos_{axis}" for i in range(4) for axis in "thw"),
    }


def test_tokens_cannot_be_left_out():
    model = mvit_from_cfg(tiny())
    tokens = torch.zeros(1, 512, 16)
    with pytest.raises(ValueError, match="no token can be left out"):
        model.encode(tokens, [3], keep=torch.zeros(1, 3, dtype=torch.int64))


# ---- stages -------------------------------------------------------------------------------------------------------


def test_where_width_changes():
    arguments = (3, 8, 1, {1: 2.0}, {1: 2.0}, {}, {}, None)
    before, inside = plan_blocks(*arguments), plan_blocks(*arguments, dim_mul_in_attention=True)
    assert [(p.dim, p.attention_dim, p.out_dim, p.heads) for p in before] == [
        (8, 8, 16, 1),
        (16, 16, 16, 2),
        (16, 16, 16, 2),
    ]
    assert [(p.dim, p.attention_dim, p.out_dim, p.heads) for p in inside] == [
        (8, 8, 8, 1),
        (8, 16, 16, 2),
        (16, 16, 16, 2),
    ]


def test_strides_of_keys_adapt():
    strides = adaptive_strides(4, (1, 8, 8), {0: (1, 1, 1), 1: (1, 2, 2), 3: (2, 8, 8)})
    assert strides == {0: (1, 8, 8), 1: (1, 4, 4), 2: (1, 4, 4), 3: (1, 1, 1)}
    assert (multiplied(144, 2.0, 4), multiplied(100, 1.5, 8), multiplied(5, 1.0, 4)) == (288, 152, 8)


def test_enlarge_repeats():
    mask = torch.tensor([[True, False], [False, True]])[None, None]
    expected = mask.repeat_interleave(2, 1).repeat_interleave(3, 2).repeat_interleave(2, 3)
    assert enlarge(mask, (2, 6, 4)).equal(expected)
    assert enlarge(mask, (1, 2, 2)) is mask
    assert enlarge(torch.tensor([True, False, False]), (4,)).tolist() == [True, True, False, False]


# ---- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PATCH_PADDING": [2, 4, 4]}, "pad by half of MVIT.PATCH_KERNEL"),
        ({"PATCH_KERNEL": [7, 7]}, "MVIT.PATCH_KERNEL [7, 7] needs three whole numbers"),
        ({"POOL_KVQ_KERNEL": [3, 3, 0]}, "MVIT.POOL_KVQ_KERNEL [3, 3, 0] needs three whole numbers"),
        ({"POOL_Q_STRIDE": [[9, 1, 2, 2]]}, "MVIT.POOL_Q_STRIDE has [9, 1, 2, 2]"),
        ({"POOL_Q_STRIDE": [[1, 2, 2]]}, "MVIT.POOL_Q_STRIDE has [1, 2, 2]"),
        ({"POOL_Q_STRIDE": [[1, 1, 2.5, 2]]}, "MVIT.POOL_Q_STRIDE has [1, 1, 2.5, 2]"),
        ({"DIM_MUL": [[1, 0.0]]}, "MVIT.DIM_MUL has [1, 0.0]"),
        ({"NUM_HEADS": 3}, "heads, which do not divide its width 16"),
        ({"SIZE": "S"}, "MVIT.SIZE S names a plain ViT"),
        ({"USE_ABS_POS": True, "USE_FIXED_SINCOS_POS": True}, "MVIT.USE_FIXED_SINCOS_POS"),
        ({"POOL_Q_STRIDE": [[i, 1, 4, 4] for i in range(4)]}, "smaller than a token of the last block"),
    ],
)
def test_refused_in_one_line(changes, said):
    with pytest.raises(UserError) as error:
        mvit_from_cfg(tiny(**changes))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_plain_vit_is_refused(tmp_path):
    model = randomised(mvit_from_cfg(tiny()))
    vit = {name: t for name, t in model.state_dict().items() if "pool_" not in name and "rel_pos" not in name}
    torch.save({f"backbone.{name}": tensor for name, tensor in vit.items()}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"is a ViT's, and this model is a multiscale ViT; the pooling keys of MVIT"):
        init_from(build_model(tiny()), str(tmp_path / "vit.pth"))


@pytest.mark.parametrize(
    "name", [f"k400_MVITv2_{size}_16x4_{stage}" for size in "SL" for stage in ("MaskFeat_PT", "FT")]
)
def test_recipes_set_no_idle_key_of_the_model(name):
    """Relative positions stand alone there: a second table of absolute ones is asked for and switched off."""
    named = {warning.split()[0] for warning in warnings(recipe(name))}
    assert {key for key in named if key.startswith("MVIT.")} <= {"MVIT.SEP_POS_EMBED"}
    if name.endswith("FT"):
        validate(recipe(name))
