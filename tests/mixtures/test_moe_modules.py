"""Modules of mixtures: which weights are one, how dense they are, and training them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from listed_mixture import as_list
from moe_checks import QUESTIONS, TOKENIZER, sites_of

import culnig_fast as cf
from culnig_fast.finetuning.data import training_set
from culnig_fast.finetuning.options import TrainingOptions
from culnig_fast.finetuning.training import train_modules

ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}
SHARED = {f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}


def own_parameters(model: Any, names: Any) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


@pytest.mark.parametrize("family", [*families.MIXTURES, *families.PART_MIXTURES])
def test_a_mixture_is_one_module_without_its_router(family: str) -> None:
    model = families.build(family)
    found = cf.find_modules(model)
    assert [(m.kind, m.layer_idx) for m in found] == [(k, i) for i in range(2) for k in ("attention", "mlp")]
    for module in found:
        prefix = f"model.layers.{module.layer_idx}."
        parts = {name.removeprefix(prefix) for name in module.names}
        if module.kind == "attention":
            assert parts == ATTENTION
        elif hasattr(model.get_submodule(f"{prefix}mlp"), "experts"):
            assert parts == {"mlp.experts"} | (SHARED if family == "qwen2_moe" else set())
        else:
            assert parts == {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
        assert module.parameters == own_parameters(model, module.names)


def test_experts_in_a_list_are_named_one_by_one() -> None:
    model = as_list(families.build("mixtral"))
    found = {(m.kind, m.layer_idx): m for m in cf.find_modules(model)}
    names = {f"model.layers.1.mlp.experts.{expert}.w{part}" for expert in range(4) for part in (1, 2, 3)}
    assert set(found["mlp", 1].names) == names
    assert len(found["mlp", 1].names) == 12
    assert {name.rpartition("layers.0.")[2] for name in found["attention", 0].names} == ATTENTION
    assert found["mlp", 1].parameters == 4 * 3 * 32 * 48
    fused = {(m.kind, m.layer_idx): m.parameters for m in cf.find_modules(families.build("mixtral"))}
    assert {key: module.parameters for key, module in found.items()} == fused


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_densities_count_the_gates_of_all_experts(family: str) -> None:
    model = families.build(family)
    layout = cf.discover(model).layout(sites_of(model))
    width = layout.slice("mlp.experts.gate_proj", 0).stop - layout.slice("mlp.experts.gate_proj", 0).start
    flat = [
        layout.flat("mlp.experts.gate_proj", 1, 3, expert=2),
        layout.flat("mlp.experts.gate_proj", 1, 3, expert=0),
        layout.flat("self_attn.k_proj", 0, 1),
    ]
    chosen = cf.NeuronSet.from_flat(layout, flat, np.zeros(3))
    modules = cf.find_modules(model)
    table = cf.rank_modules(chosen, layout, modules)
    rows = {(kind, layer): rest for kind, layer, *rest in table.itertuples(index=False, name=None)}
    parameters = {(m.kind, m.layer_idx): m.parameters for m in modules}
    assert rows["mlp", 1][:4] == [2, width, 2 / width, parameters["mlp", 1]]
    assert rows["attention", 0][0] == 1
    total = sum(p.numel() for p in model.parameters())
    share = parameters["mlp", 1] / total
    picked = cf.pick_modules(model, chosen, "top", 1.01 * share + parameters["attention", 0] / total)
    assert {(m.kind, m.layer_idx) for m in picked.modules} == {("mlp", 1), ("attention", 0)}


OPTIONS: dict[str, Any] = {"rate": 1e-2, "steps": 2, "batch": 4, "accumulate": 1, "save_steps": 0}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_only_the_chosen_experts_change(family: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra [train] is not installed")
    model = families.build(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = next(m for m in cf.find_modules(model) if (m.kind, m.layer_idx) == ("mlp", 1))
    data, options = training_set(TOKENIZER, QUESTIONS), TrainingOptions(**OPTIONS)
    done = train_modules(model, data, module.names, options, seed=0, folder=tmp_path, progress=False)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    held = "model.layers.1.mlp.experts."
    biases = {f"{held}gate_up_proj_bias", f"{held}down_proj_bias"} if family == "gpt_oss" else set()
    assert changed == {f"{held}gate_up_proj", f"{held}down_proj"} | biases
    assert done.trained == module.parameters


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe"])
def test_low_rank_updates_of_experts_are_merged_into_them_alone(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra [train] is not installed")
    if "target_parameters" not in peft.LoraConfig.__dataclass_fields__:
        pytest.skip("this peft adapts no parameters; that it is refused is tested below")
    model = families.build(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = {(m.kind, m.layer_idx): m for m in cf.find_modules(model)}
    names = (*modules["mlp", 1].names, *modules["attention", 0].names)
    options = TrainingOptions(**OPTIONS, lora=2)
    data = training_set(TOKENIZER, QUESTIONS)
    done = train_modules(model, data, names, options, seed=0, folder=tmp_path, progress=False)
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    held = "model.layers.1.mlp.experts"
    plain = {f"{name}.weight" for name in names if name != held}
    assert changed == {f"{held}.gate_up_proj", f"{held}.down_proj"} | plain
    # An update has its rank for each expert by itself.
    old = before[f"{held}.down_proj"].double()
    sizes = torch.linalg.svdvals(after[f"{held}.down_proj"].double() - old)  # [experts, least side]
    rounding = 2**-24 * float(old.abs().max()) * float(old[0].numel()) ** 0.5
    assert float(sizes[:, 2].max()) <= rounding < float(sizes[:, 1].max())
    assert 0 < done.trained < own_parameters(model, names)
    assert not hasattr(model, "peft_config")


def test_a_peft_that_adapts_no_parameters_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft", reason="the extra [train] is not installed")
    fields = {k: v for k, v in peft.LoraConfig.__dataclass_fields__.items() if k != "target_parameters"}
    monkeypatch.setattr(peft.LoraConfig, "__dataclass_fields__", fields)
    model = families.build("mixtral")
    options = TrainingOptions(**OPTIONS, lora=2)
    data = training_set(TOKENIZER, QUESTIONS)
    module = next(m for m in cf.find_modules(model) if m.kind == "mlp")
    with pytest.raises(cf.CulnigError, match=r"layers\.0\.mlp\.experts\.gate_up_proj.*peft 0\.17"):
        train_modules(model, data, module.names, options, seed=0, folder=tmp_path, progress=False)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_listed_experts_are_trained_alone(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra [train] is not installed")
    listed = as_list(families.build("mixtral"))
    before = {name: value.clone() for name, value in listed.state_dict().items()}
    module = next(m for m in cf.find_modules(listed) if m.kind == "mlp")
    data, options = training_set(TOKENIZER, QUESTIONS), TrainingOptions(**OPTIONS)
    train_modules(listed, data, module.names, options, seed=0, folder=tmp_path, progress=False)
    changed = {name for name, value in listed.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in module.names}
