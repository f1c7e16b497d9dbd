"""Neurons of any module scaled, put at a value and silenced one by one, against models computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch
from torch import nn
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Mixed(nn.Module):
    """Channels that are overwritten in place, a layer that gives a tuple, heads, and one called by keyword alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv1d(2, 4, 3), nn.ReLU(inplace=True)
        self.memory = nn.LSTM(4, 6, batch_first=True)
        self.heads = nn.Unflatten(-1, (2, 3))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, change: Callable[[str, torch.Tensor], torch.Tensor] | None = None) -> Any:
        """With `change`, what hooks do is done here, by name."""
        change = change or (lambda name, value: value)
        hidden = self.relu(change("conv", self.conv(x)))
        hidden, _ = self.memory(change("memory in", hidden.transpose(1, 2)))
        hidden = change("heads", self.heads(change("memory", hidden))).flatten(2)
        return self.head(input=change("head in", self.dropout(hidden))).mean(1)


NEURONS = cf.ModuleNeurons(
    ("conv", "memory", "head", "memory", "heads", "conv", "memory"),
    np.array([1, 4, 5, 0, 3, 3, 2]),
    ("output", "output", "input", "output", "output", "output", "input"),
    (1, -1, -1, -1, None, -2, -1),
    np.zeros(7),
)
NUMBERS = [0.5, -1.0, 2.0, 0.0, 3.0, -0.25, 1.5]
PLACES: dict[str, list[tuple[Any, float]]] = {
    "conv": [((slice(None), 1), 0.5), ((slice(None), 3), -0.25)],
    "memory": [((..., 4), -1.0), ((..., 0), 0.0)],
    "heads": [((..., 1, 0), 3.0)],
    "head in": [((..., 5), 2.0)],
    "memory in": [((..., 2), 1.5)],
}
"""The same by index of each tensor."""


def by_hand(put: bool, number: float | None = None) -> Callable[[str, torch.Tensor], torch.Tensor]:
    def change(name: str, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        for where, own in PLACES[name]:
            amount = own if number is None else number
            value[where] = amount if put else value[where] * amount
        return value

    return change


@pytest.mark.parametrize("number", [None, 0.0, 2.0])
@pytest.mark.parametrize("put", [False, True], ids=["scaled", "replaced"])
def test_columns_change_wherever_they_lie(put: bool, number: float | None) -> None:
    model, x = Mixed().eval(), draw(3, 2, 9)
    block = cf.replaced_columns if put else cf.scaled_columns
    whole = model(x)
    with block(model, NEURONS, NUMBERS if number is None else number) as same:
        assert same is model
        got = model(x)
    want = model(x, by_hand(put, number))
    assert not torch.allclose(want, whole)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert torch.equal(model(x), whole), "the model is as it was"


def test_gradients_pass_and_nothing_is_written_in_place() -> None:
    x = draw(3, 2, 9)
    grads = []
    for hooked in (True, False):
        model = Mixed().double().eval()
        given = x.double().requires_grad_()
        if hooked:
            with cf.replaced_columns(model, NEURONS, NUMBERS):
                model(given).sum().backward()
        else:
            model(given, by_hand(put=True)).sum().backward()
        grads.append([given.grad, *(parameter.grad for parameter in model.parameters())])
    assert all(one is not None and one.any() for one in grads[1])
    torch.testing.assert_close(*grads)
    seen = []
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    held = draw(3, 4)
    with cf.scaled_columns(model, cf.ModuleNeurons.named([("1", 0, "input"), ("0", 1)])):
        model[1].register_forward_hook(lambda m, args, out: seen.append(args[0]))
        model(held)
    assert seen[0][:, :2].count_nonzero() == 0
    assert torch.equal(held, draw(3, 4))


def test_what_is_infinite_is_replaced_too() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 1))
    x = torch.tensor([[torch.inf, 1.0]])
    with cf.replaced_columns(model, cf.ModuleNeurons.named([("0", 0)]), 0.0):
        assert model(x).isfinite()


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2_conv1d_fused", "opt_plain", "gpt_neox_head_after_head"])
def test_a_decoders_neurons_by_path_are_the_same_neurons(family: str) -> None:
    model = families.build(family)
    architecture = cf.discover(model)
    layout = architecture.layout(sorted({x.site.module_name for x in architecture.locations}))
    neurons = cf.select_random(layout, 25, seed=0)
    by_path = cf.ModuleNeurons.of_decoder(model, neurons)
    assert by_path.scores.tolist() == neurons.scores.tolist()
    ids = torch.tensor([[5, 9, 12, 4]])
    found = []
    for given in (neurons, by_path):
        for factor in (0.0, 2.0):
            with cf.scaled(model, given, factor), torch.no_grad():
                found.append(model(input_ids=ids).logits)
    with cf.suppress(architecture, by_path), torch.no_grad():
        found.append(model(input_ids=ids).logits)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3]) and torch.equal(found[0], found[4])
    assert not torch.equal(found[0], found[1])
    with pytest.raises(cf.CulnigError, match="suppress"):
        cf.bake(model, by_path)  # type: ignore[arg-type]


