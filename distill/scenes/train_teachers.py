"""Trains the three built-in teachers on scenes and writes them in their families' file formats.

    python -m distill.scenes.train_teachers dinov2-tiny siglip-tiny sam-tiny --out teachers/builtin

Each is supervised where its family is strong, and nowhere else, so that they are specialists:

- dinov2-tiny: segmentation and depth from dense tokens by linear heads; a coarse depth map from
  the class token. The heads are thrown away.
- siglip-tiny: image and text tower under the sigmoid loss on captions (Zhai et al., 2023).
- sam-tiny: masks from point and box prompts (focal + dice + predicted IoU, Kirillov et al., 2023),
  and patches of one object drawn together, of two objects apart.

A step's images are 64, 96 or 128 pixels, so that a teacher is as good at 128 as at 64.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.scenes.captions import VOCABULARY, caption
from distill.scenes.dataset import Scenes
from distill.scenes.generate import FAR, KINDS, NEAR
from distill.scenes.mask_objectives import affinity, dice, draw_prompts, focal

WIDTH, DEPTH, HEADS, PATCH = 96, 4, 3, 8
TEXT_LENGTH = 24
SIZES, SIZE_SHARES = (64, 96, 128), (0.8, 0.1, 0.1)


@dataclass
class Batch:
    """Crops of scenes: pixels (B, 3, S, S) in [0, 1]; instances, segmentation (B, S, S) long;
    depth (B, S, S) in [0, 1]; the scenes' rows."""

    pixels: Tensor
    instances: Tensor
    segmentation: Tensor
    depth: Tensor
    rows: np.ndarray


def batches(scenes: Scenes, steps: int, size: int, smallest: float, flip: bool) -> Iterator[Batch]:
    """Random crops of side `smallest` to 1, flipped, slightly jittered, at random sizes."""
    generator = np.random.default_rng(7)
    for _ in range(steps):
        rows = generator.integers(len(scenes), size=size)
        to = int(generator.choice(SIZES, p=SIZE_SHARES))
        side = torch.from_numpy(generator.uniform(smallest, 1, size)).float()
        x, y = (
            torch.from_numpy(generator.uniform(-1, 1, size)).float() * (1 - side) for _ in range(2)
        )
        mirror = torch.from_numpy(np.where(generator.random(size) < 0.5, -1.0, 1.0)).float()
        if not flip:
            mirror = torch.ones(size)
        theta = torch.zeros(size, 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = side * mirror, x
        theta[:, 1, 1], theta[:, 1, 2] = side, y
        grid = F.affine_grid(theta, [size, 3, to, to], align_corners=False)
        pixels = torch.from_numpy(scenes.images[rows]).float() / 255
        if to <= scenes.size // 2:
            pixels = F.avg_pool2d(pixels, 2)
        pixels = F.grid_sample(pixels, grid, align_corners=False, padding_mode="border")
        gain = torch.from_numpy(generator.uniform(0.85, 1.15, (size, 3, 1, 1))).float()
        maps = np.stack(
            [scenes.instances[rows], scenes.segmentation[rows], scenes.depth[rows]], axis=1
        )
        labels = F.grid_sample(
            torch.from_numpy(maps.astype(np.float32)), grid, mode="nearest", align_corners=False
        )
        yield Batch(
            (pixels * gain).clamp(0, 1),
            labels[:, 0].round().long(),
            labels[:, 1].round().long(),
            (labels[:, 2] - NEAR) / (FAR - NEAR),
            rows,
        )


def train(
    module: nn.Module,
    loss_of: Callable[[Batch], dict[str, Tensor]],
    stream: Iterator[Batch],
    steps: int,
    lr: float,
) -> list[dict]:
    """AdamW, warm-up and cosine; returns the log."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    log, start, seen = [], time.time(), []
    for step, batch in enumerate(stream):
        warm, done = min(1.0, (step + 1) / 200), step / steps
        for group in optimiser.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * done))
        parts = loss_of(batch)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        seen.append({name: float(part.detach()) for name, part in parts.items()})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean = {name: round(float(np.mean([s[name] for s in seen])), 4) for name in seen[0]}
            log.append({"step": step + 1, **mean, "seconds": round(time.time() - start, 1)})
            print(json.dumps(log[-1]), flush=True)
            seen = []
    return log


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] by a checkpoint's own statistics."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def preprocessor(kind: str, statistics: tuple, size: dict, **more: object) -> dict:
    """The fields of a preprocessor_config.json that its family's checkpoints carry."""
    mean, std = statistics
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "size": size,
        "resample": 3,
        **more,
    }


