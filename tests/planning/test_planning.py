"""`plan`: its counts against models that exist, its bytes against what autograd keeps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import LISTED, UNLISTED, build
from kept_bytes import kept_per_token
from typer.testing import CliRunner

from culnig_fast.architecture import discover
from culnig_fast.cli import app
from culnig_fast.errors import CulnigError
from culnig_fast.pipeline.reading import presets
from culnig_fast.planning.fake_model import read_config
from culnig_fast.planning.plan import plan
from culnig_fast.planning.shapes import OF_PRESET, SHAPES

PLANNED = [
    *LISTED,
    "olmo2",
    "granite",
    "smollm3",
    "starcoder2_plain",
    "nemotron_plain",
    "opt_plain",
    "gpt2_conv1d_fused",
]


def config_file(folder: Path, name: str) -> str:
    a_config(name).save_pretrained(folder)
    return str(folder)


def a_config(name: str) -> Any:
    """With a window that no sample here fills: within it no mask is kept."""
    config = {**LISTED, **UNLISTED}[name]()
    if getattr(config, "sliding_window", None):
        config.sliding_window = 256
    return config


def a_model(name: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(a_config(name)).eval()


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PLANNED)
def test_counts_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    made = plan(config_file(tmp_path, name), groups=3, dtype="float32")
    model = build(name)
    if made.parameters != count(model):
        # Its tower for images is built of fake tensors or not, by torch's version; without, its decoder is planned for.
        assert name == "gemma3_multimodal"
        model = transformers.AutoModelForCausalLM.from_config(model.config.get_text_config())
    architecture = discover(model)
    expected = {s["module_name"]: s["total"] for s in architecture.describe()["sites"] if s["module_name"] != "mlp.act"}
    assert made.neurons == expected
    assert made.scored == architecture.layout().size
    assert made.parameters == count(model)
    assert made.weights == {
        "float32": 4 * made.parameters,
        "bfloat16": 2 * made.parameters,
        "float16": 2 * made.parameters,
    }
    assert made.totals == 3 * made.scored * 8
    assert made.layer_weights == max(4 * sum(p.numel() for p in layer.parameters()) for layer in architecture.layers)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "nemotron_plain", "gpt2_conv1d_fused"])
def test_taps_keep_what_is_planned(name: str, tmp_path: Path) -> None:
    made = plan(config_file(tmp_path, name), dtype="float32")
    measured, fused = kept_per_token(a_model(name), "taps")
    assert fused == 0
    assert made.activations.taps == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3"])
def test_fused_layers_keep_what_is_planned(name: str, tmp_path: Path) -> None:
    made = plan(config_file(tmp_path, name), dtype="float32")
    model = a_model(name)
    measured, fused = kept_per_token(model, "auto")
    assert fused == made.layers == 2
    # The last layer holds rotated keys itself where heads share them; autograd keeps the copies, and shows only those.
    config = model.config
    held = 4 * made.neurons["self_attn.k_proj"] // 2 if config.num_key_value_heads < config.num_attention_heads else 0
    assert made.activations.fused_cpu - held == pytest.approx(measured, rel=1e-3)
    assert made.activations.fused < made.activations.fused_cpu
    assert made.activations.fused < (made.activations.taps or 0)


def test_every_preset_has_its_shape_and_the_known_counts() -> None:
    assert set(OF_PRESET) == set(presets()) - {"demo", "paper"}
    assert set(OF_PRESET.values()) <= set(SHAPES)
    # The published models' weights in billions, and the neurons that the paper's thresholds were taken of.
    for name, billions in (("Llama-3.1-8B-Instruct", 8.03), ("Falcon3-10B-Instruct", 10.31)):
        assert plan(name).parameters / 1e9 == pytest.approx(billions, abs=0.006)


def test_what_fits_and_how_long_it_takes() -> None:
    made = plan("llama-3.1-8b", memory=80 * 10**9, flops=400e12, tokens=1e6, length=100, sites=["mlp.gate_proj"])
    assert made.neurons == {"mlp.gate_proj": 32 * 14336}
    assert made.fit is not None
    assert made.time is not None
    counts = made.fit["in_memory"]
    kept = made.activations
    room = 0.9 * 80e9 - 2 * made.parameters - 16 * 32 * 14336 * 8
    assert counts["fused"] == int(room // (kept.fused + kept.working + kept.logits / 100))
    assert counts["recomputed"] > counts["fused"] > counts["taps"] > 0
    weights = 4 * (32 * 218112000 + 4096 * 128256 / 100) * 1e6
    attention = 32 * 12 * 4096 * 50.5 * 1e6
    # The norms' weights count as weights: 8,192 a layer.
    assert made.time["operations"] == pytest.approx(weights + attention, rel=1e-4)
    assert made.time["seconds"] == made.time["operations"] / 400e12
    small = plan("llama-3.1-8b", memory=12 * 10**9)
    assert small.fit is not None
    assert small.fit["in_memory"] is None
    assert small.fit["stream"]["host_per_token"] == 32 * 4096 * 2
    assert small.fit["stream"]["card"] == 2 * small.layer_weights + small.totals < 12e9


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "model_type"),
        ([], "model_type"),
        ({"model_type": "never_heard_of"}, "no configuration that transformers knows"),
        ({"model_type": "llama", "num_hidden_layers": 10**9}, "can be planned for"),
        ({"model_type": "llama", "num_hidden_layers": "many"}, "no configuration|can be planned|layers"),
        ({"model_type": "t5"}, "T5|decoder"),
        ({"model_type": "falcon", "num_hidden_layers": 1, "ffn_hidden_size": 77}, "cannot be told"),
    ],
)
def test_a_config_that_makes_no_decoder_is_refused(value: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value))
    with pytest.raises(CulnigError, match=words):
        plan(str(path))


def test_a_name_that_is_nothing_lists_what_there_is() -> None:
    with pytest.raises(CulnigError, match="gemma-3-27b-it"):
        read_config("nothing")


def test_the_command(tmp_path: Path) -> None:
    run = CliRunner()
    done = run.invoke(app, ["plan", "demo", "--memory", "1GiB", "--flops", "1e12", "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.output)
    assert value["fit"]["memory"] == 2**30
    assert value["scored"] == 5120
    text = run.invoke(app, ["plan", "llama-3.1-8b", "--memory", "12 GB", "--flops", "400e12"]).output
    assert "needs --stream" in text
    assert "min at 4e+14" in text
    for options in (["--memory", "much"], ["--memory", "0GB"], ["--flops", "-1"], ["--dtype", "int8"], ["--site", "x"]):
        done = run.invoke(app, ["plan", "demo", *options])
        assert isinstance(done.exception, CulnigError), options


def test_what_does_not_fit_leaves_no_traceback_on_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of an odd size cannot be rotated; torch itself would log that with its whole stack."""
    config, logged = LISTED["qwen3"](), []
    config.head_dim = 9
    (tmp_path / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    log = logging.getLogger("torch._subclasses.fake_tensor")
    monkeypatch.setattr(log, "handlers", [handler])
    assert plan(str(tmp_path)).activations.taps is None
    assert not logged


def test_layers_may_differ_in_their_heads(tmp_path: Path) -> None:
    """Gemma 4 names a head's width layer by layer, and its configuration refuses to name one for all."""
    if not hasattr(transformers, "Gemma4TextConfig"):
        pytest.skip("this transformers has no Gemma 4")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma4TextConfig(
        **sizes, num_key_value_heads=2, head_dim=8, global_head_dim=16, vocab_size=64, hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention"], vocab_size_per_layer_input=64, num_kv_shared_layers=0,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    made = plan(str(tmp_path), dtype="float32", flops=1e12, tokens=1000, length=9)
    model = transformers.AutoModelForCausalLM.from_config(config)
    expected = {s["module_name"]: s["total"] for s in discover(model).describe()["sites"]}
    assert expected["self_attn.q_proj"] == 4 * (8 + 16)
    assert made.neurons == {name: expected[name] for name in made.neurons}
    assert made.scored == discover(model).layout().size
    assert made.time is not None
    attention = 12.0 * expected["self_attn.q_proj"] * (9 + 1) / 2 * 1000
    assert made.time["attention_share"] * made.time["operations"] == pytest.approx(attention)
