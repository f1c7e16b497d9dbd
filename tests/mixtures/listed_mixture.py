"""A tiny Mixtral whose experts are modules in a list, with the weights of one that holds them fused."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Expert(nn.Module):
    """down(silu(gate) · up), under the names that Mixtral's checkpoints use."""

    def __init__(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
        super().__init__()
        for name, weight in (("w1", gate), ("w2", down), ("w3", up)):
            projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            projection.weight = nn.Parameter(weight.clone())
            setattr(self, name, projection)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.w2(nn.functional.silu(self.w1(rows)) * self.w3(rows))


class Block(nn.Module):
    """A linear router, and each expert called once with the tokens routed to it, also when there are none."""

    def __init__(self, router: torch.Tensor, experts: list[Expert], top_k: int) -> None:
        super().__init__()
        self.gate = nn.Linear(router.shape[1], router.shape[0], bias=False, dtype=router.dtype)
        self.gate.weight = nn.Parameter(router.clone())
        self.experts = nn.ModuleList(experts)
        self.top_k = top_k
        self.disguise = lambda rows: rows

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        chance, chosen = torch.softmax(self.gate(tokens).float(), -1).topk(self.top_k, -1)
        chance = (chance / chance.sum(-1, keepdim=True)).to(tokens.dtype)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == number)
            out.index_add_(0, rows, expert(self.disguise(tokens[rows])) * chance[rows, slot, None])
        return out.view_as(hidden)


def as_list(fused: Any) -> Any:
    """A copy of a Mixtral with its experts in lists."""
    return put_in_lists(copy.deepcopy(fused))


def put_in_lists(model: Any) -> Any:
    """The Mixtral itself, with its experts in lists from now on."""
    for layer in model.model.layers:
        held = layer.mlp.experts
        experts = [
            Expert(*both.chunk(2), down) for both, down in zip(held.gate_up_proj.data, held.down_proj.data, strict=True)
        ]
        layer.mlp = Block(layer.mlp.gate.weight.data, experts, layer.mlp.top_k)
    return model