def train_dinov2(
    scenes: Scenes, steps: int, batch: int, folder: Path, start: Path | None
) -> list[dict]:
    """Dense specialist: what and how far, at every patch."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        patch_size=PATCH,
        image_size=64,
    )
    model = Dinov2Model.from_pretrained(start) if start else Dinov2Model(config)
    model = model.float().train()
    classes = nn.Linear(WIDTH, len(KINDS) + 1)
    distance = nn.Linear(WIDTH, 1)
    coarse = nn.Linear(WIDTH, 16)
    everything = nn.ModuleList([model, classes, distance, coarse])

    def loss_of(batch: Batch) -> dict[str, Tensor]:
        tokens = model(normalised(batch.pixels, *IMAGENET)).last_hidden_state.float()
        side = batch.pixels.shape[-1] // PATCH
        dense = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        logits = torch.einsum("bchw,kc->bkhw", dense, classes.weight) + classes.bias[:, None, None]
        depth = torch.einsum("bchw,kc->bkhw", dense, distance.weight) + distance.bias
        to = (side * 4, side * 4)
        logits = F.interpolate(logits, to, mode="bilinear")
        depth = F.interpolate(depth, to, mode="bilinear")[:, 0]
        truth = F.avg_pool2d(batch.depth, 2)
        patches = F.adaptive_avg_pool2d(batch.depth, 4).flatten(1)
        return {
            "segmentation": F.cross_entropy(logits, batch.segmentation[:, 1::2, 1::2]),
            "depth": 5 * (depth - truth).abs().mean(),
            "layout": 2 * (coarse(tokens[:, 0]) - patches).abs().mean(),
        }

    log = train(everything, loss_of, batches(scenes, steps, batch, 0.55, True), steps, 1.5e-3)
    model.half().save_pretrained(folder)
    fields = preprocessor("BitImageProcessor", IMAGENET, {"shortest_edge": 64})
    fields |= {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    return log


def tokenizer():
    """Words to ids, padded to TEXT_LENGTH, closed by </s> as SigLIP's own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *VOCABULARY])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids"],
    )


