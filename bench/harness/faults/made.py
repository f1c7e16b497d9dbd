"""Small whole tables and sets, for readers to start from."""

from __future__ import annotations

from typing import Any

import numpy as np

MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj")


def layout() -> Any:
    """Of two layers."""
    from culnig_fast.neurons import NeuronLayout, NeuronSite

    return NeuronLayout([NeuronSite(name, layer, 6) for layer in range(2) for name in MODULES])


def score_table(seed: int = 0) -> Any:
    """A small score table of three countries."""
    from culnig_fast.scores import ScoreTable

    totals = np.random.default_rng(seed).standard_normal((3, layout().size))
    counts, probability = np.array([2, 2, 2]), np.array([0.5, 1.0, 0.25])
    ids = tuple(f"q{i}" for i in range(6))
    return ScoreTable(totals, ("China", "Spain", "UK"), counts, probability, ids, layout(), {"task": "blend"})


def activation_table() -> Any:
    """Small counters of three countries."""
    from culnig_fast.baselines.activations import ActivationTable

    values = np.abs(np.random.default_rng(0).standard_normal((3, layout().size)))
    positive = (10 * values).astype(np.int64)
    tokens, counts = np.array([40, 50, 60]), np.array([2, 2, 2])
    return ActivationTable(positive, values, values, tokens, counts, ("China", "Spain", "UK"), ("q",), layout())


def expert_activation_table() -> Any:
    """Small counters of two countries, with routed experts."""
    from culnig_fast.baselines.activations import ActivationTable
    from culnig_fast.neurons import NeuronLayout, NeuronSite

    experts = NeuronLayout(
        [NeuronSite("self_attn.q_proj", 0, 4), *(NeuronSite("mlp.experts.gate_proj", i, 6, 3) for i in range(2))]
    )
    values = np.abs(np.random.default_rng(0).standard_normal((2, experts.size)))
    positive, visits = (4 * values).astype(np.int64), np.full((2, 6), 20)
    tokens, counts = np.array([40, 50]), np.array([2, 2])
    return ActivationTable(positive, values, values, tokens, counts, ("China", "Spain"), ("q",), experts, visits=visits)


def instance_table() -> Any:
    """Three samples."""
    from culnig_fast.instances import InstanceTable

    neurons = neuron_set()
    scores = np.linspace(-1, 1, 3 * len(neurons)).reshape(3, -1)
    return InstanceTable(neurons, scores, np.ones(3), ("a", "b", "c"), ("x", "x", "y"), {"reduction": "max"})


def neuron_set() -> Any:
    """Three neurons."""
    from culnig_fast.neuron_sets import NeuronSet

    return NeuronSet.from_flat(layout(), [3, 20, 40], [0.5, 0.25, 0.125], {"method": "general", "share": 0.01})


def module_scores() -> Any:
    """A small table of two groups at sites of every kind."""
    from culnig_fast.modules.scores import ModuleScores
    from culnig_fast.modules.sites import ModuleLayout, ModuleSite

    sites = [ModuleSite("conv", dim=1), ModuleSite("fc", slice(-3, None), "input"), ModuleSite("heads", dim=None)]
    totals = np.random.default_rng(0).standard_normal((2, 9))
    made = ModuleLayout(sites, [2, 5, 4])
    return ModuleScores(totals, made, ("a", "b"), np.array([2.0, 1.5]), "log P", "max", {"task": "x"})
