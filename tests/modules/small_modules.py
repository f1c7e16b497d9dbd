"""Small modules of many kinds, and their neurons' scores by plain loops in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import transformers
from plain_rules import RULES
from torch import nn

from culnig_fast.modules.sites import ModuleSite

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 10, 3, 3, 0]])
LENGTHS = torch.tensor([5, 3, 4])
MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()


class Encoder(nn.Module):
    """Tokens through torch's own encoder; the mean of the real ones through a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        hidden = self.encoder(self.words(ids), src_key_padding_mask=~real)
        return self.head((hidden * real[..., None]).sum(1) / lengths[:, None])


class Flattened(nn.Module):
    """A layer on [batch·T, K] and one that is called by keyword alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.outer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.inner(x.reshape(-1, 4)))
        return self.outer(input=hidden).view(*x.shape[:2], 3).sum(1)


class ByHead(nn.Module):
    """A module that puts out [batch, T, heads, columns], as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)
        self.heads = nn.Unflatten(-1, (2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.heads(self.inner(x)).flatten(2)).mean(1)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
    )


def vision() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_labels=4,
    )
    return transformers.ViTForImageClassification(config)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def plain(
    model: nn.Module,
    run: Callable[[nn.Module, int], torch.Tensor],
    site: ModuleSite,
    places: list[list[int]] | None = None,
    reduction: str = "max",
) -> np.ndarray:
    """float64 [samples, columns]: one sample at a time, a full backward, position by position."""
    double = copy.deepcopy(model).double().eval()
    module = double.get_submodule(site.path)
    seen: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        leaf = tensor if tensor.requires_grad else tensor.requires_grad_()
        leaf.retain_grad()
        seen.append(leaf)
        return leaf.clone()  # a consumer may overwrite it

    if site.side == "input":
        module.register_forward_pre_hook(
            lambda m, args, kwargs: ((keep(args[0]),), kwargs) if args else (args, {"input": keep(kwargs["input"])}),
            with_kwargs=True,
        )
    else:
        module.register_forward_hook(lambda m, args, output: keep(output))
    rows = []
    for sample in range(3):
        seen.clear()
        run(double, sample).sum().backward()
        (tensor,) = seen
        act, grad = (x.detach().movedim(site.dim, -1)[..., site.columns].numpy() for x in (tensor, tensor.grad))
        act, grad = (x.reshape(-1, x.shape[-1]) for x in (act, grad))
        kept = range(len(act)) if places is None else places[sample]
        rows.append(RULES[reduction]([act[i] * grad[i] for i in kept]))
    return np.stack(rows)
