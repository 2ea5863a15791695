"""Summaries go through the text tower's projection before the cosine: CLIP needs it."""

import json
from types import SimpleNamespace

import pytest
import torch

from distill.probes.models import ProbedModel
from distill.probes.retrieval import text_retrieval
from distill.probes.tasks import TASKS, Probe
from students import Features
from teachers import TeacherSpec, load_teacher

WIDTH, WORDS = 12, [f"w{i}" for i in range(60)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP, whose summaries are as wide as its texts: nothing but the scores would tell."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower |= {"intermediate_size": 16}
    text = {"vocab_size": 63, "max_position_embeddings": 4, "eos_token_id": 62, "bos_token_id": 61}
    vision = {"patch_size": 8, "image_size": 16}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | vision, projection_dim=WIDTH
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        torch.nn.init.orthogonal_(model.visual_projection.weight)
    model.save_pretrained(folder)
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<pad>", "<s>", "</s>"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 61), ("</s>", 62)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return load_teacher(TeacherSpec("clip", str(folder))), model


def test_text_retrieval_projects_the_summaries(clip):
    teacher, model = clip
    ids = torch.tensor([[61, i, 62] for i in range(len(WORDS))])
    with torch.no_grad():
        texts = model.get_text_features(ids).pooler_output
        # Images that say exactly what the texts say, once they are projected.
        images = texts @ model.visual_projection.weight
    summaries = Features(images, None)
    me = ProbedModel("clip", "teacher", "", 0, teacher, {"clip": lambda features: features})
    world = SimpleNamespace(captions=WORDS)
    probe = Probe(me, world, summaries, summaries, {"clip": teacher})
    outcome = TASKS["text_retrieval"].run(probe)
    assert outcome.samples == len(WORDS)
    assert set(outcome.values.values()) == {100.0}
    bare = text_retrieval(images, texts, WORDS)
    assert max(bare["text_to_image_r1"], bare["image_to_text_r1"]) < 50
