"""Prompts that a model cannot look up are refused by name before it runs, whatever asks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers as tf
from wordlevel import make_tokenizer

import culnig_fast as cf
from culnig_fast.baselines.path import integrated_gradients
from culnig_fast.generation import generate
from culnig_fast.prompt_limits import _positions

TOKENIZER = make_tokenizer()
WORDS = [f"w{i}" for i in range(8, 64)]
SMALL = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TABLES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**SMALL, n_embd=32, n_layer=1, n_head=2, n_positions=12)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**SMALL, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=2,
                     word_embed_proj_dim=32, max_position_embeddings=12)
    ),
    "roberta": lambda: tf.RobertaForCausalLM(
        tf.RobertaConfig(**SMALL, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=13, is_decoder=True)
    ),
    "gptj": lambda: tf.GPTJForCausalLM(
        tf.GPTJConfig(**SMALL, n_embd=32, n_layer=1, n_head=2, rotary_dim=4, n_positions=12)
    ),
}  # fmt: skip
SHORT, LONG = (cf.Question(name, "x", " ".join(WORDS[:n]), "A") for name, n in (("short", 4), ("long", 30)))


@pytest.mark.parametrize("family", TABLES)
def test_the_limit_is_the_longest_prompt_that_runs(family: str) -> None:
    model = TABLES[family]().eval()
    (limit,) = set(_positions(model))
    assert limit == 12
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5), use_cache=False)


@pytest.mark.parametrize("family", ["llama", "gemma3_multimodal", "phi3"])
def test_rotary_positions_and_towers_for_pictures_set_no_limit(family: str) -> None:
    assert not list(_positions(families.build(family)))


NEURONS = cf.NeuronSet(("mlp.up_proj",), [0], [3], [1.0])
ASKING: dict[str, Callable[[Any, list[cf.Question]], Any]] = {
    "attribute": lambda model, asked: cf.attribute(model, TOKENIZER, asked, progress=False),
    "evaluate": lambda model, asked: cf.evaluate(model, TOKENIZER, asked, progress=False),
    "record": lambda model, asked: cf.record_instances(model, TOKENIZER, asked, NEURONS, progress=False),
    "count": lambda model, asked: cf.count_activations(model, TOKENIZER, asked, progress=False),
    "ablate": lambda model, asked: cf.ablate(model, TOKENIZER, asked, NEURONS, progress=False),
    "integrate": lambda model, asked: integrated_gradients(model, TOKENIZER, asked, steps=2, progress=False),
    "generate": lambda model, asked: generate(model, TOKENIZER, asked, max_new_tokens=2, progress=False),
}


@pytest.mark.parametrize("asking", ASKING)
def test_everything_that_asks_refuses_by_name(asking: str) -> None:
    run = ASKING[asking]
    model = TABLES["gpt2"]().eval()
    run(model, [SHORT])
    with pytest.raises(cf.CulnigError, match=r"question 'long' has 3[01] tokens.* knows 12 positions; shorten it"):
        run(model, [SHORT, LONG])
    small = families.build("llama")
    small.resize_token_embeddings(20, mean_resizing=False)
    beyond = cf.Question("beyond", "x", WORDS[-1], "A")
    with pytest.raises(
        cf.CulnigError, match=r"question 'beyond' holds token \d\d, but LlamaForCausalLM embeds 20; load"
    ):
        run(small, [SHORT, beyond])


def test_an_answer_beyond_the_vocabulary() -> None:
    small = families.build("llama")
    small.resize_token_embeddings(20, mean_resizing=False)
    question = cf.Question("q", "x", WORDS[0], WORDS[-1])
    with pytest.raises(cf.CulnigError, match=rf"answer '{WORDS[-1]}' of question 'q' is token \d\d, but .* has 20;"):
        cf.evaluate(small, TOKENIZER, [question], progress=False)


def test_room_for_the_answer_counts() -> None:
    model = TABLES["gpt2"]().eval()
    generate(model, TOKENIZER, [SHORT], max_new_tokens=9, progress=False)  # the last one is not read again
    with pytest.raises(cf.CulnigError, match=r"has 4 tokens and an answer of up to 10, but GPT2LMHeadModel knows 12"):
        generate(model, TOKENIZER, [SHORT], max_new_tokens=10, progress=False)


def test_streamed_scoring_too(tmp_path: Path) -> None:
    TABLES["gpt2"]().save_pretrained(tmp_path)
    with pytest.raises(cf.CulnigError, match=r"question 'long' has 3[01] tokens"):
        cf.attribute_streamed(tmp_path, TOKENIZER, [SHORT, LONG], progress=False)


def rotating(kind: str) -> Any:
    """A model whose rotations change at 12 positions."""
    if kind == "dynamic":
        config = {**families.LISTED["llama"]().to_dict(), "max_position_embeddings": 12}
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        return tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**{**config, "rope_parameters": rope})).eval()
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 7.0], "original_max_position_embeddings": 12}
    config = {**families.LISTED["phi3"]().to_dict(), "original_max_position_embeddings": 12}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    return tf.AutoModelForCausalLM.from_config(tf.Phi3Config(**{**config, "rope_parameters": rope})).eval()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("name", ASKING)
def test_prompts_that_would_turn_each_other_are_refused(name: str, kind: str) -> None:
    """Beside a longer one the shorter prompt's rotations are others than by itself."""
    model = rotating(kind)
    with pytest.raises(cf.CulnigError, match=rf"question 'long' has 3[01] tokens, and beyond 12 .*'{kind}'"):
        ASKING[name](model, [SHORT, LONG])
    ASKING[name](model, [SHORT])
    if kind == "longrope":
        ASKING[name](model, [LONG])
    else:
        with pytest.raises(cf.CulnigError, match="leave it out"):
            ASKING[name](model, [LONG])


def test_scores_after_a_longer_run_are_those_before() -> None:
    model = rotating("longrope")
    first = cf.attribute(model, TOKENIZER, [SHORT], progress=False)
    cf.attribute(model, TOKENIZER, [LONG], progress=False)
    again = cf.attribute(model, TOKENIZER, [SHORT], progress=False)
    assert (again.totals == first.totals).all()
