"""Weight norms, activation counts, brute force and integrated gradients of routed experts, each against plain loops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import families
import moe_oracle
import numpy as np
import pytest
import torch
from listed_mixture import as_list
from moe_checks import QUESTIONS, TOKENIZER, samples_of, sites_of, worst
from transformers import AutoModelForCausalLM

import culnig_fast as cf
from culnig_fast.baselines.ablation import ablate
from culnig_fast.baselines.activations import ActivationTable
from culnig_fast.baselines.path import integrated_gradients
from culnig_fast.baselines.routed_path import RoutedGradient, RoutedPath

THREE = ["mixtral", "qwen3_moe", "gpt_oss"]


@pytest.mark.parametrize("family", families.MIXTURES)
def test_weight_norms_are_those_of_each_experts_rows(family: str) -> None:
    model = families.build(family)
    table = cf.weight_norms(model, sites_of(model))
    for index, layer in enumerate(model.model.layers):
        held = layer.mlp.experts
        both, down = held.gate_up_proj.detach().double().numpy(), held.down_proj.detach().double().numpy()
        if family == "gpt_oss":  # [experts, inputs, gate and up interleaved]
            both, down = both.transpose(0, 2, 1), down.transpose(0, 2, 1)
            gate, up = both[:, ::2], both[:, 1::2]
        else:
            gate, up = np.split(both, 2, axis=1)
        for name, rows in zip(moe_oracle.EXPERTS, (gate, up, down.transpose(0, 2, 1)), strict=True):
            found = table.totals[0, table.layout.slice(name, index)]
            np.testing.assert_allclose(found, np.sqrt((rows**2).sum(2)).ravel(), rtol=1e-12)
    if family == "mixtral":
        assert np.array_equal(cf.weight_norms(as_list(model), sites_of(model)).totals, table.totals)


def counted(model: Any, questions: Any = QUESTIONS, **options: Any) -> ActivationTable:
    options = {"sites": sites_of(model), "batch_tokens": 20, "progress": False, **options}
    return cf.count_activations(model, TOKENIZER, questions, **options)


def plain_counts(model: Any, sites: list[str]) -> dict[str, np.ndarray]:
    """One sample at a time; an expert's rows are the tokens that it was given."""
    model64 = copy.deepcopy(model).double().requires_grad_(True)
    sums: dict[str, list[Any]] = {name: [0, 0] for name in ("positive", "means", "magnitudes", "visits")}
    for tokens, _, group in samples_of(QUESTIONS):
        with moe_oracle.written_out(model64) as kept:
            model64(input_ids=torch.tensor([tokens]))
        parts: dict[str, list[Any]] = {name: [] for name in sums}
        for layer, here in zip(model64.model.layers, kept, strict=True):
            for name in (n for n in (*moe_oracle.ATTENTION, *moe_oracle.SHARED, *moe_oracle.EXPERTS) if n in sites):
                routed = name in moe_oracle.EXPERTS
                for expert in range(len(layer.mlp.experts.down_proj)) if routed else [-1]:
                    if routed:
                        width = next(t.numel() for (n, _, _), t in here.items() if n == name)
                        rows = [t.detach().numpy() for (n, e, _), t in here.items() if (n, e) == (name, expert)]
                        parts["visits"].append(len(rows))
                    else:
                        rows = list(here[name, -1, -1].detach().view(len(tokens), -1).numpy())
                        width = len(rows[0])
                    act = np.array(rows).reshape(-1, width)
                    parts["positive"].append((act > 0).sum(0))
                    parts["means"].append(act.mean(0) if len(act) else np.zeros(width))
                    parts["magnitudes"].append(np.abs(act).mean(0) if len(act) else np.zeros(width))
        for name, found in parts.items():
            sums[name][group] = sums[name][group] + (np.array(found) if name == "visits" else np.concatenate(found))
    return {name: np.stack(rows) for name, rows in sums.items()}


@pytest.mark.parametrize("family", families.MIXTURES)
def test_activations_are_counted_over_the_tokens_that_reached_an_expert(family: str) -> None:
    model = families.build(family, torch.float64)
    table, want = counted(model), plain_counts(model, sites_of(model))
    for name in ("positive", "visits"):
        assert np.array_equal(getattr(table, name), want[name]), name
    for name in ("means", "magnitudes"):
        np.testing.assert_allclose(getattr(table, name), want[name], atol=1e-6 * np.abs(want[name]).max())
    assert table.visits is not None and (table.visits < table.tokens[:, None]).any()
    site = next(s for s in table.layout.sites if s.module_name == moe_oracle.EXPERTS[0])
    where, width = table.layout.slice(site.module_name, 0), site.width // site.experts
    share = table.probability()[:, where].reshape(2, site.experts, width)
    by_hand = table.positive[:, where].reshape(share.shape) / np.maximum(table.visits[:, : site.experts, None], 1)
    assert np.array_equal(share, by_hand) and share.max() <= 1
    dense = table.layout.slice("self_attn.q_proj", 1)
    assert np.array_equal(table.probability()[:, dense], table.positive[:, dense] / table.tokens[:, None])
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())