LENGTHS, MASK = torch.tensor([7, 3, 5]), draw(3, 7) > -0.5


@pytest.mark.parametrize("masked", [False, True])
def test_means_are_those_of_the_positions_that_count(masked: bool) -> None:
    model, x = Mixed().train(), draw(3, 2, 9)
    paths, sides = ("head", "memory", "conv", "head"), ("input", "output", "output", "input")
    neurons = cf.ModuleNeurons(paths, np.array([5, 1, 3, 0]), sides, (-1, -1, 1, -1), np.zeros(4))
    means = cf.ColumnMeans(model, neurons)
    with pytest.raises(cf.CulnigError, match="no batch"):
        _ = means.values
    for rows in (slice(0, 2), slice(2, 3)):
        mask = MASK[rows] if masked else None
        means.add(lambda m, rows=rows: m(x[rows]), lengths=LENGTHS[rows], positions=mask)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    hidden: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor) -> torch.Tensor:
        hidden[name] = value.detach().clone().double()
        return value

    model.eval()(x, keep)
    tensors = (hidden["head in"], hidden["memory"], hidden["conv"].transpose(1, 2), hidden["head in"])
    counted = [(s, t) for s in range(3) for t in range(int(LENGTHS[s])) if not masked or MASK[s, t]]
    want = [np.mean([float(x[s, t, c]) for s, t in counted]) for x, c in zip(tensors, neurons.columns, strict=True)]
    assert want[2] < 0, "the rectified value was taken"
    np.testing.assert_allclose(means.values, want, rtol=0, atol=1e-6)
    before = model(x)
    with cf.replaced_columns(model, neurons, means.values):
        assert not torch.equal(model(x), before)
    with pytest.raises(cf.CulnigError, match="relu did not run"):
        cf.ColumnMeans(model, cf.ModuleNeurons.named([("relu", 0)])).add(lambda m: m.head(draw(2, 6)))


def silenced_by_hand(model: nn.Sequential, column: int, value: float) -> nn.Sequential:
    """The model whose first layer always gives `value` there."""
    edited = copy.deepcopy(model)
    first: Any = edited[0]
    with torch.no_grad():
        first.weight[column], first.bias[column] = 0.0, value
    return edited