def train_siglip(
    scenes: Scenes, steps: int, batch: int, folder: Path, start: Path | None
) -> list[dict]:
    """Meaning specialist: which caption goes with which image."""
    from transformers import SiglipConfig, SiglipModel

    words = tokenizer()
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS}
    config = SiglipConfig(
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "vocab_size": len(words),
            "max_position_embeddings": TEXT_LENGTH,
            "pad_token_id": words.pad_token_id,
            "eos_token_id": words.eos_token_id,
            "bos_token_id": words.eos_token_id,
            "projection_size": WIDTH,
        },
        vision_config={**shared, "num_hidden_layers": DEPTH, "patch_size": PATCH, "image_size": 64},
    )
    model = SiglipModel.from_pretrained(start) if start else SiglipModel(config)
    model = model.float().train()
    if start is None:
        with torch.no_grad():  # the paper's: temperature 10, bias -10
            model.logit_scale.fill_(math.log(10.0))
            model.logit_bias.fill_(-10.0)
    sentences = [caption(scenes.parameters, row) for row in range(len(scenes))]
    ids = torch.tensor(
        words(sentences, padding="max_length", max_length=TEXT_LENGTH, truncation=True)["input_ids"]
    )

    def loss_of(batch: Batch) -> dict[str, Tensor]:
        out = model(
            input_ids=ids[torch.from_numpy(batch.rows)],
            pixel_values=normalised(batch.pixels, *HALF),
            interpolate_pos_encoding=True,
        )
        logits = out.logits_per_text.float()
        sign = 2 * torch.eye(len(logits)) - 1
        return {"sigmoid": -F.logsigmoid(sign * logits).sum(1).mean()}

    log = train(model, loss_of, batches(scenes, steps, batch, 0.9, False), steps, 1.5e-3)
    model.half().save_pretrained(folder)
    words.save_pretrained(folder)
    fields = preprocessor("SiglipImageProcessor", HALF, {"height": 64, "width": 64})
    (folder / "preprocessor_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    return log


def train_sam(
    scenes: Scenes, steps: int, batch: int, folder: Path, start: Path | None
) -> list[dict]:
    """Object specialist: the mask of whatever is pointed at, whatever it is."""
    from transformers import SamConfig, SamModel

    inner = 64
    config = SamConfig(
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": HEADS,
            "output_channels": inner,
            "patch_size": PATCH,
            "image_size": 64,
            "window_size": 4,
            "global_attn_indexes": [1, 3],
            "num_pos_feats": inner // 2,
            "mlp_dim": 4 * WIDTH,
        },
        prompt_encoder_config={"hidden_size": inner, "image_size": 64, "patch_size": PATCH},
        mask_decoder_config={
            "hidden_size": inner,
            "mlp_dim": 4 * inner,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": inner,
        },
    )
    model = SamModel.from_pretrained(start) if start else SamModel(config)
    model = model.float().train()
    temperature = nn.Parameter(torch.tensor(1.6))
    threshold = nn.Parameter(torch.tensor(-2.0))
    everything = nn.ModuleList([model])
    everything.register_parameter("temperature", temperature)
    everything.register_parameter("threshold", threshold)
    prompts, dice_random = 2, np.random.default_rng(11)
    vision = model.vision_encoder

    def embeddings(pixels: Tensor) -> Tensor:
        x = vision.patch_embed.projection(normalised(pixels, *IMAGENET)).permute(0, 2, 3, 1)
        table = vision.pos_embed.permute(0, 3, 1, 2)
        table = F.interpolate(table, x.shape[1:3], mode="bicubic", antialias=False)
        x = x + table.permute(0, 2, 3, 1)
        for layer in vision.layers:
            x = layer(x)
        return vision.neck(x)

    def loss_of(batch: Batch) -> dict[str, Tensor]:
        b, size = len(batch.pixels), batch.pixels.shape[-1]
        side = size // PATCH
        model.config.prompt_encoder_config.image_embedding_size = side
        model.prompt_encoder.image_embedding_size = (side, side)
        model.prompt_encoder.input_image_size = size
        embedding = embeddings(batch.pixels)
        chosen, points, boxes = draw_prompts(batch.instances, prompts, dice_random)
        if dice_random.random() < 0.7:
            asked = {"input_points": points, "input_labels": torch.ones(b, prompts, 1).long()}
        else:
            asked = {"input_boxes": boxes}
        # From a point the decoder offers three masks and learns from the best; from a box, one.
        many = "input_points" in asked
        out = model(image_embeddings=embedding, multimask_output=many, **asked)
        logits = out.pred_masks.float()  # (B, prompts, masks, 4 side, 4 side)
        truth = (batch.instances[:, None] == chosen[:, :, None, None]).float()
        truth = F.avg_pool2d(truth, size // logits.shape[-1])[:, :, None].expand_as(logits)
        per_mask = 10 * focal(logits, truth) + dice(logits.sigmoid(), truth)
        hard, hit = truth > 0.5, logits > 0
        overlap = (hard & hit).sum((-1, -2)) / (hard | hit).sum((-1, -2)).clamp_min(1)
        quality = F.mse_loss(out.iou_scores.float(), overlap)
        return {
            "masks": per_mask.min(-1).values.mean() + 0.1 * per_mask.mean(),
            "quality": quality,
            "affinity": affinity(embedding, batch.instances, temperature, threshold),
        }

    log = train(everything, loss_of, batches(scenes, steps, batch, 0.55, True), steps, 1.0e-3)
    side = 64 // PATCH
    model.config.prompt_encoder_config.image_embedding_size = side
    model.half().save_pretrained(folder)
    fields = preprocessor("SamImageProcessor", IMAGENET, {"longest_edge": 64})
    fields |= {"do_pad": True, "pad_size": {"height": 64, "width": 64}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    return log


TRAINERS = {
    "dinov2-tiny": (train_dinov2, 2600, 64),
    "siglip-tiny": (train_siglip, 2400, 112),
    "sam-tiny": (train_sam, 1000, 48),
}


def main() -> None:
    """Trains the teachers named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=sorted(TRAINERS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16_384)
    parser.add_argument("--steps", type=int, help="default: each teacher's own number")
    parser.add_argument("--start", type=Path, help="go on from the weights in this folder")
    args = parser.parse_args()
    scenes = Scenes(args.scenes, 128, seed=1)
    for name in args.names:
        trainer, steps, batch = TRAINERS[name]
        steps = args.steps or steps
        torch.manual_seed(0)
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        start = args.start / name if args.start else None
        log = trainer(scenes, steps, batch, folder, start)
        lines = [json.dumps(line) for line in log]
        if start is not None:  # the log of a second round stands below that of the first
            lines = [*(start / "training.jsonl").read_text().splitlines(), *lines]
        (folder / "training.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
