"""The Vision Transformer over any token grid (Dosovitskiy et al. 2021), on timm's blocks.

Parameter names and initialisation are PySlowFast's, so that its released weights load name by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfm_core.interfaces import Grid
from mfm_core.nn.attention import Attention, KeylessBiasAttention
from mfm_core.nn.pos_embed import make_positions, position_table


class PatchEmbed(nn.Module):
    """One convolution from pixels to tokens; 2-D for images, 3-D for clips, by the length of `kernel`."""

    def __init__(self, channels: int, dim: int, kernel: Grid, stride: Grid, padding: Grid) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        self.proj = conv(channels, dim, kernel_size=kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) to (B, L, D), tokens row-major."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TransformerEncoder(nn.Module):
    """What encoders of patches in blocks have in common: `patch_embed`, `cls_token` (or None), `blocks`, `embed_dim`.

    They end without a norm: heads bring their own.
    """

    needs_norm = True

    @property
    def num_prefix_tokens(self) -> int:
        """1 with a class token, else 0."""
        return int(self.cls_token is not None)

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, *size) to patch tokens (B, L, D), without positions or class token."""
        return self.patch_embed(x)

    def with_class_token(self, tokens: Tensor) -> Tensor:
        """(B, L, D) to (B, prefix + L, D)."""
        if self.cls_token is None:
            return tokens
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)

    def features(self, x: Tensor) -> Tensor:
        """Frozen-feature read-out: (B, D), the mean over the patch tokens of the last block, each normalised."""
        tokens = self.tokens(x)[:, self.num_prefix_tokens :]
        return torch.nn.functional.layer_norm(tokens.float(), (self.embed_dim,)).mean(dim=1)

    def layer_of(self, name: str) -> int:
        """The depth of a parameter for layer decay: 0 for the embeddings, i + 1 for block i, else `num_layers`."""
        if name.split(".")[0] in ("cls_token", "pos_embed", "patch_embed"):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.num_layers

    @property
    def num_layers(self) -> int:
        """The layer of a head."""
        return len(self.blocks) + 1


class VisionTransformer(TransformerEncoder):
    """The encoder without a final norm: heads bring their own.

    size: input pixels along each axis. patch_kernel, patch_stride, patch_padding: as long as `size`.
    key_bias: whether qkv_bias holds for the keys too. positions: see `make_positions`. sincos_first: see
    `sincos_2d`. drop_path: rate of the last block, growing linearly from 0. layer_scale: initial value, 0 for none.
    act_checkpoint: recompute blocks in the backward pass.
    """

    def __init__(
        self,
        size: Grid,
        patch_kernel: Grid,
        patch_stride: Grid,
        patch_padding: Grid,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        cls_token: bool = True,
        positions: str = "learned",
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        act_checkpoint: bool = False,
        channels: int = 3,
        key_bias: bool = True,
        sincos_first: str = "column",
    ) -> None:
        super().__init__()
        self.embed_dim, self.depth, self.patch_stride = embed_dim, depth, tuple(patch_stride)
        self.act_checkpoint = act_checkpoint
        self.grid: Grid = tuple(
            (n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, patch_kernel, patch_stride, patch_padding)
        )
        self.embed_grid, self.grids = self.grid, [self.grid] * depth
        self.stem_dim, self.dims = embed_dim, [embed_dim] * depth
        self.patch_embed = PatchEmbed(channels, embed_dim, patch_kernel, patch_stride, patch_padding)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if cls_token else None
        self.positions = positions
        self.pos_embed = make_positions(positions, self.grid, embed_dim, cls_token, sincos_first)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            transformer_block(embed_dim, num_heads, mlp_ratio, qkv_bias, key_bias, rates[i], layer_scale)
            for i in range(depth)
        )
        init_weights(self)
        for table in self._tables().values():
            if table.requires_grad:
                nn.init.trunc_normal_(table, std=0.02)

    def stages(self) -> dict[str, nn.Module]:
        """Modules whose outputs show the way of a batch, by what they are."""
        last = len(self.blocks)
        return {
            "patch embedding": self.patch_embed,
            f"block 1 of {last}": self.blocks[0],
            f"block {last} of {last}": self.blocks[-1],
        }

    def encode(self, tokens: Tensor, depths: Sequence[int], keep: Tensor | None = None) -> list[Tensor]:
        """Adds class token and positions and runs the blocks.

        tokens: (B, L, D). keep: (B, V) indices of the patch tokens that enter the blocks, None for all L.
        Returns the outputs of the blocks named in `depths`, each (B, prefix + V, D).
        """
        tokens = self.with_class_token(tokens)
        if self.pos_embed is not None:
            tokens = tokens + position_table(self.pos_embed)
        if keep is not None:
            tokens = self._select(tokens, keep)
        outputs = []
        for i, block in enumerate(self.blocks):
            tokens = run_block(block, tokens, self.act_checkpoint)
            if i in depths:
                outputs.append(tokens)
        return outputs

    def _select(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """The class token and the patch tokens at `keep`, in its order."""
        prefix = self.num_prefix_tokens
        kept = (keep + prefix)[..., None].expand(-1, -1, tokens.shape[-1])
        return torch.cat([tokens[:, :prefix], tokens.gather(1, kept)], dim=1)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, *size) to the last block's tokens (B, prefix + L, D)."""
        return self.encode(self.embed(x), [self.depth - 1])[0]

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay may spare (`MVIT.ZERO_DECAY_POS_CLS`)."""
        return set(self._tables())

    def _tables(self) -> dict[str, nn.Parameter]:
        """Class token and positions by name, in this order."""
        return {n: p for n, p in self.named_parameters() if n.split(".")[0] in ("cls_token", "pos_embed")}


def transformer_block(
    dim: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    key_bias: bool = True,
    drop_path: float = 0.0,
    layer_scale: float = 0.0,
) -> Block:
    """timm's pre-norm block with our attention, as encoders and decoders are made of."""
    return Block(
        dim,
        num_heads,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        init_values=layer_scale or None,
        drop_path=drop_path,
        norm_layer=layer_norm,
        attn_layer=Attention if key_bias else KeylessBiasAttention,
    )


def run_block(block: nn.Module, tokens: Tensor, act_checkpoint: bool, *rest: object) -> Tensor:
    """The block's output; its activations are recomputed in the backward pass where `act_checkpoint` says so.

    rest: what the block takes beside tokens.
    """
    if act_checkpoint and torch.is_grad_enabled():
        return checkpoint(block, tokens, *rest, use_reentrant=False)
    return block(tokens, *rest)


def layer_norm(dim: int, **kwargs) -> nn.LayerNorm:
    """LayerNorm with PySlowFast's and MAE's epsilon."""
    return nn.LayerNorm(dim, eps=1e-6, **kwargs)


def init_weights(module: nn.Module, bias: float = 0.02, std: float = 0.02) -> None:
    """PySlowFast's initialisation: weights truncated normal `std`; biases, those of norms too, constant `bias`.

    (PySlowFast leaves the bias of the patch projection as torch starts it, at most 0.05 either way.)
    """
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.trunc_normal_(child.weight, std=std)
        if isinstance(child, (nn.Linear, nn.Conv2d, nn.Conv3d, nn.LayerNorm)) and child.bias is not None:
            nn.init.constant_(child.bias, bias)