@pytest.mark.parametrize("values", [None, [0.5, -1.0, 0.25]])
def test_effects_are_those_of_edited_weights(values: list[float] | None) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).train(), draw(5, 4)
    neurons = cf.ModuleNeurons.named([("0", 4), ("0", 0), ("0", 5)], info={"why": "these"})
    weight, group = torch.tensor([1.0, 0.5, -2.0, 1.0, 3.0]), torch.tensor([0, 1, 1, 0, 1])
    ablator = cf.ModuleAblator(model, neurons, n_groups=2, values=values, progress=False)
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        parts.append(ablator.add(lambda m, rows=rows: m(x[rows])[:, 2], weight=weight[rows], group=group[rows]))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        edits = [silenced_by_hand(model, c, v) for c, v in zip((4, 0, 5), values or (0, 0, 0), strict=True)]
        want = torch.stack([(model(x) - edited(x))[:, 2] for edited in edits], dim=1).double().numpy()
    assert (np.abs(want).max(0) > 0.01).all()
    np.testing.assert_allclose(np.concatenate(parts), want, rtol=0, atol=1e-6)
    weighted = want * weight.double().numpy()[:, None]
    sums = np.stack([weighted[group == row].sum(0) for row in (0, 1)])
    np.testing.assert_allclose(ablator.effects, sums, rtol=0, atol=1e-6)
    assert ablator.counts.tolist() == [2.0, 3.0]
    for row in (None, 1):
        ranked, values_of = ablator.ranked(row), ablator.effects.sum(0) if row is None else ablator.effects[row]
        best = sorted(range(3), key=lambda i: -values_of[i])
        assert [n.column for n in ranked] == [(4, 0, 5)[i] for i in best]
        assert ranked.scores.tolist() == [values_of[i] for i in best]
        assert ranked.info["why"] == "these"


