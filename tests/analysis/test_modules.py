"""Densities against counts by hand, the rule of choice, and names that PEFT takes for these modules and no others."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import yaml
from command_line import invoke

from culnig_fast.analysis.found_modules import Module, find_modules
from culnig_fast.analysis.modules import choose_modules, pick_modules, rank_modules, to_yaml
from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronLayout, NeuronSite

WIDTHS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2, "self_attn.v_proj": 2, "mlp.gate_proj": 16, "mlp.up_proj": 16}
LAYOUT = NeuronLayout([NeuronSite(name, layer, width) for layer in range(3) for name, width in WIDTHS.items()])
MODULES = tuple(
    Module(kind, layer, (f"layers.{layer}.{kind}",), size)
    for layer in range(3)
    for kind, size in (("attention", 100), ("mlp", 300))
)
"""1,200 parameters in modules; the tests say that the model has 2,000."""


def neurons(*rows: tuple[str, int, int]) -> NeuronSet:
    names, layers, columns = zip(*rows, strict=True)
    return NeuronSet(names, np.array(layers), np.array(columns), np.zeros(len(rows)))


SET = neurons(
    ("mlp.gate_proj", 1, 3), ("mlp.gate_proj", 1, 0), ("mlp.gate_proj", 1, 5), ("mlp.gate_proj", 1, 6),
    ("self_attn.k_proj", 2, 1), ("self_attn.q_proj", 2, 0), ("self_attn.v_proj", 0, 0),
)  # fmt: skip


def keys(choice: Any) -> list[tuple[str, int]]:
    return [(module.kind, module.layer_idx) for module in choice.modules]


def test_densities_are_those_counted_by_hand() -> None:
    table = rank_modules(SET, LAYOUT, MODULES)
    rows = [
        # mlp 1: 4 of 16 gate columns; attention 2: 2 of 4 + 2 + 2. Equal ones by layer, attention before MLP.
        ("mlp", 1, 4, 16, 4 / 16, 300, 1),
        ("attention", 2, 2, 8, 2 / 8, 100, 2),
        ("attention", 0, 1, 8, 1 / 8, 100, 3),
        ("mlp", 0, 0, 16, 0.0, 300, 4),
        ("attention", 1, 0, 8, 0.0, 100, 5),
        ("mlp", 2, 0, 16, 0.0, 300, 6),
    ]
    assert list(table.columns) == ["kind", "layer_idx", "neurons", "size", "density", "parameters", "rank"]
    assert list(table.itertuples(index=False, name=None)) == rows


def test_a_set_with_up_neurons_counts_up_below_too() -> None:
    table = rank_modules(neurons(("mlp.up_proj", 0, 1), ("mlp.gate_proj", 0, 1)), LAYOUT)
    assert table.loc[0, ["kind", "neurons", "size"]].tolist() == ["mlp", 2, 32]
    assert table["parameters"].isna().all()


def test_density_per_parameters_orders_otherwise() -> None:
    table = rank_modules(SET, LAYOUT, MODULES, per="parameters")
    assert table["density"].tolist() == [2 / 100, 4 / 300, 1 / 100, 0.0, 0.0, 0.0]
    assert table["kind"].tolist()[:2] == ["attention", "mlp"]


def test_modules_are_taken_until_one_does_not_fit() -> None:
    table = rank_modules(SET, LAYOUT, MODULES)
    assert keys(choose_modules(table, MODULES, "top", 0.2, 2000)) == [("mlp", 1), ("attention", 2)]
    assert keys(choose_modules(table, MODULES, "top", 0.1999, 2000)) == [("mlp", 1)]
    # 300 + 100 + 100, then an MLP of 300 would make 800; the attention block of layer 1 behind it would fit.
    top = choose_modules(table, MODULES, "top", 0.35, 2000)
    assert keys(top) == [("mlp", 1), ("attention", 2), ("attention", 0)]
    assert (top.parameters, top.total) == (500, 2000)
    assert top.names == ["layers.1.mlp", "layers.2.attention", "layers.0.attention"]
    assert top.table["chosen"].tolist() == [True, True, True, False, False, False]


def test_bottom_takes_the_least_dense_in_layer_order() -> None:
    table = rank_modules(SET, LAYOUT, MODULES)
    assert keys(choose_modules(table, MODULES, "bottom", 0.2, 2000)) == [("mlp", 0), ("attention", 1)]
    everything = choose_modules(table, MODULES, "all", 0.01, 2000)
    assert len(everything.modules) == 6 and everything.parameters == 1200 and everything.table["chosen"].all()


@pytest.mark.parametrize(
    ("which", "share", "message"),
    [
        ("top", 0.1, "mlp of layer 1, is 15.0 % of the parameters; choose at least 0.151"),
        ("top", 0.0, "choose it above 0"),
        ("top", 1.5, "at most 1"),
        ("middle", 0.5, "'middle' is unknown; choose from top, bottom, all"),
    ],
)
def test_refused_choices(which: Any, share: float, message: str) -> None:
    with pytest.raises(CulnigError, match=message):
        choose_modules(rank_modules(SET, LAYOUT, MODULES), MODULES, which, share, 2000)


def test_refused_sets() -> None:
    with pytest.raises(CulnigError, match="empty"):
        rank_modules(NeuronSet.empty(), LAYOUT)
    with pytest.raises(CulnigError, match="needs the model"):
        rank_modules(SET, LAYOUT, per="parameters")
    with pytest.raises(CulnigError, match="unknown; choose from neurons, parameters"):
        rank_modules(SET, LAYOUT, per="layers")
    with pytest.raises(CulnigError, match="would leave out"):
        rank_modules(SET, LAYOUT, scored=["mlp.gate_proj"])
    with pytest.raises(CulnigError, match="layer 7"):
        rank_modules(neurons(("mlp.gate_proj", 7, 0)), LAYOUT)


HIDDEN, INNER, QUERIES, KEYS = 32, 48, 32, 16  # of `families`, where a head is hidden ÷ heads wide

NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "llama": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
              ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), "model.layers."),
    "phi3": (("self_attn.qkv_proj", "self_attn.o_proj"), ("mlp.gate_up_proj", "mlp.down_proj"), "model.layers."),
    "gemma3_multimodal": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
                          ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ""),
    "gpt2_conv1d_fused": (("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj"), "transformer.h."),
}  # fmt: skip


@pytest.mark.parametrize("family", NAMES)
def test_projections_of_a_module_have_their_whole_names(family: str) -> None:
    model = families.build(family)
    attention, mlp, prefix = NAMES[family]
    found = find_modules(model)
    # A multimodal wrapper's prefix differs between versions of transformers; the decoder says it.
    decoder = {id(module): path for path, module in model.named_modules()}[id(model.get_decoder())]
    prefix = prefix or f"{decoder}.layers."
    assert [(module.kind, module.layer_idx) for module in found] == [
        (kind, layer) for layer in range(2) for kind in ("attention", "mlp")
    ]
    for module in found:
        parts = attention if module.kind == "attention" else mlp
        assert set(module.names) == {f"{prefix}{module.layer_idx}.{part}" for part in parts}
        assert len(set(module.names)) == len(module.names)


def test_parameters_are_those_of_the_configuration() -> None:
    sizes = {(m.kind, m.layer_idx): m.parameters for m in find_modules(families.build("llama"))}
    attention, mlp = 2 * HIDDEN * QUERIES + 2 * HIDDEN * KEYS, 3 * HIDDEN * INNER
    assert sizes == {(kind, i): n for i in range(2) for kind, n in (("attention", attention), ("mlp", mlp))}
    biased = {m.kind: m.parameters for m in find_modules(families.build("gpt2_conv1d_fused"))}
    assert biased == {"attention": (HIDDEN + 1) * 3 * HIDDEN + (HIDDEN + 1) * HIDDEN,
                      "mlp": (HIDDEN + 1) * INNER + (INNER + 1) * HIDDEN}  # fmt: skip


@pytest.mark.parametrize("family", NAMES)
def test_peft_adapts_exactly_the_modules_named(family: str) -> None:
    peft = pytest.importorskip("peft", reason="the extra [train] is not installed")
    model = families.build(family)
    chosen = neurons(("mlp.up_proj" if "gpt2" in family else "mlp.gate_proj", 1, 3), ("self_attn.k_proj", 0, 1))
    for which, share in (("top", 0.4), ("bottom", 0.4), ("all", 1.0)):
        choice = pick_modules(families.build(family), chosen, which, share)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=choice.names))
        layers = {name for name, module in adapted.base_model.model.named_modules() if hasattr(module, "lora_A")}
        assert layers == set(choice.names)
        model = adapted.unload()


def test_short_names_would_match_the_vision_tower_too() -> None:
    """Why the names are whole: in a multimodal model the usual suffix names a layer twice."""
    model = families.build("gemma3_multimodal")
    suffix = "layers.0.self_attn.q_proj"
    (whole,) = [name for name in find_modules(model)[0].names if name.endswith(suffix)]
    assert [name for name, _ in model.named_modules() if name.endswith(suffix)] != [whole]
    assert [name for name, _ in model.named_modules() if name.endswith(whole)] == [whole]


def test_yaml_is_the_published_program_s_form() -> None:
    chosen = neurons(("mlp.gate_proj", 1, 3), ("mlp.gate_proj", 1, 4))
    choice = pick_modules(families.build("llama"), chosen, "top", 0.4)
    text = to_yaml(choice, "someone/model: a name")
    value = yaml.safe_load(text)
    assert value == {
        "model": {"model_name_or_path": "someone/model: a name"},
        "train": {"target_modules": choice.names},
    }
    assert "    - model.layers.1.mlp.gate_proj  # 2 neurons in this mlp\n" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wordlevel import make_tokenizer

    path = tmp_path_factory.mktemp("modules")
    families.build("llama").save_pretrained(path / "model")
    make_tokenizer().save_pretrained(path / "model")
    neurons(("mlp.gate_proj", 1, 3), ("self_attn.q_proj", 0, 0)).save(path / "set.json")
    return path


def command(*arguments: object) -> int:
    return invoke("modules", *arguments)


def test_the_command_writes_both_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--out", folder / "m.csv", "--yaml", folder / "m.yaml")
    assert command(folder / "model", "--neurons", folder / "set.json", "--share", 0.3, *files, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    # 1 of 48 gate neurons against 1 of 32 + 16 + 16 of attention.
    assert printed["target_modules"] == [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert yaml.safe_load((folder / "m.yaml").read_text())["train"]["target_modules"] == printed["target_modules"]
    with (folder / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows if row["chosen"] == "True"] == ["1"]
    assert [float(row["density"]) for row in rows] == [row["density"] for row in printed["modules"]]
    assert command(folder / "model", "--neurons", folder / "set.json", "--share", 0.3, *files) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_score_table_gives_densities(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from culnig_fast.scores import ScoreTable

    size = LAYOUT.size
    table = ScoreTable(np.zeros((1, size)), ("g",), np.ones(1), np.ones(1), ("q",), LAYOUT)
    table.save(folder / "scores.safetensors")
    assert command(folder / "scores.safetensors", "--neurons", folder / "set.json", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["modules"]
    assert [(row["kind"], row["layer_idx"], row["density"]) for row in rows[:2]] == [
        ("attention", 0, 1 / 8), ("mlp", 1, 1 / 16),
    ]  # fmt: skip
    assert {row["parameters"] for row in rows} == {None}
