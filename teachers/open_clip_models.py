"""open_clip's models by name and tag, folder or hub id: what is stated of them, their weights."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from students.errors import UserError, did_you_mean
from teachers import contents
from teachers.checkpoint import OPEN_CLIP, Checkpoint, Layout, resolve, weight_files
from teachers.open_clip_towers import separate_projection
from teachers.spec import TeacherSpec
from teachers.strict import accounted_for
from teachers.timm_models import HUB_PREFIX, one_line

TABLE = "open_clip's pretrained table"

# The weights beside the image tower's, by what they start with.
TEXT = (
    *("text.", "text_decoder.", "text_projection", "transformer.", "token_embedding."),
    *("positional_embedding", "ln_final.", "logit_"),
)
# In the place of a tower that is not wanted.
NO_TEXT = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8}
NO_IMAGE = {"layers": 1, "width": 8, "head_width": 8, "patch_size": 1, "image_size": 1}


def locate(spec: TeacherSpec) -> Checkpoint:
    """A folder, the cached files of a hub id, or of the hub id that open_clip has for NAME:TAG.

    Raises:
        UserError: if `spec.weights` is none of them.
    """
    weights = spec.weights.removeprefix(HUB_PREFIX)
    if not is_tag(spec):
        return resolve(weights, OPEN_CLIP, spec.allow_pickle)
    published = _published(weights).get("hf_hub", "")
    if not published:
        raise UserError(
            f"weights {weights!r}: open_clip has them at {_published(weights).get('url')} and not "
            "on the hub; save the model with open_clip.push_to_hf_hub.save_for_hf and name the "
            "folder"
        )
    hub_id, _, file = published.rpartition("/")
    pickle = file or OPEN_CLIP.pickle
    safe = f"{pickle.rpartition('.')[0]}.safetensors" if file else OPEN_CLIP.weights
    # Of a tag open_clip itself fetches the weights and nothing else.
    names = [safe, pickle] if spec.allow_pickle else [safe]
    layouts = [Layout(name, safe, pickle, beside=(OPEN_CLIP.config,)) for name in names]
    found = [resolve(hub_id, layout, spec.allow_pickle) for layout in layouts]
    return next((one for one in found if one.fetched), found[0])


def is_tag(spec: TeacherSpec) -> bool:
    """Whether the weights are named as open_clip's table does, NAME:TAG.

    Raises:
        UserError: if a name of the table is given without a tag.
    """
    weights = spec.weights
    other = "/" in weights or weights.startswith((HUB_PREFIX, "builtin:", ".", "~"))
    if other or Path(weights).is_dir():
        return False
    if ":" not in weights:
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(weights)
        if tags:
            raise UserError(f"weights {weights!r}: name the tag too: {weights}:{tags[0]}, ...")
    return ":" in weights


def stated(spec: TeacherSpec, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The model's configuration, what is said of its preprocessing, and where.

    Raises:
        UserError: if open_clip_config.json is not open_clip's.
    """
    if is_tag(spec):
        import open_clip

        cfg = _published(spec.weights)
        config = open_clip.get_model_config(spec.weights.partition(":")[0])
        # The weights' own activation; open_clip warns of another and goes on.
        config["quick_gelu"] = bool(cfg.get("quick_gelu") or config.get("quick_gelu"))
        return config, cfg, TABLE
    fields = contents.read_config(checkpoint)
    config, preprocessing = fields.get("model_cfg"), fields.get("preprocess_cfg", {})
    parts = ("vision_cfg", "text_cfg")
    if not isinstance(config, dict) or not all(isinstance(config.get(p), dict) for p in parts):
        raise UserError(
            f"{spec.weights}: its {OPEN_CLIP.config} has no model_cfg of vision_cfg and text_cfg"
        )
    if not isinstance(preprocessing, dict):
        raise UserError(f"{spec.weights}: its {OPEN_CLIP.config} says {preprocessing!r}")
    return config, preprocessing, OPEN_CLIP.config


def skeleton(spec: TeacherSpec, config: dict[str, Any]) -> tuple[Any, int]:
    """The image tower without memory for weights, on the meta device and without a projection that
    can be taken off, and how many parameters it has with it.

    Raises:
        UserError: if open_clip cannot build it.
    """
    try:
        return _skeleton(json.dumps(config, sort_keys=True))
    except Exception as error:  # whatever a tower makes of what it is given
        raise UserError(f"{spec.weights}: open_clip cannot build it: {one_line(error)}") from None


