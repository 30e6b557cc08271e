"""How the methods start their models: masked autoencoders as official MAE (He et al. 2022), MFM's ViT as BEiT.

mmpretrain's MFF starts from the same distributions as MAE. PySlowFast's MAE on clips leaves its encoder as MaskFeat's,
see `init_weights`, which is PySlowFast's; mmpretrain's has other biases.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from mfm_core.nn.vit import VisionTransformer, init_weights

TOKENS = ("cls_token", "mask_token")


def init_autoencoder(model: nn.Module) -> None:
    """Starts every linear layer, norm, patch projection and learned token of `model` anew, in place.

    Linear layers: Xavier uniform, biases zero. Norms: 1 and 0. The patch projection: Xavier as the linear layer that
    it is, its bias as torch starts convolutions. Class and mask token: normal, standard deviation 0.02. Position
    tables and what else there is (fusion weights) stay.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            _start_bias_as_torch(module)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in TOKENS:
            nn.init.normal_(parameter, std=0.02)


def init_mae_priv(encoder: nn.Module, decoder: nn.Module) -> None:
    """Makes the start of `init_autoencoder` MAE-priv's, in place.

    The patch projection and the linear layer between encoder and decoder: as torch starts them. Class and mask token:
    normal with 0.02, cut off at one deviation.
    """
    encoder.patch_embed.proj.reset_parameters()
    decoder.embed.reset_parameters()
    for token in (encoder.cls_token, decoder.mask_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)


def init_pyslowfast_decoder(decoder: nn.Module) -> None:
    """Starts a `TransformerDecoder` anew, in place, as PySlowFast does.

    Blocks, norm and prediction, and the mask token: truncated normal with 0.02, biases zero. The encoder's norm and the
    linear layer behind it: as torch starts them. Positions stay.
    """
    init_weights(decoder, bias=0.0)
    decoder.embed.reset_parameters()
    nn.init.trunc_normal_(decoder.mask_token, std=0.02)


@torch.no_grad()
def init_beit(vit: VisionTransformer) -> None:
    """Starts a ViT anew, in place, as BEiT's pre-training does (Bao et al. 2022), whose encoder MFM's is.

    Weights, class token and learned positions: normal with 0.02, cut off at one deviation, which leaves a deviation of
    0.0108. Biases zero, norms 1 and 0. What the block of depth i (from 1) adds to the residual stream is divided by
    sqrt(2 i).
    """
    init_weights(vit, bias=0.0)
    weights = [m.weight for m in vit.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    tables = [table for name, table in vit.named_parameters() if name in vit.no_weight_decay() and table.requires_grad]
    for tensor in weights + tables:
        nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)
    for depth, block in enumerate(vit.blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.div_(math.sqrt(2 * depth))


def init_as_torch(head: nn.Module) -> None:
    """Starts every linear layer of `head` anew, in place, as torch does: what MFM's decoder, a convolution, keeps."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def init_mmpretrain_biases(maskfeat: nn.Module, norms: float, patches: float | None) -> None:
    """Makes PySlowFast's start of a MaskFeat model mmpretrain's, in place: its weights and tokens start alike.

    Biases of linear layers: 0. norms: those of norms, the last one's, too. patches: those of convolutions, of which
    the patch projection has some; None as torch starts them. mmpretrain has 0 and None on images
    (`MaskFeatViT._init_weights`), 0.02 and 0 on clips (`MaskFeatMViT`'s init_cfg).
    """
    for module in maskfeat.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.constant_(module.bias, norms)
        elif getattr(module, "bias", None) is None:
            continue
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            _start_bias_as_torch(module) if patches is None else nn.init.constant_(module.bias, patches)


def _start_bias_as_torch(convolution: nn.Conv2d | nn.Conv3d) -> None:
    bound = 1 / math.sqrt(convolution.weight[0].numel())
    nn.init.uniform_(convolution.bias, -bound, bound)