def test_a_linear_objective_makes_score_and_effect_one() -> None:
    """What follows the channels is linear: activation × gradient, summed, is the effect of silencing one."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(2, 5, 3), nn.Flatten(), nn.Linear(20, 3)), draw(4, 2, 6)
    group = torch.tensor([0, 1, 0, 1])
    with cf.ModuleAttributor(model, [cf.ModuleSite("0", dim=1)], n_groups=2, reduction="sum") as attributor:
        attributor.backward(model(x)[:, 1], group=group)
    table = attributor.table()
    chosen = table.top(5)
    ablator = cf.ModuleAblator(model, chosen, n_groups=2, progress=False)
    ablator.add(lambda m: m(x)[:, 1], group=group)
    np.testing.assert_allclose(ablator.effects, table.at(chosen), rtol=0, atol=1e-6)
    found = cf.agreement(table.at(chosen).sum(0), ablator.effects.sum(0), top=2)
    assert found.spearman == pytest.approx(1) and found.overlap == 1
    assert ablator.ranked() == cf.ModuleNeurons(
        chosen.paths, chosen.columns, chosen.sides, chosen.dims, ablator.effects.sum(0)
    )


def test_effects_on_a_decoder_are_those_of_ablate() -> None:
    model, tokenizer, questions = families.build("llama"), make_tokenizer(), make_questions(3, groups=1)
    neurons = cf.select_random(cf.discover(model).layout(), 6, seed=1)
    want = cf.ablate(model, tokenizer, questions, neurons, progress=False)
    ablator = cf.ModuleAblator(model, cf.ModuleNeurons.of_decoder(model, neurons), progress=False)
    for question in questions:
        ids = torch.tensor([tokenizer.encode(question.prompt)])
        gold = tokenizer.encode(question.answer, add_special_tokens=False)[-1]

        def run(m: Any, ids: torch.Tensor = ids, gold: int = gold) -> torch.Tensor:
            return m(input_ids=ids).logits[:, -1].softmax(-1)[:, gold]

        ablator.add(run, weight=run(model).detach())
    tolerance = 2e-6 * (want.probability**2).sum()
    assert np.abs(want.effects).max() > 20 * tolerance
    np.testing.assert_allclose(ablator.effects, want.effects, rtol=0, atol=tolerance)


def test_mistakes_are_named_and_undone() -> None:
    model, x = Mixed().eval(), draw(3, 2, 9)
    named = cf.ModuleNeurons.named

    def run_in(neurons: cf.ModuleNeurons, value: Any = 0.0) -> None:
        with cf.replaced_columns(model, neurons, value):
            model(x)

    def ablate(neurons: cf.ModuleNeurons, run: Callable[[Any], Any] = lambda m: m(x)[:, 0], **options: Any) -> None:
        cf.ModuleAblator(model, neurons, progress=False).add(run, **options)

    sizes = iter([3, 2])
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: run_in(named([("hed", 0)])), "did you mean head"),
        (lambda: run_in(named([("head", 3)])), "head has columns 0…2, not 3"),
        (lambda: run_in(named([("conv", 4)], dim=1)), "columns 0…3, not 4"),
        (lambda: run_in(named([("conv", 0)], dim=3)), "dimension 3 counts no neurons"),
        (lambda: run_in(named([("conv", 0)], dim=-3)), "dimension -3 counts no neurons"),
        (lambda: run_in(named([("conv", 0)]), [1.0, 2.0]), "one a neuron"),
        (lambda: named([("conv", -1)]), "columns count from 0"),
        (lambda: named([("conv", 0, "left")]), "unknown side"),
        (lambda: run_in([("head", 0)]), "given as list.*named"),  # type: ignore[arg-type]
        (lambda: ablate(cf.NeuronSet.empty()), "NeuronSet.*of_decoder"),  # type: ignore[arg-type]
        (lambda: ablate(named([])), "no neurons"),
        (lambda: ablate(named([("head", 9)])), "head has columns 0…2"),
        (lambda: ablate(named([("conv", 0)], dim=1), lambda m: m(x)), "objective must be [batch]".replace("[", r"\[")),
        (lambda: ablate(named([("conv", 0)], dim=1), lambda m: m(x).mean().item()), "a float"),
        (lambda: ablate(named([("conv", 0)], dim=1), lambda m: m(x)[:, 0] / 0), "not finite"),
        (lambda: ablate(named([("conv", 0)], dim=1), lambda m: m(x)[: next(sizes), 0]), "must run one batch"),
        (lambda: ablate(named([("conv", 0)], dim=1), lambda m: m.head(draw(2, 6))[:, 0]), "did not run"),
        (lambda: ablate(named([("conv", 0)], dim=1), group=torch.tensor([0, 1, 0])), "group number"),
        (lambda: cf.ModuleAblator(model, named([("head", 0)]), n_groups=0), "group"),
    ]
    before = model(x)
    for call, word in calls:
        with pytest.raises(cf.CulnigError, match=word):
            call()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    words = nn.Sequential(nn.Embedding(5, 4), nn.LSTM(4, 4), nn.Linear(4, 2))
    for neurons, word in ((named([("0", 1, "input")]), "int64"), (named([("2", 1, "input")]), "takes in a tuple")):
        with pytest.raises(cf.CulnigError, match=word), cf.scaled_columns(words, neurons):
            words(torch.tensor([[1, 2]]))
    with pytest.raises(RuntimeError, match="on purpose"), cf.scaled_columns(model, NEURONS):
        raise RuntimeError("on purpose")
    assert torch.equal(model(x), before)
    silent = nn.Sequential(nn.Identity(), nn.Identity())
    ablator = cf.ModuleAblator(silent, named([("0", 1), ("0", 0)]), progress=False)
    with pytest.raises(cf.CulnigError, match="column 0 of the output of '0' makes the objective infinite"):
        ablator.add(lambda m: 1 / m(torch.ones(2, 2))[:, 0])
    assert not ablator.effects.any() and not ablator.counts.any(), "nothing is added"


def test_a_factor_of_0_silences_what_is_infinite_or_nan_and_others_scale() -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[float("nan"), float("inf"), 3.0, -float("inf"), 5.0]])
    neurons = cf.ModuleNeurons.named([("0", column) for column in (0, 1, 2, 3)])
    with cf.scaled(model, neurons, 0.0):
        assert model(x).tolist() == [[0.0, 0.0, 0.0, 0.0, 5.0]]
    with cf.scaled_columns(model, neurons, [0.0, 2.0, -1.0, 0.0]):
        assert model(x).tolist() == [[0.0, float("inf"), -3.0, 0.0, 5.0]]
    assert model(x)[0, 0].isnan()
