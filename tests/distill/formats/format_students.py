"""Students small enough to be exported in a second."""

import torch

from students import build_student

TINY = {
    # Rotary positions and EVA's attention; absolute positions; a dilated ConvNeXt.
    "vit": (
        "vit_small_patch16_dinov3_qkvb",
        {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8},
    ),
    "plain": (
        "vit_tiny_patch16_224",
        {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8},
    ),
    "convnext": (
        "convnext_tiny",
        {"depths": [1, 1, 1, 1], "dims": [16, 16, 24, 32], "output_stride": 8},
    ),
}


def tiny_student(kind):
    """A student whose norms, scales and biases are no longer those of a new one."""
    arch, overrides = TINY[kind]
    student = build_student(arch, size=32, overrides=overrides, name=kind).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return student
