"""Integrated gradients of any module: against a plain loop, Captum's, and what they must add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch
from torch import nn
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.modules.sites import ModuleSite


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Stages(nn.Module):
    """Channels that a rectifier overwrites, a tuple, and a layer called by keyword; stage by stage for the loop."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv1d(2, 4, 3), nn.ReLU(inplace=True)
        self.memory, self.dropout, self.head = nn.LSTM(4, 6, batch_first=True), nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.relu(self.conv(x)).transpose(1, 2)
        hidden, _ = self.memory(hidden)
        return self.head(input=self.dropout(hidden)).exp().mean(1)

    def before(self, name: str, x: torch.Tensor) -> torch.Tensor:
        channels = self.conv(x)
        return channels if name == "conv" else self.memory(channels.relu().transpose(1, 2))[0]

    def after(self, name: str, value: torch.Tensor) -> torch.Tensor:
        hidden = self.memory(value.relu().transpose(1, 2))[0] if name == "conv" else value
        return self.head(hidden).exp().mean(1)


SITES = [
    ModuleSite("conv", slice(1, 4), dim=1),
    ModuleSite("memory"),
    ModuleSite("head", slice(-2, None), side="input"),
]
X, OTHER = draw(3, 2, 9), draw(3, 2, 9, seed=2)
LENGTHS, MASK = torch.tensor([7, 3, 5]), draw(3, 7) > -0.5
WEIGHT, GROUP = torch.tensor([0.5, -2.0, 1.5]), torch.tensor([1, 0, 1])


def interpolated(
    model: Stages, site: ModuleSite, sample: int, steps: int, based: bool, target: int = 2
) -> tuple[np.ndarray, float, float]:
    """float64 [positions, columns] of IG, f(1) and f(0) of one sample, by explicit interpolation."""
    x, other = (one[sample : sample + 1].double() for one in (X, OTHER))
    act = model.before(site.path, x).detach()
    start = model.before(site.path, other).detach() if based else torch.zeros_like(act)
    moving = torch.zeros_like(act)
    moving.movedim(site.dim or -1, -1)[..., site.columns] = 1

    def f(alpha: float) -> tuple[float, torch.Tensor]:
        there = (act * (1 - moving) + moving * (start + alpha * (act - start))).requires_grad_()
        value = model.after(site.path, there)[0, target]
        return float(value.detach()), torch.autograd.grad(value, there)[0]

    grads = [f((j - 0.5) / steps)[1] for j in range(1, steps + 1)]
    product = (act - start) * torch.stack(grads).mean(0)
    product = product[0].movedim((site.dim or -1) - (site.dim == 1), -1)[:, site.columns]
    return product.numpy(), f(1.0)[0], f(0.0)[0]


REDUCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": lambda rows: rows.sum(0),
    "max": lambda rows: rows.max(0),
    "mean": lambda rows: rows.sum(0) / len(rows),
    "absmax": lambda rows: np.abs(rows).max(0),
    "last": lambda rows: rows[-1],
}


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("based", [False, True], ids=["zero", "baseline"])
@pytest.mark.parametrize("reduction", REDUCE)
def test_equals_explicit_interpolation(reduction: str, based: bool, double: bool) -> None:
    masked = reduction in ("max", "sum")
    model, plain = Stages().train(), Stages().double().eval()
    x, other = X, OTHER
    if double:
        model, x, other = model.double(), X.double(), OTHER.double()
    integrator = cf.ModuleIntegrator(model, SITES, steps=3, n_groups=2, reduction=reduction, progress=False)
    parts = [
        integrator.add(
            lambda m, rows=rows: m(x[rows])[:, 2],
            baseline=(lambda m, rows=rows: m(other[rows])) if based else None,
            weight=WEIGHT[rows],
            group=GROUP[rows],
            lengths=LENGTHS[rows],
            positions=MASK[rows] if masked else None,
        )
        for rows in (slice(0, 2), slice(2, 3))
    ]
    want = []
    for sample in range(3):
        kept = [t for t in range(int(LENGTHS[sample])) if not masked or MASK[sample, t]]
        rows = [interpolated(plain, site, sample, 3, based)[0] for site in SITES]
        want.append(np.concatenate([REDUCE[reduction](one[kept]) for one in rows]))
    scores, tolerance = np.stack(want), 1e-12 if double else 1e-5
    assert parts[0].dtype == (torch.float64 if double else torch.float32)
    np.testing.assert_allclose(torch.cat(parts), scores, rtol=0, atol=tolerance * np.abs(scores).max())
    weighted = scores * WEIGHT.double().numpy()[:, None]
    totals = np.stack([weighted[1], weighted[0] + weighted[2]])
    np.testing.assert_allclose(integrator.totals, totals, rtol=0, atol=tolerance * np.abs(totals).max())
    assert [part.shape[1] for part in integrator.by_path().values()] == [3, 6, 2]
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    table = integrator.table(["a", "b"], objective="exp", metadata={"mine": 1})
    assert np.array_equal(table.totals, integrator.totals) and table.counts.tolist() == [1.0, 2.0]
    assert (table.metadata["steps"], table.metadata["mine"], table.reduction) == (3, 1, reduction)


