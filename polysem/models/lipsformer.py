"""Parts of LipsFormer (arXiv 2304.09856) that `vit` can be built of, beside its norm and attention.

`norms` has CenterNorm and `cosine` its attention; the weighted residual is timm's LayerScale, at
first 1 / depth; `lipschitz` says how steep a network of all of these can get. The depthwise
convolutions before each block of the official code are not part of it.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from polysem.models.bcos import BcosConv2d, BcosLinear

__all__ = ["PostNormBlock", "spectral_init_"]


class PostNormBlock(Block):  # type: ignore[misc]
    """timm's block with norms after the sums: ``x = norm1(x + attn(x)); x = norm2(x + mlp(x))``."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the residual stream [image, token, d_model] after the block; masks as in timm."""
        attended = self.attn(x, attn_mask=attn_mask, is_causal=is_causal)
        x = self.norm1(x + self.drop_path1(self.ls1(attended)))
        out: Tensor = self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))
        return out


@torch.no_grad()
def spectral_init_(model: nn.Module) -> None:
    """Draw the weights of linear layers and convolutions anew, each with spectral norm 1.

    Xavier-normal numbers divided by their largest singular value; kernels count as matrices of
    [output, rest], which is not the norm of the convolution itself. Biases become 0. Queries, keys
    and values, which share a layer, are three matrices. An initialisation only: training changes
    the norms.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Other parameters stay.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, BcosLinear, BcosConv2d)):
            nn.init.xavier_normal_(module.weight)
            for matrix in module.weight.chunk(3 if name.endswith("qkv") else 1):
                matrix.div_(torch.linalg.matrix_norm(matrix.flatten(1), ord=2))
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)
