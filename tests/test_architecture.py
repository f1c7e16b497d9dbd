"""Discovery: what it finds, what it refuses, and that it leaves no trace."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
import transformers as tf
from torch import nn
from wordlevel import make_questions, make_tokenizer

from culnig_fast.architecture import discover
from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import evaluate
from culnig_fast.interleaved import places
from culnig_fast.neurons import NeuronSite

NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", families.LISTED)
def test_every_site_is_the_projection_of_that_name(family: str, dtype: torch.dtype) -> None:
    architecture = discover(families.build(family, dtype))
    fused = family == "phi3"
    for location in architecture.locations:
        name = location.site.module_name.rpartition(".")[2]
        expected = {"act": "down_proj"}.get(name, name)
        if fused and name in ("q_proj", "k_proj", "v_proj"):
            expected = "qkv_proj"
        elif fused and name in ("gate_proj", "up_proj"):
            expected = "gate_up_proj"
        assert location.module_path.rpartition(".")[2] == expected
        assert f".{location.site.layer_idx}." in location.module_path
    widths = {site.module_name: site.width for site in architecture.layout().sites}
    head_dim = 16 if family in ("qwen3", "gemma2", "gemma3", "gemma3_multimodal") else 8
    assert widths == {
        "self_attn.q_proj": 4 * head_dim,
        "self_attn.k_proj": 2 * head_dim,
        "self_attn.v_proj": 2 * head_dim,
        "mlp.gate_proj": 48,
        "mlp.up_proj": 48,
    }


@pytest.mark.parametrize("scale", [1e-3, 0.02, 3.0])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2"])
def test_roles_do_not_depend_on_the_size_of_the_weights(family: str, scale: float) -> None:
    model = families.build(family)
    expected = [(x.site, x.module_path, x.columns) for x in discover(model).locations]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "layers" in name:
                parameter.mul_(scale / 0.3)
    assert [(x.site, x.module_path, x.columns) for x in discover(model).locations] == expected


def test_phi3_slices_follow_one_another() -> None:
    found = {x.site.module_name: x.columns for x in discover(families.build("phi3")).locations if x.site.layer_idx == 0}
    assert found["self_attn.q_proj"] == slice(0, 32)
    assert found["self_attn.k_proj"] == slice(32, 48)
    assert found["self_attn.v_proj"] == slice(48, 64)
    assert found["mlp.gate_proj"] == slice(0, 48)
    assert found["mlp.up_proj"] == slice(48, 96)


@pytest.mark.parametrize(
    ("family", "groups", "shares"),
    [
        ("gpt_neox_head_after_head", 4, {"q": 8, "k": 8, "v": 8}),
        ("falcon_group_after_group", 2, {"q": 16, "k": 8, "v": 8}),
        ("codegen_two_heads_together", 4, {"q": 8, "v": 8, "k": 8}),
    ],
)
def test_heads_that_follow_one_another_are_told_apart(family: str, groups: int, shares: dict[str, int]) -> None:
    """Each group of heads holds its share of queries, keys and values, in the order of the family's own code."""
    found = {x.site: x.columns for x in discover(families.build(family)).locations}
    period = sum(shares.values())
    starts = {part: sum(list(shares.values())[: list(shares).index(part)]) for part in shares}
    for layer in (0, 1):
        for part, share in shares.items():
            want = [group * period + starts[part] + i for group in range(groups) for i in range(share)]
            site = NeuronSite(NAMES[part], layer, groups * share)
            assert list(places(found[site])) == want
    text = str(discover(families.build(family)).describe())
    assert f"of every {period} of its output" in text


def test_heads_in_another_order_are_refused() -> None:
    model = families.build("gpt_neox_head_after_head")
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))

    class Shuffled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)[..., order]

    for layer in model.gpt_neox.layers:
        layer.attention.query_key_value = Shuffled(layer.attention.query_key_value)
    with pytest.raises(CulnigError, match=r"query_key_value\.inner .* do not behave as queries, keys and values"):
        discover(model)