def test_it_is_complete() -> None:
    """Σ over a site's neurons and positions → f(1) − f(0), which silencing the site shows; the error falls as 1/m²."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Softplus(), nn.Linear(6, 3)).double()
    x = 2 * draw(3, 5, 4).double()

    def run(m: Any) -> torch.Tensor:
        return m(x).mean(1).softmax(-1)[:, 1]

    sites = ["0", ("2", slice(1, 5)), "3"]
    errors = {}
    with torch.no_grad():
        whole = run(model)
    for steps in (8, 32, 128):
        integrator = cf.ModuleIntegrator(model, sites, steps=steps, progress=False)
        scores = integrator.add(run)
        worst = 0.0
        for number, _ in enumerate(sites):
            where = integrator.layout.slice(number)
            silent = cf.ModuleNeurons.from_flat(integrator.layout, np.arange(where.start, where.stop))
            with cf.suppress(model, silent), torch.no_grad():
                effect = whole - run(model)
            assert effect.abs().max() > 1e-3
            worst = max(worst, float((scores[:, where].sum(1) - effect).abs().max()))
        errors[steps] = worst
    assert errors[128] < 1e-5
    assert errors[32] < errors[8] / 12 and errors[128] < errors[32] / 12


def test_where_all_that_follows_is_linear_it_is_the_first_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Unflatten(-1, (2, 3)), nn.Flatten(2), nn.Linear(6, 3))
    x = draw(3, 5, 4)
    sites = ["1", ModuleSite("2", dim=None), ModuleSite("4", slice(0, 2))]
    integrator = cf.ModuleIntegrator(model, sites, steps=2, reduction="max", progress=False)
    integrator.add(lambda m: m(x).sum(1)[:, 0])
    with cf.ModuleAttributor(model, sites) as attributor:
        attributor.backward(model(x).sum(1)[:, 0])
    assert integrator.layout == attributor.layout
    torch.testing.assert_close(integrator.totals, attributor.totals, rtol=0, atol=1e-5)


def test_on_a_decoder_it_is_integrated_gradients() -> None:
    model, tokenizer, questions = families.build("phi3"), make_tokenizer(), make_questions(3, groups=1)
    sites = ["self_attn.v_proj", "mlp.up_proj"]
    want = cf.integrated_gradients(model, tokenizer, questions, steps=3, sites=sites, weighted=False, progress=False)
    places = cf.discover(model).select(sites)
    assert any(place.columns.start for place in places), "fused projections: a part of the columns moves"
    own = [ModuleSite(place.module_path, place.columns, place.tensor) for place in places]
    integrator = cf.ModuleIntegrator(model, own, steps=3, progress=False)
    for question in questions:
        ids = torch.tensor([tokenizer.encode(question.prompt)])
        gold = tokenizer.encode(question.answer, add_special_tokens=False)[-1]
        integrator.add(lambda m, ids=ids, gold=gold: m(input_ids=ids).logits[:, -1].softmax(-1)[:, gold])
    got = integrator.totals[0].numpy()
    np.testing.assert_allclose(got, want.totals.sum(0), rtol=0, atol=1e-5 * np.abs(got).max())


class Bag(nn.Module):
    """The mean of words' embeddings, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.inner, self.head = nn.EmbeddingBag(12, 6, mode="mean"), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(self.bag(ids))))


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 3, 3]])


def captums_case(name: str) -> tuple[nn.Module, Any, Any, dict[str, int], int | None]:
    """Model, inputs, baselines, layers with the dimension of their neurons, and target."""
    examples = pytest.importorskip("captum.testing.helpers.basic_models", reason="this Captum has no example models")
    if name == "stack":
        layers = {"linear0": -1, "linear1": -1, "relu": -1, "linear2": -1}
        return examples.BasicModel_MultiLayer(), (draw(3, 3),), (draw(3, 3, seed=2),), layers, 1
    if name == "convolutions":
        layers = {"conv1": 1, "pool1": 1, "conv2": 1, "fc1": -1}
        return examples.BasicModel_ConvNet(), (draw(3, 1, 10, 10),), (draw(3, 1, 10, 10, seed=2),), layers, 7
    if name == "bag":
        return Bag(), (IDS,), (IDS.flip(1) % 7,), {"bag": -1, "inner": -1}, 2
    layers = {"embedding1": -1, "embedding2": -1, "linear1": -1, "linear2": -1}
    return examples.BasicEmbeddingModel(), (IDS, IDS + 3), (IDS.flip(1), IDS + 1), layers, None