def load_image_tower(spec: TeacherSpec, checkpoint: Checkpoint) -> Any:
    """The frozen image tower in eval mode on the CPU, with exactly the checkpoint's weights.

    Raises:
        UserError: if weights are missing, unexpected or of another shape, naming them.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.factory import load_state_dict
    from open_clip.model import resize_pos_embed

    config, _, _ = stated(spec, checkpoint)
    with torch.random.fork_rng(devices=[]):
        model = _build(config, text_cfg=NO_TEXT, custom_text=False)
    state = convert_state_dict(model, load_state_dict(_weights(checkpoint)))
    state = {name: tensor for name, tensor in state.items() if not name.startswith(TEXT)}
    resize_pos_embed(state, model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if any(state[name].shape != shape for name, shape in shapes.items() if name in state):
        _take_stated_size(model.visual)  # saved after it was set to it
    with accounted_for(model, checkpoint, TEXT):
        model.load_state_dict(state, strict=False)
    _take_stated_size(model.visual)
    return model.visual.requires_grad_(False).eval()


def load_text_tower(spec: TeacherSpec, checkpoint: Checkpoint) -> Any:
    """The model in eval mode on the CPU with a text tower of exactly the checkpoint's weights, and
    without an image tower.

    Raises:
        UserError: if weights are missing, unexpected or of another shape, naming them; if it is
            built from a configuration that is neither here nor to be had.
    """
    import open_clip

    config, _, _ = stated(spec, checkpoint)
    text = config["text_cfg"] | {"output_tokens": False, "hf_model_pretrained": False}
    custom = bool(config.get("custom_text") or text.get("hf_model_name"))
    try:
        with torch.random.fork_rng(devices=[]):
            model = _build(config, vision_cfg=NO_IMAGE, text_cfg=text, custom_text=custom)
    except Exception as error:  # transformers' and the network's, where it is one of theirs
        raise UserError(
            f"{spec.weights}: its text tower cannot be built: {one_line(error)}"
        ) from None
    del model.visual.grid_size  # nothing is to be resized to it
    with accounted_for(model, checkpoint, ("visual.", "text_decoder.", "logit_")):
        open_clip.load_checkpoint(model, _weights(checkpoint), strict=False)
    del model.visual
    return model.eval()


def load_tokenizer(spec: TeacherSpec, checkpoint: Checkpoint) -> Any:
    """open_clip's tokeniser: a list of N texts to ids (N, L).

    Raises:
        UserError: if it has files that are not there.
    """
    import open_clip

    folder = checkpoint.folder
    assert folder is not None
    stated_there = (folder / OPEN_CLIP.config).is_file()
    name = f"local-dir:{folder}" if stated_there else spec.weights.partition(":")[0]
    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # transformers', sentencepiece's and the network's
        raise UserError(
            f"{checkpoint.source}: its text tower has no tokeniser that can be read "
            f"({type(error).__name__}); add tokenizer.json and tokenizer_config.json (of a hub "
            "id: `hf download ID` fetches all of them)"
        ) from None


@lru_cache(maxsize=32)
def _skeleton(config: str) -> tuple[Any, int]:
    with torch.device("meta"):
        tower = _build(json.loads(config), text_cfg=NO_TEXT, custom_text=False).visual
    _take_stated_size(tower)
    parameters = sum(parameter.numel() for parameter in tower.parameters())
    separate_projection(tower)
    return tower.requires_grad_(False).eval(), parameters


def _build(config: dict[str, Any], **changes: Any) -> Any:
    import open_clip

    config = {name: value for name, value in config.items() if name != "multimodal_cfg"} | changes
    custom = config.pop("custom_text")
    config["vision_cfg"] = config["vision_cfg"] | {"timm_model_pretrained": False}
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def _take_stated_size(tower: Any) -> None:
    """timm builds its towers at their architecture's size, whatever the configuration says."""
    trunk = getattr(tower, "trunk", None)
    own = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if trunk is not None and own not in (None, tower.image_size):
        trunk.set_input_size(tower.image_size)


def _weights(checkpoint: Checkpoint) -> str:
    assert checkpoint.folder is not None
    weights = weight_files(checkpoint.folder, checkpoint.layout, checkpoint.pickled)
    if len(weights) > 1:
        raise UserError(
            f"{checkpoint.source}: its weights are in parts, which open_clip cannot read"
        )
    return str(weights[0])


def _published(weights: str) -> dict[str, Any]:
    """What open_clip's table says of NAME:TAG.

    Raises:
        UserError: if it has no such name or tag.
    """
    import open_clip

    name, _, tag = weights.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        names = {known for known, _ in open_clip.list_pretrained()}
        raise UserError(
            f"weights {weights!r}: open_clip has no weights of {name!r}{did_you_mean(name, names)}"
        )
    found = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        raise UserError(f"weights {weights!r}: {name} has no such tag{did_you_mean(tag, tags)}")
    return found