def test_the_weight_of_a_norm_of_each_head_is_no_matrix() -> None:
    model = families.build("cohere_norm_of_each_head")
    assert len(discover(model).locations) == 12

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.softmax(-1)

    model.model.layers[1].self_attn.q_norm = Mixing()
    with pytest.raises(CulnigError, match=r"layer 1 .*q_norm\.weight \[4, 8\]"):
        discover(model)


def test_swapped_names_are_seen_through() -> None:
    """The module called gate_proj that is used as up projection is up: behaviour decides."""
    model = families.build("llama")
    for layer in model.model.layers:
        layer.mlp.forward = lambda x, mlp=layer.mlp: mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))
        layer.self_attn.k_proj, layer.self_attn.v_proj = layer.self_attn.v_proj, layer.self_attn.k_proj
    paths = {x.site.module_name: x.module_path for x in discover(model).locations if x.site.layer_idx == 0}
    assert paths["mlp.gate_proj"].endswith("up_proj")
    assert paths["mlp.up_proj"].endswith("gate_proj")
    assert paths["self_attn.k_proj"].endswith("k_proj")


def test_other_attribute_names_are_found() -> None:
    paths = [x.module_path for x in discover(families.build("gpt2_conv1d_fused")).locations]
    assert "transformer.h.0.attn.c_attn" in paths
    paths = [x.module_path for x in discover(families.build("opt_plain")).locations]
    assert "model.decoder.layers.1.fc1" in paths


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("llama4_every_token_at_every_expert", ["Llama4TextDecoderLayer", "Llama4TextExperts", "gate_up_proj"]),
        ("mamba", ["MambaBlock", "in_proj"]),
        ("lfm2_own_width", ["feed_forward.w2 reads 256 columns", "intermediate_size is 48", "rule of its own"]),
        (
            "granite_moe_shared_outside",
            ["shared_mlp.input_linear", "no part of the block of", "block_sparse_moe.experts"],
        ),
        ("gemma4_mlp_beside_experts", ["its MLP (mlp.gate_proj", "no part of the block of the experts experts"]),
        ("gemma4_inputs_a_layer", ["found 1 and 2", "per_layer_input_gate"]),
        ("rwkv_mixes_time", ["layer 0 (RwkvBlock): attention (Rwkv", "weights of three dimensions"]),
        ("recurrent_gemma_gates", ["temporal_block.rg_lru", "not called as experts are"]),
        ("mllama_layers_for_pictures", ["layer 1 (MllamaCrossAttentionDecoderLayer)", "not run", "text alone"]),
        ("zaya_values_of_the_token_before", ["layer 0 (ZayaDecoderLayer)", "1 rows for 3 tokens"]),
        ("cpmant_tokens_put_in_front", ["layer 0 (CpmAntTransformerBlock)", "35 rows for 3 tokens"]),
        ("xlstm_no_heads", ["layer 0 (xLSTMBlock)", "xLSTMConfig names no num_attention_heads"]),
    ],
)
def test_what_cannot_be_resolved_is_refused_by_name(family: str, words: list[str]) -> None:
    with pytest.raises(CulnigError) as caught:
        discover(families.build(family))
    for word in words:
        assert word in str(caught.value)


def test_adapters_are_to_be_merged_first() -> None:
    peft = pytest.importorskip("peft")
    model = families.build("llama")
    expected = [(x.site, x.columns) for x in discover(model).locations]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["v_proj"], layers_to_transform=[1], r=2))
    for given in (adapted, adapted.base_model.model):
        with pytest.raises(CulnigError, match=r"layer 1: .* to self_attn\.v_proj.*merge_and_unload\(\)"):
            discover(given)
    assert [(x.site, x.columns) for x in discover(adapted.merge_and_unload()).locations] == expected