def give_nothing_for_zeros(model: nn.Module) -> None:
    """No biases, and an embedding of zeros for token 0."""
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.weight.data[0] = 0
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.data.zero_()


@pytest.mark.parametrize("based", [False, True], ids=["zero", "baseline"])
@pytest.mark.parametrize("case", ["stack", "convolutions", "words", "bag"])
def test_equals_captum(case: str, based: bool) -> None:
    captum = pytest.importorskip("captum.attr", reason="Captum is not installed: pip install culnig_fast[captum]")
    model, inputs, baselines, layers, target = captums_case(case)
    for number, parameter in enumerate(model.eval().parameters()):
        parameter.data = 0.5 * draw(*parameter.shape, seed=number)
    if not based:  # Captum's baseline is a layer's output on baseline inputs: here they give zeros, without biases
        give_nothing_for_zeros(model)
        baselines = tuple(torch.zeros_like(x) for x in inputs)

    def run(given: Any) -> Callable[[Any], torch.Tensor]:
        return lambda m: m(*given).flatten() if target is None else m(*given)[:, target]

    sites = [ModuleSite(path, dim=dim) for path, dim in layers.items()]
    integrator = cf.ModuleIntegrator(model, sites, steps=7, progress=False)
    scores = integrator.add(run(inputs), baseline=run(baselines) if based else None)
    options = {"n_steps": 7, "method": "riemann_middle", "target": target}
    for number, (path, dim) in enumerate(layers.items()):
        attribution = captum.LayerIntegratedGradients(model, model.get_submodule(path))
        theirs = attribution.attribute(inputs, baselines, **options).detach().movedim(dim, -1)
        want = theirs.flatten(1, -2).sum(1) if theirs.dim() > 2 else theirs
        got = scores[:, integrator.layout.slice(number)]
        assert want.abs().max() > 1e-4
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()), check_dtype=False)


def test_mistakes_are_named_and_nothing_is_added() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.spare(x)
            return self.inner(self.inner(x)).sum(-1)

    model, x = Stages().train(), X.clone()
    words = nn.Sequential(nn.Embedding(12, 4), nn.Linear(4, 2))
    integrator = cf.ModuleIntegrator(model, SITES, steps=2, progress=False)
    with pytest.raises(cf.CulnigError, match="first batch"):
        _ = integrator.totals
    integrator.add(lambda m: m(x)[:, 0])
    before = integrator.totals.clone()

    def add(run: Any = lambda m: m(x)[:, 0], **options: Any) -> None:
        integrator.add(run, **options)

    def other(model: nn.Module, site: Any, run: Any) -> None:
        cf.ModuleIntegrator(model, [site], steps=1, progress=False).add(run)

    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: cf.ModuleIntegrator(model, "conv", steps=0), "0 steps"),
        (lambda: cf.ModuleIntegrator(model, "conv", reduction="median"), "median"),
        (lambda: cf.ModuleIntegrator(model, "conw"), "did you mean conv"),
        (lambda: cf.ModuleIntegrator(model, "conv", n_groups=0), "group"),
        (lambda: add(lambda m: m(x)), "scalar a sample"),
        (lambda: add(lambda m: m(x)[:, 0].detach()), "no gradient came to conv"),
        (lambda: add(lambda m: m.head(draw(2, 6))[:, 0]), "did not run"),
        (lambda: add(baseline=lambda m: m.head(draw(2, 6))), "ran conv.* 0 times"),
        (lambda: add(baseline=lambda m: m(x[:2])), "of the batch's shape"),
        (lambda: add(weight=torch.ones(2)), "weight"),
        (lambda: add(lengths=torch.tensor([9, 2, 2])), "fewer than the length 9"),
        (lambda: other(Twice(), "inner", lambda m: m(draw(3, 4))), "more than once"),
        (lambda: other(Twice(), "spare", lambda m: m(draw(3, 4))), "no gradient came to spare"),
        (lambda: other(words, ModuleSite("0", side="input"), lambda m: m(IDS)[:, 0, 0]), "int64"),
    ]
    for call, word in calls:
        with pytest.raises(cf.CulnigError, match=word):
            call()
        assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(integrator.totals, before)
    assert integrator.table().counts.tolist() == [3.0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_get_the_same(mode: Any) -> None:
    model = Stages()
    found = []
    for given in (torch.enable_grad, mode):
        with given():
            found.append(cf.ModuleIntegrator(model, SITES, steps=2, progress=False).add(lambda m: m(X)[:, 0]))
    assert torch.equal(*found)