def test_experts_in_a_list_are_counted_as_fused_ones() -> None:
    fused = families.build("mixtral", torch.float64)
    table, other = counted(fused), counted(as_list(fused))
    for name in ("positive", "visits"):
        assert np.array_equal(getattr(other, name), getattr(table, name)), name
    np.testing.assert_allclose(other.means, table.means, rtol=1e-9, atol=1e-12)


def test_an_expert_that_nothing_reached_is_active_at_no_token() -> None:
    one = counted(families.build("qwen3_moe"), QUESTIONS[:1])
    assert one.visits is not None and (one.visits == 0).any()
    share = one.probability()
    assert np.isfinite(share).all()
    experts, _ = one.layout.expert_of(np.arange(one.layout.size))
    _, layers, _ = one.layout.locate(np.arange(one.layout.size))
    visits = one.visits.reshape(2, 3, -1)  # layers, gate | up | act, experts
    assert (visits == visits[:, :1]).all()
    absent = (experts >= 0) & (visits[layers, 0, experts] == 0)
    assert not share[0, absent].any()


def test_counters_of_experts_come_back_from_files_and_merge(tmp_path: Path) -> None:
    table = counted(families.build("qwen3_moe"))
    assert table.visits is not None
    table.save(tmp_path / "a.safetensors")
    back = ActivationTable.load(tmp_path / "a.safetensors")
    assert np.array_equal(back.visits, table.visits)
    assert np.array_equal(back.probability(), table.probability())
    merged = table.merged({"all": table.groups})
    assert np.array_equal(merged.visits, table.visits.sum(0, keepdims=True))
    chosen = cf.select_by_entropy(table, share=0.02, percentile=80)
    assert set(chosen.neurons.module_names) == {"mlp.experts.gate_proj"}
    arrays = {name: getattr(table, name) for name in ("positive", "means", "magnitudes", "tokens", "counts")}
    for visits in (None, table.visits[:, 1:], table.visits[0]):
        with pytest.raises(cf.CulnigError, match="visits"):
            ActivationTable(**arrays, groups=table.groups, ids=table.ids, layout=table.layout, visits=visits)


def reached_neurons(model: Any, count: int = 12) -> cf.NeuronSet:
    """Neurons of every kind of site, those of experts where some token comes."""
    table = cf.attribute(model, TOKENIZER, QUESTIONS, sites=sites_of(model), progress=False)
    chosen = []
    for site in table.layout.sites:
        where = table.layout.slice(site.module_name, site.layer_idx)
        chosen += (where.start + np.flatnonzero(table.totals[:, where].any(0))[[0, -1]]).tolist()
    return cf.NeuronSet.from_flat(table.layout, np.random.default_rng(0).permutation(chosen)[:count])


@pytest.mark.parametrize(("family", "listed"), [*((family, False) for family in THREE), ("mixtral", True)])
def test_brute_force_equals_suppressing_one_neuron_at_a_time(family: str, listed: bool) -> None:
    model = families.build(family, torch.float64)
    model, questions = as_list(model) if listed else model, QUESTIONS[:5]
    neurons = reached_neurons(model)
    assert any("experts" in name for name in neurons.module_names)
    found = ablate(model, TOKENIZER, questions, neurons, batch_tokens=90, progress=False)
    plain = cf.evaluate(model, TOKENIZER, questions, progress=False).probability
    row = np.array([found.groups.index(question.group) for question in questions])
    want = np.zeros_like(found.effects)
    for column, neuron in enumerate(neurons):
        one = cf.NeuronSet((neuron.module_name,), [neuron.layer_idx], [neuron.neuron_idx], [0.0])
        with cf.suppress(model, one):
            without = cf.evaluate(model, TOKENIZER, questions, progress=False).probability
        np.add.at(want[:, column], row, plain * (plain - without))
    # Norms and routers round to float32 whatever the model holds.
    tolerance = 2e-6 * (plain**2).sum()
    routed = [i for i, name in enumerate(neurons.module_names) if "experts" in name]
    assert np.abs(want[:, routed]).max() > 100 * tolerance
    np.testing.assert_allclose(found.effects, want, rtol=0, atol=tolerance)
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())