@pytest.mark.parametrize("of", ["the model", "the layer"])
def test_what_cannot_be_run_is_refused_and_want_of_memory_is_not(of: str) -> None:
    """Both are run: the model once, the layer by itself after that."""
    for raised, caught in ((ZeroDivisionError("on purpose"), CulnigError), (torch.OutOfMemoryError(), None)):
        model = families.build("llama")
        calls: list[int] = []

        def fail(*args: Any, raised: Exception = raised, calls: list[int] = calls) -> None:
            calls.append(1)
            if of == "the model" or len(calls) > 1:
                raise raised

        model.model.layers[0].register_forward_pre_hook(fail)
        with pytest.raises(caught or type(raised)) as error:
            discover(model)
        if caught is not None:
            for word in (
                "LlamaForCausalLM" if of == "the model" else "layer 0 (LlamaDecoderLayer)",
                "cannot be run",
                "ZeroDivisionError: on purpose",
                "cannot be resolved",
            ):
                assert word in str(error.value)


def test_a_second_mlp_is_not_left_out_silently() -> None:
    model = families.build("llama")
    model.model.layers[1].extra = nn.Linear(32, 32)
    with pytest.raises(CulnigError, match=r"layer 1 .*extra\.weight \[32, 32\]"):
        discover(model)


def test_a_projection_that_nothing_reads_is_named() -> None:
    model = families.build("llama")
    model.model.layers[1].mlp.after = nn.Linear(32, 32)
    model.model.layers[1].mlp.register_forward_hook(lambda mlp, args, output: mlp.after(output))
    with pytest.raises(CulnigError, match=r"layer 1 .* no projection reads what mlp\.after makes"):
        discover(model)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("num_attention_heads", 8, "heads"),
        ("num_key_value_heads", 4, "columns"),
        ("intermediate_size", 40, "intermediate"),
    ],
)
def test_a_configuration_that_does_not_match_is_refused(name: str, value: int, word: str) -> None:
    model = families.build("llama")
    setattr(model.config, name, value)
    with pytest.raises(CulnigError, match=word):
        discover(model)


def test_not_a_decoder() -> None:
    with pytest.raises(CulnigError, match="AutoModelForCausalLM"):
        discover(nn.Linear(2, 2))
    with pytest.raises(CulnigError, match="output embedding"):
        discover(families.build("llama").model)


def test_sites_that_are_not_there_are_named() -> None:
    architecture = discover(families.build("nemotron_plain"))
    with pytest.raises(CulnigError, match=r"mlp\.gate_proj"):
        architecture.select(["mlp.gate_proj"])
    assert "mlp.gate_proj" not in architecture.layout().module_names
    with pytest.raises(CulnigError, match="mlp.nothing"):
        architecture.select(["mlp.nothing"])


def test_discovery_changes_nothing() -> None:
    model = families.build("gemma3").train()
    model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    discover(model)
    assert [module.training for module in model.modules()] == flags
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


NOT_CAUSAL: dict[str, Any] = {
    "bert": lambda: tf.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "gemma3_bidirectional": lambda: tf.Gemma3TextConfig(
        **{
            **families.LISTED["gemma3"]().to_dict(),
            "use_bidirectional_attention": True,
        }
    ),
}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_model_that_reads_ahead_is_refused(name: str) -> None:
    """Its scores and answers would depend on the padding."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(NOT_CAUSAL[name]()).eval()
    with pytest.raises(CulnigError, match="not causal"):
        discover(model)
    with pytest.raises(CulnigError, match="not causal"):
        evaluate(model, make_tokenizer(), make_questions(3), progress=False)


@pytest.mark.parametrize("shared", ["mlp", "layer"])
def test_a_module_that_two_layers_share_is_refused(shared: str) -> None:
    model = families.build("llama")
    layers = model.model.layers
    if shared == "mlp":
        layers[1].mlp = layers[0].mlp
    else:
        layers[1] = layers[0]
    with pytest.raises(CulnigError, match=r"layers 0 and 1 share model\.layers\.0\.[a-z_.]+, .* copy"):
        discover(model)
