"""A vision transformer whose circuit is known: few weights are not zero, and nothing normalises.

Of a patch, d = its brightness above 0.5. Neurons 3 and 4 of block 0 are relu(d). Neuron 3 writes
2 d into dimension 1 of the stream, which neurons 5 and 7 of block 1 read; they write 2 d and −0.5 d
into dimension 2, into which neuron 4 of block 0 writes 0.5 d around them. The pooled neuron 2 is
hence the mean of 2 d, of which class 1 is three times as much, and 0.7.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from loaded import shapes
from torch import nn

import polysem
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.store.run import Run

B0, B1, POOLED = "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "hook_pooled"

#: Share that the source has in what the target fires, without the bias of the class.
EDGES = {
    ((B0, 3), (B1, 5)): 1.0,
    ((B0, 3), (B1, 7)): 1.0,
    ((B0, 3), (POOLED, 1)): 1.0,
    ((B1, 5), (POOLED, 2)): 1.0,
    ((B1, 7), (POOLED, 2)): -0.25,
    ((B0, 4), (POOLED, 2)): 0.25,
    ((POOLED, 2), ("class", 1)): 1.0,
}

#: What flows through each towards class 1, in parts of its firing without the bias.
THROUGH = {(B0, 3): 0.75, (B0, 4): 0.25, (B1, 5): 1.0, (B1, 7): -0.25, (POOLED, 2): 1.0}

BIAS = 0.7


def planted_circuit(**fields: Any) -> LoadedModel:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(16, 24), patch_size=8, embed_dim=12, depth=2,
        num_heads=3, mlp_ratio=1.0, num_classes=3, class_token=False, global_pool="avg",
        norm_layer=nn.Identity, act_layer=nn.ReLU,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch_embed.proj.weight[0] = 1 / 192  # 3 channels of 8 × 8 pixels
        first, second = model.blocks[0].mlp, model.blocks[1].mlp
        first.fc1.weight[3, 0] = first.fc1.weight[4, 0] = 1
        first.fc2.weight[1, 3], first.fc2.weight[2, 4] = 2, 0.5
        second.fc1.weight[5, 1] = second.fc1.weight[7, 1] = 1
        second.fc2.weight[2, 5], second.fc2.weight[2, 7] = 1, -0.25
        model.head.weight[1, 2], model.head.bias[1] = 3, BIAS
    values: dict[str, Any] = {
        "model": model,
        "transform": Transform(size=(16, 24), mean=(0.5,) * 3, std=(1.0,) * 3),
        "classes": ("a", "b", "c"),
        "name": "planted",
        "spec": "planted",
        "sha256": "1" * 64,
    }
    return LoadedModel(**{**values, **fields})


def probed(model: LoadedModel, out: Any, *, top_k: int = 3, **options: Any) -> Run:
    return polysem.probe(
        model, shapes(), out=out, top_k=top_k, batch_size=4, device="cpu", progress=False,
        **options,
    )  # fmt: skip
