"""Any module's attributor: what it refuses, the model left as it was, and how its layout names neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_modules import MASK, Flattened, seeded
from torch import nn

import culnig_fast as cf
from culnig_fast.modules.sites import ModuleLayout, ModuleSite


def test_the_layout_names_neurons() -> None:
    sites = [ModuleSite("b", slice(2, 5)), ModuleSite("a"), ModuleSite("b", slice(5, 7)), ModuleSite("a", side="input")]
    layout = ModuleLayout(sites, [8, 4, 8, 6])
    assert layout.size == 15
    for flat in range(layout.size):
        paths, columns = layout.locate(flat)
        side = "input" if flat >= 9 else "output"
        assert layout.flat(paths[0], int(columns[0]), side) == flat
    assert [list(x) for x in layout.locate([0, 3, 7])] == [["b", "a", "b"], [2, 0, 5]]
    for call, word in (
        (lambda: layout.locate(15), "outside"),
        (lambda: layout.flat("b", 7), "not scored"),
        (lambda: ModuleLayout([*sites[:2], ModuleSite("b", slice(4, 6))], [8, 4, 8]), "share"),
        (lambda: ModuleLayout([ModuleSite("b", slice(9, 12))], [8]), "no column"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            call()


def state_of(model: nn.Module) -> list[Any]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return [hooks, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]]


def test_the_model_is_left_as_it_was_after_success_and_errors() -> None:
    model, x = seeded(Flattened).train(), torch.randn(3, 5, 4)
    model.inner.requires_grad_(False)
    before = state_of(model)
    attributor = cf.ModuleAttributor(model, ["inner", "outer"])
    with attributor:
        assert state_of(model) != before
        assert not any(p.requires_grad for p in model.parameters()), "gradients of weights cost memory and time"
        attributor.backward(model(x)[:, 1])
    assert state_of(model) == before
    with pytest.raises(RuntimeError), attributor:
        model(torch.randn(3, 5, 7))
    assert state_of(model) == before
    with pytest.raises(cf.CulnigError), attributor:
        attributor.backward(model(x))
    assert state_of(model) == before
    with pytest.raises(cf.CulnigError, match="copied=True"), attributor:
        model.inner(x).relu_()
    assert state_of(model) == before


def test_refusals_add_nothing() -> None:
    class Unused(Flattened):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(4, 4)

    class Twice(Flattened):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + super().forward(2 * x)

    x = torch.randn(3, 5, 4)
    model = seeded(Unused)
    for options, word in (
        ({"sites": ["iner"]}, "did you mean inner"),
        ({"sites": []}, "no site"),
        ({"sites": [ModuleSite("inner", side="left")]}, "side"),  # type: ignore[arg-type]
        ({"sites": [("inner", slice(0, 4, 2))]}, "step"),
        ({"sites": [ModuleSite("inner", dim=0)]}, "counts samples"),
        ({"sites": "inner", "reduction": "median"}, "reduction"),
        ({"sites": "inner", "n_groups": 0}, "group"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            cf.ModuleAttributor(model, **options)  # type: ignore[arg-type]
    with pytest.raises(cf.CulnigError, match="inside"):
        cf.ModuleAttributor(model, "inner").backward(torch.ones(3, requires_grad=True))
    with cf.ModuleAttributor(model, ["inner", "outer"]) as attributor:
        out = model(x)
        attributor.backward(out[:, 0], retain_graph=True)
        before = attributor.totals.clone()
        with pytest.raises(cf.CulnigError, match="in use"):
            attributor.__enter__()
        first = out[:, 0]
        for objective, given, word in (
            (out, {}, "scalar a sample"),
            (first.detach(), {}, "no site"),
            (first, {"weight": torch.ones(2)}, "weight"),
            (first, {"group": torch.tensor([0, 1, 0])}, "group number"),
            (first, {"lengths": torch.tensor([1, 6, 2])}, "fewer than the length 6"),
            (first, {"lengths": torch.tensor([1, 0, 2])}, "count from 1"),
            (first, {"lengths": torch.ones(3)}, "int64"),
            (first, {"positions": MASK[:, :4]}, "and the mask 4"),
            (first, {"positions": MASK.float()}, "bool"),
            (first[:2].repeat(2), {}, "does not start with"),
        ):
            with pytest.raises(cf.CulnigError, match=word):
                attributor.backward(objective, retain_graph=True, **given)
        assert torch.equal(attributor.totals, before)
    for one, sites, word in (
        (model, ["inner", "spare"], "no gradient came to spare"),
        (seeded(Twice), ["inner"], "once"),
    ):
        with cf.ModuleAttributor(one, sites) as attributor:
            with pytest.raises(cf.CulnigError, match=word):
                attributor.backward(one(x)[:, 0])
            with pytest.raises(cf.CulnigError, match="first batch"):
                _ = attributor.totals
