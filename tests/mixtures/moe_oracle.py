"""Scores of a mixture's neurons in float64: one sample, token and expert at a time, by the formulas of each family.

Nothing here shares code with the engine. Each family's experts are written out from their definition, P itself is
differentiated, and a neuron's score is the maximum (or sum) over the tokens that its expert was given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import silu

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SHARED = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.act")
EXPERTS = ("mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.act")

Kept = dict[tuple[str, int, int], torch.Tensor]
"""(module name, expert or −1, token) → activations [columns] in the graph."""


Alter = Callable[[int, str, torch.Tensor], torch.Tensor]
"""Takes a layer, a module name and an expert's activations of one token; gives what stands in their place."""


def as_is(layer: int, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Alters nothing."""
    return tensor


def one_expert(
    experts: Any, expert: int, x: torch.Tensor, alter: Callable[[str, torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
    """(gate, up, act, output) of one token x [hidden] at one expert."""
    if type(experts).__name__ == "GptOssExperts":
        both = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = both[0::2].clone(), both[1::2].clone()
    else:
        both = experts.gate_up_proj[expert] @ x
        gate, up = both[: len(both) // 2].clone(), both[len(both) // 2 :].clone()
    gate, up = alter(EXPERTS[0], gate), alter(EXPERTS[1], up)
    for tensor in (gate, up):
        tensor.retain_grad()
    if type(experts).__name__ == "GptOssExperts":
        bent = gate.clamp(max=7.0)
        act = alter(EXPERTS[2], (up.clamp(-7.0, 7.0) + 1) * bent * torch.sigmoid(1.702 * bent))
        out = act @ experts.down_proj[expert] + experts.down_proj_bias[expert]
    else:
        act = alter(EXPERTS[2], silu(gate) * up)
        out = experts.down_proj[expert] @ act
    act.retain_grad()
    return gate, up, act, out


@contextmanager
def written_out(model: Any, alter: Alter = as_is) -> Iterator[list[Kept]]:
    """Inside the block the model's experts run one token and one expert at a time; yields what each layer kept."""
    layers = model.model.layers
    kept: list[Kept] = [{} for _ in layers]
    hooks = []
    for index, layer in enumerate(layers):

        def experts_forward(hidden: Any, chosen: Any, weights: Any, index: int = index, layer: Any = layer) -> Any:
            rows = []
            for token in range(len(hidden)):
                total = torch.zeros_like(hidden[token])
                for slot in range(chosen.shape[1]):
                    expert = int(chosen[token, slot])
                    *tensors, out = one_expert(layer.mlp.experts, expert, hidden[token], partial(alter, index))
                    for name, tensor in zip(EXPERTS, tensors, strict=True):
                        kept[index][name, expert, token] = tensor
                    total = total + weights[token, slot] * out
                rows.append(total)
            return torch.stack(rows)

        layer.mlp.experts.forward = experts_forward

        def keep(name: str, index: int = index) -> Any:
            def hook(module: Any, args: Any, output: Any) -> None:
                whole = args[0] if name.endswith(".act") else output
                whole.retain_grad()
                kept[index][name, -1, -1] = whole

            return hook

        for name in ATTENTION:
            hooks.append(getattr(layer.self_attn, name.split(".")[1]).register_forward_hook(keep(name)))
        shared = getattr(layer.mlp, "shared_expert", None)
        if shared is not None:
            for name in SHARED:
                part = {"act": "down_proj"}.get(name.split(".")[2], name.split(".")[2])
                hooks.append(getattr(shared, part).register_forward_hook(keep(name)))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            del layer.mlp.experts.forward


def sample_scores(
    model64: Any,
    tokens: Sequence[int],
    answer: int,
    sites: Sequence[str],
    reduction: str,
    counted: Callable[[int, int], bool] = lambda token, length: True,
) -> Any:
    """P, the score of every neuron (0 where no token came), and the (layer, expert) pairs that some token reached.

    `counted` takes a token's place and how many there are: whether the reduction goes over it.
    """
    places = [token for token in range(len(tokens)) if counted(token, len(tokens))]
    with written_out(model64) as kept:
        logits = model64(input_ids=torch.tensor([list(tokens)])).logits[0, -1]
        probability = torch.softmax(logits, 0)[answer]
        probability.backward()
    parts, reached = [], set()
    for index, layer in enumerate(model64.model.layers):
        here = kept[index]
        for name in (*ATTENTION, *SHARED, *EXPERTS):
            if name not in sites:
                continue
            if name not in EXPERTS:
                whole = here[name, -1, -1]
                products = [a * g for a, g in zip(*(x.view(len(tokens), -1) for x in (whole, whole.grad)), strict=True)]
                parts.append(reduced([products[token].detach().numpy() for token in places], reduction))
                continue
            for expert in range(len(layer.mlp.experts.down_proj)):
                products = []
                for token in places:
                    if (name, expert, token) in here:
                        tensor = here[name, expert, token]
                        products.append((tensor * tensor.grad).detach().numpy())
                        reached.add((index, expert))
                width = next(t.numel() for (n, _, _), t in here.items() if n == name)
                parts.append(reduced(products, reduction) if products else np.zeros(width))
    model64.zero_grad()
    return float(probability.detach()), np.concatenate(parts), reached


def reduced(products: list[np.ndarray], reduction: str) -> np.ndarray:
    """Maximum or sum over tokens."""
    best = products[0]
    for product in products[1:]:
        best = np.maximum(best, product) if reduction == "max" else best + product
    return best


def totals(
    model: Any, samples: Any, n_groups: int, sites: Sequence[str], reduction: str = "max", **counted: Any
) -> np.ndarray:
    """float64 [n_groups, neurons] Σ P · score for samples of (tokens, answer token, group); P·∂P is P²·∂log P."""
    model64 = copy.deepcopy(model).double().eval().requires_grad_(True)
    rows: list[Any] = [0.0] * n_groups
    for tokens, answer, group in samples:
        probability, scores, _ = sample_scores(model64, tokens, answer, sites, reduction, **counted)
        rows[group] = rows[group] + probability * scores
    return np.stack(rows)
