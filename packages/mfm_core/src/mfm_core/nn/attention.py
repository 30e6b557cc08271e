"""Self-attention with timm's parameter names, through the kernel that is fastest where it runs.

On GPUs that is torch's fused attention. On CPUs its backward pass loses to two plain matrix products where keys are
few: in bfloat16 at 65 tokens by 5 times, at 197 by 2.5 and at 1024 by 1.3 (`tools/benchmark.py --only attention`
measures it).

Plain products round the logits to the number format, which the fused kernel keeps in float32. In bfloat16 the errors
of outputs and gradients are therefore larger than the fused kernel's, which are about 0.3 %: about twice with logits
of standard deviation 1, three to five times (1 %) with logits of standard deviation 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

PLAIN_ON_CPU = {2: 1024, 4: 128}
"""Bytes per number -> the most keys for which a CPU takes plain matrix products. These keep a number for each query and
key until the backward pass: the limit bounds that memory, too."""

ALIGNMENT = 8
"""Fused kernels take widths that are a multiple of this."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v; q: (B, heads, N, D), k and v: (B, heads, M, D)."""
    if takes_plain_products(q, k):
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return weights.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attend_extended(q: Tensor, k: Tensor, v: Tensor, more_q: Tensor, more_k: Tensor) -> Tensor:
    """softmax((q k^T + more_q more_k^T) / sqrt(D)) v: a bias of low rank, and no matrix of it.

    The additional E numbers of each query and key become features beside the D others, which is the same sum. Fused
    kernels want queries, keys and values equally wide, so zeros fill them up. All are computed in the number format
    of `more_q`: under autocast that of products. q, more_q: (B, heads, N, D | E); k, v: (B, heads, M, D);
    more_k: (M, E), the same for all.
    """
    dim, scale = q.shape[-1], q.shape[-1] ** -0.5
    q, k, v = (x.to(more_q.dtype) for x in (q, k, v))
    if q.is_meta:  # only shapes and the model's own products matter: those of this formulation are not counted
        return attend(q, k, v)
    plain = takes_plain_products(q, k)
    width = dim + more_q.shape[-1]
    padding = 0 if plain else -width % ALIGNMENT
    q = _beside(q, more_q, padding)
    k = _beside(k, more_k.to(k.dtype).expand(*k.shape[:2], -1, -1), padding)
    if plain:
        return ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    v = F.pad(v, (0, width + padding - dim))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :dim]


def takes_plain_products(q: Tensor, k: Tensor) -> bool:
    """Whether two plain matrix products are faster here than the fused kernel."""
    return q.device.type == "cpu" and k.shape[2] <= PLAIN_ON_CPU.get(q.element_size(), 0)


def _beside(x: Tensor, more: Tensor, zeros: int) -> Tensor:
    """(…, D) and (…, E) side by side, then `zeros` zeros."""
    parts = [x, more] if zeros == 0 else [x, more, more.new_zeros(*x.shape[:-1], zeros)]
    return torch.cat(parts, dim=-1)


class Attention(TimmAttention):
    """timm's attention: parameters, names and numbers are the same."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) to (B, N, D). timm's block passes the other two, which no encoder here sets."""
        return self._merge(attend(*self._qkv(x)))

    def weights(self, x: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D)) for x (B, N, D), written out: (B, heads, N, N) float32. For pictures."""
        q, k, _ = self._qkv(x)
        return (q.float() @ k.float().transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)

    def apply_weights(self, weights: Tensor, x: Tensor) -> Tensor:
        """`forward` with these (B, heads, N, N) in place of its own, so that they can have a gradient."""
        v = self._qkv(x)[2]
        return self._merge(weights.to(v.dtype) @ v)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) to queries, keys and values, each (B, heads, N, head_dim)."""
        b, n, _ = x.shape
        return self.project(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    def project(self, x: Tensor) -> Tensor:
        """(B, N, D) to queries, keys and values side by side, (B, N, 3 D)."""
        return self.qkv(x)

    def _merge(self, values: Tensor) -> Tensor:
        """The heads' (B, heads, N, head_dim) side by side and projected: (B, N, D)."""
        return self.proj(values.transpose(1, 2).flatten(2))


class KeylessBiasAttention(Attention):
    """Biases on queries and values only (BEiT, MAE-priv, MFM): one on the keys adds the same to all logits of a query,
    which the softmax takes away again. Parameters: `qkv.weight`, `q_bias`, `v_bias`.
    """

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False, **kwargs) -> None:
        super().__init__(dim, num_heads, qkv_bias=False, **kwargs)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def project(self, x: Tensor) -> Tensor:
        """(B, N, D) to queries, keys and values side by side, (B, N, 3 D)."""
        if self.q_bias is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, bias)
