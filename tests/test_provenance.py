"""Every result of a model says which attention it ran with: backends differ in the last bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.baselines.activations import count_activations
from culnig_fast.baselines.path import integrated_gradients

TOKENIZER = make_tokenizer()
NEURONS = cf.NeuronSet(("mlp.gate_proj",), np.array([1]), np.array([3]), np.zeros(1))
RESULTS: dict[str, Callable[..., Any]] = {
    "attribute": cf.attribute,
    "record_instances": lambda *given, **options: cf.record_instances(*given, NEURONS, **options),
    "integrated_gradients": lambda *given, **options: integrated_gradients(*given, steps=1, **options),
    "count_activations": count_activations,
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("result", RESULTS)
def test_the_backend_is_in_the_metadata(result: str, attention: str) -> None:
    model = families.build("llama")
    model.set_attn_implementation(attention)
    facts = RESULTS[result](model, TOKENIZER, make_questions(3), progress=False).metadata
    assert facts["attention"] == attention
    assert (facts["model_class"], facts["dtype"], facts["device"]) == ("LlamaForCausalLM", "float32", "cpu")
    assert facts["torch"] == torch.__version__