def plain_path(model: Any, name: str, index: int, steps: int, reduction: str) -> np.ndarray:
    """Σ P · IG of one site, one sample, token and expert at a time, P itself differentiated at every midpoint."""
    model64 = copy.deepcopy(model).double().requires_grad_(True)
    experts = len(model64.model.layers[index].mlp.experts.down_proj)
    rows: list[Any] = [0.0, 0.0]
    for tokens, answer, group in samples_of(QUESTIONS):
        values: dict[tuple[int, int], Any] = {}
        ids = torch.tensor([tokens])
        whole = torch.softmax(model64(input_ids=ids).logits[0, -1], 0)[answer].item()
        for step in range(steps):
            alpha = (step + 0.5) / steps

            def scale(layer: int, part: str, tensor: Any, alpha: float = alpha) -> Any:
                return alpha * tensor if (layer, part) == (index, name) else tensor

            with moe_oracle.written_out(model64, scale) as kept:
                torch.softmax(model64(input_ids=ids).logits[0, -1], 0)[answer].backward()
            for (part, expert, token), tensor in kept[index].items():
                if part == name:
                    share = (tensor * tensor.grad).detach().numpy() / alpha / steps
                    values[expert, token] = values.get((expert, token), 0.0) + share
        width = len(next(iter(values.values())))
        found = [[v for (e, _), v in values.items() if e == expert] for expert in range(experts)]
        parts = [moe_oracle.reduced(one, reduction) if one else np.zeros(width) for one in found]
        rows[group] = rows[group] + whole * np.concatenate(parts)
    return np.stack(rows)


@pytest.mark.parametrize(
    ("family", "reduction"), [("mixtral", "max"), ("qwen3_moe", "sum"), ("gpt_oss", "sum"), ("gpt_oss", "max")]
)
def test_the_path_of_a_site_equals_a_plain_loop(family: str, reduction: str) -> None:
    model = families.build(family, torch.float64)
    name = {"mixtral": moe_oracle.EXPERTS[0], "qwen3_moe": moe_oracle.EXPERTS[1], "gpt_oss": moe_oracle.EXPERTS[2]}
    options = {"steps": 3, "sites": [name[family]], "reduction": reduction, "progress": False}
    table = integrated_gradients(model, TOKENIZER, QUESTIONS, batch_tokens=30, **options)
    for layer in table.layout.layers:
        found, want = (
            table.totals[:, table.layout.slice(name[family], layer)],
            plain_path(model, name[family], layer, 3, reduction),
        )
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-6 * np.abs(want).max())
    if family == "mixtral":
        listed = integrated_gradients(as_list(model), TOKENIZER, QUESTIONS, batch_tokens=30, **options)
        assert worst(listed.totals, table.totals, table.layout) <= 1e-10


def shortfall(model: Any, steps: int) -> dict[tuple[str, int], float]:
    """For each site of experts, what its shares miss of P(full) − P(site zeroed), in parts of the largest such drop."""
    questions = QUESTIONS[:4]
    asked = [cf.Question(q.id, q.id, q.prompt, q.answer) for q in questions]
    whole = cf.evaluate(model, TOKENIZER, asked, progress=False).probability
    options = {"steps": steps, "weighted": False, "sites": moe_oracle.EXPERTS, "progress": False}
    table = integrated_gradients(model, TOKENIZER, asked, **options)
    missed, largest = {}, 0.0
    for site in table.layout.sites:
        where = table.layout.slice(site.module_name, site.layer_idx)
        with cf.suppress(model, cf.NeuronSet.from_flat(table.layout, np.arange(where.start, where.stop))):
            drop = whole - cf.evaluate(model, TOKENIZER, asked, progress=False).probability
        missed[site.module_name, site.layer_idx] = np.abs(table.totals[:, where].sum(1) - drop).max()
        largest = max(largest, np.abs(drop).max())
    return {key: value / largest for key, value in missed.items()}


def test_the_path_is_complete_where_later_routing_cannot_change() -> None:
    """The last layer has no router after it; with every expert chosen no router has a choice."""
    model = families.build("gpt_oss", torch.float64)
    last = {key: value for key, value in shortfall(model, 128).items() if key[1] == 1}
    assert len(last) == 3 and max(last.values()) < 1e-3
    config = families.MIXTURES["mixtral"]()
    config.num_experts_per_tok = config.num_local_experts
    torch.manual_seed(0)
    everywhere = AutoModelForCausalLM.from_config(config).double().eval()
    everywhere.set_experts_implementation("eager")
    found = shortfall(everywhere, 128)
    assert len(found) == 6 and max(found.values()) < 1e-3


def test_a_copy_that_was_routed_otherwise_is_refused() -> None:
    path = RoutedPath([2], 2, 3)
    tokens, values = torch.tensor([0, 1, 2, 3]), torch.ones(4, 5)
    path.add(RoutedGradient(values, values, tokens, torch.tensor([0, 2, 0, 2])), torch.ones(2))
    assert path.reduced("sum", 2).tolist() == [[1.0] * 5 + [0.0] * 5 + [1.0] * 5]
    with pytest.raises(cf.CulnigError, match="other experts"):
        path.add(RoutedGradient(values, values, tokens, torch.tensor([0, 2, 0, 1])), torch.ones(2))
