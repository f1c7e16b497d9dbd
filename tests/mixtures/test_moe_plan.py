"""`plan` of mixtures: counts against models that exist, bytes against what autograd keeps, published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from kept_bytes import kept_per_token
from listed_mixture import as_list, put_in_lists
from typer.testing import CliRunner

from culnig_fast.architecture import discover, find_layers
from culnig_fast.cli import app
from culnig_fast.errors import CulnigError
from culnig_fast.planning.layers import mixtures_of, widths_of
from culnig_fast.planning.plan import plan

CONFIGS: dict[str, Any] = {**families.MIXTURES, **families.PART_MIXTURES}


def config_of(name: str) -> Any:
    """With a window that no sample here fills: within it no mask is kept."""
    config = CONFIGS[name]()
    if getattr(config, "sliding_window", None):
        config.sliding_window = 256
    return config


def config_file(folder: Path, name: str) -> str:
    config_of(name).save_pretrained(folder)
    return str(folder)


def idle_weights(model: Any, active: int) -> int:
    """Weights of the experts that a token is not sent to, one expert at a time."""
    idle = 0
    for layer in model.model.layers:
        held = getattr(layer.mlp, "experts", None)
        for parameter in () if held is None else held.parameters():
            idle += sum(one.numel() for one in parameter[active:])
    return idle


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    made = plan(config_file(tmp_path, name), groups=3, dtype="float32")
    model = families.build(name)
    architecture = discover(model)
    expected = {s.site.module_name: 0 for s in architecture.locations if not s.site.module_name.endswith(".act")}
    for location in architecture.select():
        expected[location.site.module_name] += location.site.width
    assert made.neurons == expected
    assert made.scored == architecture.layout().size
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    routed = [x.site for x in architecture.locations if x.site.module_name == "mlp.experts.gate_proj"]
    config = model.config
    assert made.mixture == {
        "layers": len(routed),
        "experts": routed[0].experts,
        "active": config.num_experts_per_tok,
        "width": routed[0].width // routed[0].experts,
        "shared": getattr(config, "shared_expert_intermediate_size", 0),
    }
    inside = sum(p.numel() for layer in architecture.layers for p in layer.parameters())
    assert made.active_parameters == inside - idle_weights(model, config.num_experts_per_tok)
    if name == "mixtral":
        acts = plan(str(tmp_path), sites=["mlp.experts.act"])
        assert acts.neurons == {"mlp.experts.act": sum(site.width for site in routed)}


@pytest.mark.parametrize("name", CONFIGS)
def test_taps_keep_what_is_planned(name: str, tmp_path: Path) -> None:
    made = plan(config_file(tmp_path, name), dtype="float32", length=64)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(name)).eval()
    # gpt-oss's attention keeps a square of its length.
    lengths = (0, 64) if name == "gpt_oss" else (32, 64)
    assert made.activations.taps == pytest.approx(kept_per_token(model, "taps", lengths=lengths)[0], rel=1e-3)
    measured, fused = kept_per_token(model, "auto", lengths=lengths)
    assert fused == made.layers - (made.mixture or {})["layers"]
    # A dense first layer is fused; of one layer each, recomputation has the larger in memory.
    assert made.activations.fused_cpu == pytest.approx(measured, rel=1e-3)
    assert made.activations.recomputed is not None and made.activations.recomputed < made.activations.taps


def test_what_the_taps_of_chosen_sites_keep(tmp_path: Path) -> None:
    source = config_file(tmp_path, "qwen2_moe")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of("qwen2_moe")).eval()
    seen = set()
    for more in ("mlp.experts.act", "mlp.shared_expert.act", "mlp.shared_expert.up_proj"):
        sites = ("mlp.experts.gate_proj", more)
        made = plan(source, sites=sites, dtype="float32")
        assert made.activations.taps == pytest.approx(kept_per_token(model, "taps", sites)[0], rel=1e-3), more
        seen.add(made.activations.taps)
    assert len(seen) > 1


def test_published_sizes() -> None:
    # Weights in billions as published: all, and those that a token passes (embeddings among them).
    for name, billions, active in (
        ("qwen3-30b-a3b", 30.5, 3.3),
        ("mixtral-8x7b", 46.7, 12.9),
        ("gpt-oss-20b", 20.9, 3.6),
    ):
        made = plan(name, flops=1e15, tokens=1e6, length=100)
        assert made.parameters / 1e9 == pytest.approx(billions, abs=0.06)
        outside = made.parameters - made.layer_parameters
        # gpt-oss counts its output embedding alone.
        assert (made.active_parameters + outside / (1 + (name == "gpt-oss-20b"))) / 1e9 == pytest.approx(
            active, abs=0.06
        )
        assert made.time is not None
        weights = 4 * made.active_parameters * 1e6
        assert weights < made.time["operations"] * (1 - made.time["attention_share"]) < 1.05 * weights


def test_experts_in_a_list_are_counted_alike() -> None:
    fused = families.build("mixtral")
    listed = as_list(fused)
    shapes = []
    for model in (fused, listed):
        layers = find_layers(model)[1]
        shapes.append(widths_of(model, layers, mixtures_of(model, layers)))
    assert shapes[0] == shapes[1]
    listed.config.num_experts_per_tok = 9
    with pytest.raises(CulnigError, match="num_experts_per_tok"):
        widths_of(listed, layers, mixtures_of(listed, layers))


def test_what_experts_in_a_list_keep_is_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config_file(tmp_path, "mixtral")
    expected = plan(source)
    auto = transformers.AutoModelForCausalLM
    build = auto.from_config
    monkeypatch.setattr(auto, "from_config", lambda *args, **options: put_in_lists(build(*args, **options)))
    made = plan(source, memory=10**9)
    assert (made.neurons, made.mixture, made.parameters) == (expected.neurons, expected.mixture, expected.parameters)
    kept = made.activations
    assert (kept.fused, kept.fused_cpu, kept.taps, kept.recomputed) == (None, None, None, None)
    assert made.fit is not None and made.fit["in_memory"] is None and made.fit["stream"] is None
    text = CliRunner().invoke(app, ["plan", source, "--memory", "1GB"]).output
    assert text.count("not known") == 4


def test_a_weight_more_is_not_left_out_silently() -> None:
    for where in ("mlp", "self_attn"):
        model = families.build("qwen2_moe")
        model.model.layers[1].get_submodule(where).extra = torch.nn.Linear(32, 32)
        layers = find_layers(model)[1]
        with pytest.raises(CulnigError, match="cannot be told"):
            widths_of(model, layers, mixtures_of(model, layers))


def test_experts_that_attribution_does_not_know_are_refused(tmp_path: Path) -> None:
    families.REFUSED["llama4_every_token_at_every_expert"]().save_pretrained(tmp_path)
    with pytest.raises(CulnigError, match="feed_forward.experts .*no form that attribution knows"):
        plan(str(tmp_path))


def test_the_command_says_what_a_token_passes() -> None:
    text = CliRunner().invoke(app, ["plan", "mixtral-8x7b", "--memory", "80GB"]).output
    assert "8 experts of 14,336 in each of 32 layers; a token passes 2 of them" in text
    assert "114,688 a layer" in text
    assert "needs --stream" in text
