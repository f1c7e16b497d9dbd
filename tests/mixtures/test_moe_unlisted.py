"""Mixtures that nobody listed: what is planned is what is found, and what streams scores as it does in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers as tf
from moe_checks import QUESTIONS, TOKENIZER

import culnig_fast as cf
from culnig_fast.planning.plan import plan

FEW: dict[str, Any] = {**families._COMMON, "num_experts_per_tok": 2}
DEEP: dict[str, Any] = {**FEW, "n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}

FOUND: dict[str, Any] = {
    "Olmoe": {**FEW, "num_experts": 4},
    "Phimoe": {**FEW, "num_local_experts": 4},
    "GraniteMoe": {**FEW, "num_local_experts": 4},
    "Dots1": {**DEEP, "head_dim": 8, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "Ernie4_5_Moe": {**families._COMMON, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "HunYuanMoEV1": {**FEW, "num_experts": 4, "moe_topk": 2, "head_dim": 8},
}
REFUSED: dict[str, Any] = {
    "GraniteMoeShared": {**FEW, "num_local_experts": 4, "shared_intermediate_size": 24},
    "DeepseekV3": {**DEEP, **LATENT},
}


def saved(folder: Path, family: str, settings: dict[str, Any]) -> Any:
    config = getattr(tf, f"{family}Config")(**settings)
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for path, buffer in model.named_buffers():
            if path.endswith("bias"):
                buffer.normal_(std=0.3)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FOUND)
def test_planned_and_streamed_as_found(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path, family, FOUND[family])
    expected: dict[str, int] = {}
    for location in cf.discover(model).select():
        expected[location.site.module_name] = expected.get(location.site.module_name, 0) + location.site.width
    made = plan(str(tmp_path), dtype="float32")
    assert made.neurons == expected and "mlp.experts.gate_proj" in expected
    assert made.activations.taps is not None
    options: dict[str, Any] = {"batch_tokens": 24, "progress": False}
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **options)
    streamed = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, **options)
    assert memory.totals.any() and np.array_equal(streamed.totals, memory.totals)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_refused_in_memory_is_refused_everywhere(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path, family, REFUSED[family])
    for call in (
        lambda: cf.discover(model),
        lambda: plan(str(tmp_path)),
        lambda: cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, progress=False),
    ):
        with pytest.raises(cf.CulnigError, match=f"{family}DecoderLayer"):
            call()
