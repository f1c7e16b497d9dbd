"""NaN in a streamed run is named by question, layer and neuron, and nothing of its block is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf

TOKENIZER = make_tokenizer()
BAD = cf.Question("bad", "x", "w9 w12 w30 w63", "A")
QUESTIONS = [question for question in make_questions(20) if "w63" not in question.prompt]
OPTIONS: dict[str, Any] = {"batch_tokens": 12, "stream_tokens": 24, "progress": False}


def poisoned(folder: Path, where: str) -> Path:
    """A checkpoint in which the word w63 alone does harm."""
    model = families.build("llama")
    with torch.no_grad():
        if where == "embedding":
            model.model.embed_tokens.weight[63] = torch.nan
        else:  # w63 alone points along one direction, whose square overflows float16 between gate, up and down
            model, layer = model.half(), model.model.layers[1]
            direction = torch.nn.functional.normalize(torch.linspace(-1, 1, 32), dim=0)
            layer.post_attention_layernorm.weight.fill_(1.0)
            model.model.embed_tokens.weight[63] = direction * 200
            layer.mlp.gate_proj.weight[5] = layer.mlp.up_proj.weight[5] = direction * 60
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("embedding", "question 'bad': the activation of neuron 0 of self_attn.q_proj in layer 0 is nan"),
        ("product", "question 'bad': its logits give log P = nan, after activations that are finite"),
    ],
)
def test_the_question_is_named(where: str, sentence: str, tmp_path: Path) -> None:
    folder, path = poisoned(tmp_path / "model", where), tmp_path / "run.partial"
    questions = [*QUESTIONS[:9], BAD, *QUESTIONS[9:]]
    with pytest.raises(cf.CulnigError, match=sentence):
        cf.attribute_streamed(folder, TOKENIZER, questions, checkpoint=path, checkpoint_seconds=0.0, **OPTIONS)
    kept = cf.attribute_streamed(folder, TOKENIZER, QUESTIONS, **OPTIONS)
    assert np.isfinite(kept.totals).all()


def test_what_was_kept_before_it_is_finite(tmp_path: Path) -> None:
    """The longest questions come first, the bad one in the last block but one."""
    folder, path = poisoned(tmp_path / "model", "embedding"), tmp_path / "run.partial"
    questions = [*QUESTIONS, BAD]
    for _ in range(2):  # the second attempt continues, and ends alike
        with pytest.raises(cf.CulnigError, match="question 'bad'"):
            cf.attribute_streamed(folder, TOKENIZER, questions, checkpoint=path, checkpoint_seconds=0.0, **OPTIONS)
        assert path.exists()
    from culnig_fast.tensors import map_tensor

    assert np.isfinite(map_tensor(path, "totals", np.float64)).all()
    assert 0 < len(map_tensor(path, "probability", np.float64)) < len(questions)
