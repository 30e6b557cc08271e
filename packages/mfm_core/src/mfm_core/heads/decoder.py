"""The decoder of masked autoencoders: a small transformer over visible tokens and a mask token for each hidden one.

He et al. 2022, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfm_core.interfaces import Grid
from mfm_core.nn.init import init_autoencoder
from mfm_core.nn.pos_embed import make_positions, position_table
from mfm_core.nn.vit import layer_norm, run_block, transformer_block


class TransformerDecoder(nn.Module):
    """Predicts every token from the encoder's output for the visible ones.

    The encoder's final norm stands here (`encoder_norm`), then a linear layer to `embed_dim`, the mask token in the
    places that are hidden, positions, blocks, a norm and the prediction.

    num_prefix_tokens: of the encoder. decode_prefix: whether the blocks see the class token, with a position of zeros
    (MAE, mmpretrain), or not (MAE-priv). positions: sincos, as in these, or another kind of `make_positions`:
    PySlowFast learns them on clips. sincos_first: see `sincos_2d`.
    """

    def __init__(
        self,
        grid: Grid,
        encoder_dim: int,
        target_dim: int,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_prefix_tokens: int = 1,
        decode_prefix: bool = True,
        qkv_bias: bool = True,
        key_bias: bool = True,
        sincos_first: str = "column",
        act_checkpoint: bool = False,
        positions: str = "sincos",
    ) -> None:
        super().__init__()
        self.num_tokens, self.act_checkpoint = torch.Size(grid).numel(), act_checkpoint
        self.dropped = 0 if decode_prefix else num_prefix_tokens
        self.prefix = num_prefix_tokens - self.dropped
        self.encoder_norm = layer_norm(encoder_dim)
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.positions = positions
        self.pos_embed = make_positions(positions, grid, embed_dim, self.prefix > 0, sincos_first)
        self.blocks = nn.ModuleList(
            transformer_block(embed_dim, num_heads, mlp_ratio, qkv_bias, key_bias) for _ in range(depth)
        )
        self.norm = layer_norm(embed_dim)
        self.projection = nn.Linear(embed_dim, target_dim)
        init_autoencoder(self)
        for name, table in self.named_parameters():
            if name.split(".")[0] == "pos_embed" and table.requires_grad:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(self, encoded: Tensor, keep: Tensor) -> Tensor:
        """encoded: (B, prefix + V, encoder_dim). keep: (B, V), their places among the L tokens. To (B, L, target_dim).

        No final norm has been applied to `encoded`.
        """
        tokens = self.embed(self.encoder_norm(encoded[:, self.dropped :]))
        tokens = self.restore(tokens, keep) + position_table(self.pos_embed)
        for block in self.blocks:
            tokens = run_block(block, tokens, self.act_checkpoint)
        return self.projection(self.norm(tokens)[:, self.prefix :])

    def restore(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """(B, prefix + V, D) to (B, prefix + L, D): every token in its place, the mask token where none is."""
        visible = tokens[:, self.prefix :]
        blank = self.mask_token.to(tokens.dtype).expand(len(tokens), self.num_tokens, -1)
        whole = blank.scatter(1, keep[..., None].expand_as(visible), visible)
        return torch.cat([tokens[:, : self.prefix], whole], dim=1)
