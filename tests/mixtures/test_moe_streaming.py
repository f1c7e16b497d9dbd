"""Mixtures streamed from disk: the same bits as in memory, whatever names their experts have in the checkpoint."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers
from listed_mixture import as_list
from moe_checks import EVERY, QUESTIONS, TOKENIZER, sites_of
from safetensors.torch import load_file, save_file

import culnig_fast as cf
from culnig_fast.architecture import discover_alike
from culnig_fast.models import load_model
from culnig_fast.streaming.model import open_streamed
from culnig_fast.streaming.pieces import Source, joined
from culnig_fast.streaming.shards import SINGLE, Shards

OPTIONS: dict[str, Any] = {"batch_tokens": 24, "progress": False}
CONFIGS: dict[str, Any] = {**families.MIXTURES, **families.PART_MIXTURES}


def made(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    config.num_hidden_layers = 3
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i % 2] for i in range(3)]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for path, tensor in (*model.named_parameters(), *model.named_buffers()):
            if path.endswith("bias"):
                tensor.normal_(std=0.3)
    return model.to(dtype).eval()


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    model = made(CONFIGS[family](), dtype)
    model.save_pretrained(folder, **options)
    TOKENIZER.save_pretrained(folder)
    return model


def sites(model: Any) -> list[str]:
    names = {location.site.module_name for location in cf.discover(model).locations}
    return [name for name in EVERY if name in names]


def streamed(folder: Path, **options: Any) -> cf.ScoreTable:
    return cf.attribute_streamed(folder, TOKENIZER, QUESTIONS, **{**OPTIONS, **options})


@pytest.mark.parametrize("family", CONFIGS)
def test_the_same_bits_as_in_memory(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path, family)
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, sites=sites(model), recompute=True, **OPTIONS)
    found = streamed(tmp_path, sites=sites(model), stream_tokens=60)
    assert found.layout == memory.layout
    assert found.totals.any() and np.array_equal(found.totals, memory.totals)
    assert np.array_equal(found.probability, memory.probability)
    assert found.metadata["fusion"] == memory.metadata["fusion"]
    for tokens in (1, 10**6) if family in ("mixtral", "qwen3_moe_dense_first") else ():
        assert np.array_equal(streamed(tmp_path, sites=sites(model), stream_tokens=tokens).totals, found.totals)


@pytest.mark.parametrize("options", [{"reduction": "sum"}, {"reduction": "mean"}, {"sites": ["self_attn.v_proj"]}])
def test_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, "qwen3_moe")
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **options, **OPTIONS)
    assert np.array_equal(streamed(tmp_path, **options).totals, memory.totals)


def dtypes_of(model: Any) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_in_half_precision(family: str, dtype: str, tmp_path: Path) -> None:
    saved(tmp_path, family, getattr(torch, dtype))
    model, _ = load_model(str(tmp_path), device="cpu")
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    assert np.array_equal(streamed(tmp_path).totals, memory.totals)
    assert dtypes_of(open_streamed(tmp_path).architecture.model) == dtypes_of(model)


def test_shards(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    saved(whole, "mixtral")
    saved(parts, "mixtral", max_shard_size="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 3
    assert np.array_equal(streamed(parts).totals, streamed(whole).totals)


def per_expert(model: Any) -> dict[str, torch.Tensor]:
    """A Qwen3-MoE's tensors under the names of its published checkpoints, one projection of one expert each."""
    tensors = {}
    for name, value in model.state_dict().items():
        base, _, part = name.rpartition(".")
        for expert, one in enumerate(value) if value.dim() == 3 else ():
            parts = {"up_proj": one[len(one) // 2 :], "gate_proj": one[: len(one) // 2]}
            for key, matrix in ({"down_proj": one} if part == "down_proj" else parts).items():
                tensors[f"{base}.{expert}.{key}.weight"] = matrix.contiguous()
        if value.dim() != 3:
            tensors[name] = value
    return tensors


def test_experts_by_themselves_and_joined_on_disk_are_the_same_model(tmp_path: Path) -> None:
    config = CONFIGS["qwen3_moe"]()
    config.num_experts = 12  # expert 10 stands before expert 2 where names are sorted as texts
    model = made(config)
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    for name, tensors in (("joined", model.state_dict()), ("apart", per_expert(model))):
        folder = tmp_path / name
        folder.mkdir()
        model.config.save_pretrained(folder)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / SINGLE)
        assert ("model.layers.2.mlp.experts.11.up_proj.weight" in tensors) == (name == "apart")
        assert np.array_equal(streamed(folder).totals, memory.totals), name


def test_experts_in_a_list_stream_as_they_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = made(CONFIGS["mixtral"]())
    listed = as_list(fused)
    memory = cf.attribute(listed, TOKENIZER, QUESTIONS, **OPTIONS)
    fused.config.save_pretrained(tmp_path)
    save_file(listed.state_dict(), tmp_path / SINGLE)
    build = transformers.AutoModelForCausalLM.from_config
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_config", lambda *args, **kw: as_list(build(*args, **kw))
    )
    # A model with code of its own is converted by no version of the library.
    monkeypatch.setattr("culnig_fast.streaming.pieces._conversions", lambda model: ())
    found = streamed(tmp_path, stream_tokens=60)
    assert found.layout == memory.layout
    assert found.totals.any() and np.array_equal(found.totals, memory.totals)


