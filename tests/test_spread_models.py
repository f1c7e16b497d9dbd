"""Models of which not all is in one place: layers fetched from disk, and weights divided among processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(11)


def test_a_model_dispatched_by_a_device_map(tmp_path: Path) -> None:
    """One layer on the CPU, the other fetched from disk whenever it runs: its weights are nowhere in between."""
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model = families.build("llama")
    model.save_pretrained(tmp_path / "model")
    places = {name: "cpu" for name in ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb")}
    spread = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={**places, "model.layers.1": "disk", "lm_head": "cpu"},
        offload_folder=tmp_path / "disk",
    )
    assert spread.model.layers[1].mlp.gate_proj.weight.device.type == "meta"
    whole = cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    path = tmp_path / "run.partial"
    table = cf.attribute(spread, TOKENIZER, QUESTIONS, checkpoint=path, progress=False)
    assert np.abs(table.totals - whole.totals).max() <= 1e-5 * np.abs(whole.totals).max()
    again = cf.attribute(spread, TOKENIZER, QUESTIONS, checkpoint=path, progress=False)
    assert np.array_equal(again.totals, table.totals)


def offloaded(family: str, *names: str) -> Any:
    """The family's model with some of its modules offloaded to the CPU's memory, the rest where it was."""
    accelerate = pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model = families.build(family)
    for name in names:
        accelerate.cpu_offload(model.get_submodule(name), execution_device="cpu")
    return model


def test_interventions_reach_offloaded_layers_and_baking_is_refused() -> None:
    model, whole = offloaded("llama", "model.layers.1"), families.build("llama")
    assert model.model.layers[1].mlp.gate_proj.weight.is_meta
    tokens = torch.tensor([[9, 12, 30, 5, 22]])
    neurons = cf.NeuronSet(("mlp.gate_proj", "self_attn.v_proj", "mlp.act"), [0, 1, 1], [3, 2, 5], [0.0, 0.0, 0.0])
    with torch.no_grad():
        plain = whole(tokens).logits
        with cf.suppress(whole, neurons), cf.suppress(model, neurons):
            expected = whole(tokens).logits
            assert torch.equal(model(tokens).logits, expected)
    assert not torch.equal(expected, plain)
    for in_place in (False, True):
        with pytest.raises(cf.CulnigError, match=r"layers\.1\..* is offloaded, so an edit .*; load the model without"):
            cf.bake(model, neurons, in_place=in_place)
    # Of layers that are not offloaded it is done.
    there = cf.NeuronSet(("mlp.gate_proj",), [0], [3], [0.0])
    with torch.no_grad(), cf.suppress(whole, there):
        assert torch.equal(cf.bake(model, there)(tokens).logits, whole(tokens).logits)


@pytest.mark.parametrize("work", ["discover", "attribute", "evaluate", "generate"])
def test_an_offloaded_embedding_is_refused_in_a_sentence(work: str) -> None:
    from culnig_fast.generation import generate

    model = offloaded("llama", "model.embed_tokens")
    options: dict[str, Any] = {"progress": False}
    calls = {
        "discover": lambda: cf.discover(model),
        "attribute": lambda: cf.attribute(model, TOKENIZER, QUESTIONS, **options),
        "evaluate": lambda: cf.evaluate(model, TOKENIZER, QUESTIONS, **options),
        "generate": lambda: generate(model, TOKENIZER, QUESTIONS, **options),
    }
    with pytest.raises(cf.CulnigError, match="embedding of LlamaForCausalLM is offloaded.*keeps the embedding"):
        calls[work]()


@pytest.mark.parametrize("way", ["two axes", "FSDP"])
def test_weights_divided_otherwise_than_by_columns_are_refused(way: str) -> None:
    from torch import distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    model = families.build("llama")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        if way == "FSDP":
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        else:
            gate = model.model.layers[1].mlp.gate_proj
            gate.weight = torch.nn.Parameter(distribute_tensor(gate.weight.detach(), init_device_mesh("cpu", (1, 1))))
        with pytest.raises(cf.CulnigError, match="weight is divided .* otherwise than by one tensor-parallel plan"):
            cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    finally:
        dist.destroy_process_group()


def test_device_auto_loads_by_a_device_map(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    from culnig_fast.models import load_model

    original, asked = transformers.AutoModelForCausalLM.from_pretrained, []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("device_map"))
        return original(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    models = [load_model("demo", device=device)[0] for device in ("auto", "cpu")]
    assert asked == ["auto", None]
    tokenizer = load_model("demo", device="cpu")[1]
    question = cf.Question("q", "x", "A B C", "A")
    tables = [cf.attribute(model, tokenizer, [question], progress=False, path="taps") for model in models]
    assert np.abs(tables[0].totals - tables[1].totals).max() <= 1e-5 * np.abs(tables[1].totals).max()