def test_one_layer_is_in_memory_and_the_others_are_like_the_first_of_their_kind(tmp_path: Path) -> None:
    model = saved(tmp_path, "qwen3_moe_dense_first")
    opened = open_streamed(tmp_path)
    assert all(parameter.is_meta for layer in opened.architecture.layers for parameter in layer.parameters())
    for one in (model, as_list(made(CONFIGS["mixtral"]()))):
        expected, found = cf.discover(one).locations, discover_alike(one).locations
        for a, b in zip(found, expected, strict=True):
            assert (a.site, a.module, a.module_path, a.columns, a.tensor, a.part) == (
                b.site, b.module, b.module_path, b.columns, b.tensor, b.part
            )  # fmt: skip
            if a.experts is not None and b.experts is not None:
                held = [experts.weights(a.part) for experts in (a.experts, b.experts)]
                assert all(x is y for x, y in zip(*held, strict=True)) and a.experts.form == b.experts.form


def test_a_routers_correction_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    """It is a buffer that is saved, which no constructor knows."""
    options = {**families._COMMON, "head_dim": 8, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    config = transformers.Glm4MoeConfig(**options, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1)
    model = made(config)
    assert any("e_score_correction_bias" in name and value.any() for name, value in model.named_buffers())
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    assert "mlp.experts.gate_proj" in memory.layout.module_names
    assert np.array_equal(streamed(tmp_path).totals, memory.totals)
    loaded, _ = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    memory = cf.attribute(loaded, TOKENIZER, QUESTIONS, **OPTIONS)
    assert np.array_equal(streamed(tmp_path, dtype="bfloat16").totals, memory.totals)
    assert dtypes_of(open_streamed(tmp_path, dtype="bfloat16").architecture.model) == dtypes_of(loaded)


def changed(folder: Path, change: Any) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


LAST = "model.layers.1.block_sparse_moe.experts.3.w3.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LAST), r"layers\.1\.mlp\.experts\.gate_up_proj is \[4, 96, 32\] .* 3 tensors like .*w3"),
        (lambda t: t.update({LAST: t[LAST][:-1].clone()}), r"experts\.3\.w3\.weight \(\[47, 32\]\)"),
        (lambda t: [t.pop(LAST.replace("3.w3", f"{i}.w3")) for i in range(4)], "fills 48 of the 96 rows"),
        (lambda t: t.update({LAST: t[LAST].to(torch.int8)}), r"w3\.weight .* is stored as I8"),
        (lambda t: t.pop("model.layers.2.block_sparse_moe.gate.weight"), r"no tensor for model\.layers\.2\.mlp\.gate"),
    ],
    ids=["an expert is missing", "another shape", "one part of two", "quantised", "the router is missing"],
)
def test_a_broken_checkpoint_is_named(change: Any, message: str, tmp_path: Path) -> None:
    saved(tmp_path, "mixtral")
    assert LAST in load_file(tmp_path / SINGLE)
    changed(tmp_path, change)
    with pytest.raises(cf.CulnigError, match=message) as raised:
        streamed(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_the_library_would_compute_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"a.0": torch.zeros(2, 3), "a.1": torch.zeros(2, 3)}, tmp_path / SINGLE)
    shards = Shards(tmp_path)

    def step(name: str, dim: int) -> Any:
        return type(name, (), {"dim": dim})()

    def source(*steps: Any) -> Source:
        return Source(SimpleNamespace(operations=list(steps), source_patterns=["a"]), {"a": ["a.0", "a.1"]})

    assert len(joined(source(step("MergeModulelist", 0)), (2, 2, 3), "p", shards)) == 2
    for steps in ([step("Transpose", 0)], [step("MergeModulelist", 1)], [step("MergeModulelist", 0), step("Chunk", 1)]):
        with pytest.raises(cf.CulnigError, match=r"a\.0 .* is converted when transformers loads it .*load the model"):
            joined(source(*steps), (2, 2, 3), "p", shards)


def test_a_quantised_mixture_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "gpt_oss")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(cf.CulnigError, match="quantised checkpoint, which cannot be streamed"):
        streamed(tmp_path)


def test_experts_changed_by_hand_are_still_seen_in_memory() -> None:
    """Only a model built from its configuration is taken to be alike throughout."""
    model = families.build("mixtral")
    held = model.model.layers[1].mlp.experts
    held.forward = lambda *args: 1.01 * type(held).forward(held, *args)
    assert len(discover_alike(copy.copy(model)).locations) == len(sites_of(model)) * 2
    with pytest.raises(cf.CulnigError, match="layer 1 .*something else"):
        cf.discover(model)


@pytest.mark.parametrize("options", [{"reduction": "last"}, {"positions": "last"}], ids=str)
def test_tokens_that_do_not_count_at_experts(options: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, "mixtral")
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, sites=sites(model), **OPTIONS, **options)
    table = streamed(tmp_path, sites=sites(model), stream_tokens=60, **options)
    assert np.array_equal(table.totals, memory.totals)
    everything = cf.attribute(model, TOKENIZER, QUESTIONS, sites=sites(model), **OPTIONS)
    assert not np.array_equal(table.totals, everything.totals)
