"""LayerActGrad against Captum's LayerGradientXActivation, on Captum's example models and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import culnig_fast as cf

captum_attr = pytest.importorskip("captum.attr", reason="Captum is not installed: pip install culnig_fast[captum]")
examples = pytest.importorskip("captum.testing.helpers.basic_models", reason="this Captum has no example models")


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The model in evaluation mode, with weights of no structure: the examples' are mostly ones."""
    torch.manual_seed(0)
    model = build().eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.data = 0.7 * draw(*parameter.shape, seed=number)
    return model


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.words(ids)))[:, -1]


class Reused(nn.Module):
    """One layer run twice, the first result overwritten in place by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.nn.functional.relu(self.inner(x), inplace=True)
        return self.outer(torch.tanh(self.inner(first)) + first)


class Pair(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a * b, a - b


class Tuples(nn.Module):
    """A layer that takes and gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pair, self.last = nn.Linear(4, 4), Pair(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.pair(self.first(x), x)
        return self.last(a * b.sigmoid())


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 3, 3]])
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any, list[str]]] = {
    "stack": (examples.BasicModel_MultiLayer, draw(3, 3), 1, None, ["linear0", "linear1", "relu", "linear2"]),
    "in place": (lambda: examples.BasicModel_MultiLayer(inplace=True), draw(3, 3), 0, None, ["linear0", "linear1"]),
    "several inputs": (
        examples.BasicModel_MultiLayer_MultiInput,
        (draw(3, 3), draw(3, 3, seed=2), draw(3, 3, seed=3)),
        [0, 1, 1],
        2,
        ["model.linear1", "model.linear2"],
    ),
    "outputs of more dimensions": (
        examples.BasicModel_MultiLayer,
        draw(3, 3),
        [(0, 1, 0), (1, 0, 1), (1, 1, 0)],
        (None, True),
        ["linear1"],
    ),
    "one place of more dimensions": (examples.BasicModel_MultiLayer, draw(3, 3), (1, 0, 1), (None, True), ["linear0"]),
    "convolutions": (
        examples.BasicModel_ConvNet,
        draw(3, 1, 10, 10),
        torch.tensor([1, 7, 0]),
        None,
        ["conv1", "pool1", "conv2", "fc1"],
    ),
    "embeddings": (
        examples.BasicEmbeddingModel,
        (IDS, IDS + 3),
        None,
        None,
        ["embedding1", "embedding2", "linear1", "linear2"],
    ),
    "encoder": (Encoder, IDS, 3, None, ["words", "encoder.layers.0.linear1", "encoder.layers.1.norm2", "head"]),
    "a layer that runs twice": (Reused, draw(3, 4), 2, None, ["inner", "outer"]),
    "tuples": (Tuples, draw(3, 4), 2, None, ["first", "pair"]),
}


def same(got: Any, want: Any, scale: float | None = None) -> None:
    assert type(got) is type(want)
    if isinstance(want, torch.Tensor):
        assert got.shape == want.shape
        want = want.detach()
        largest = scale or float(want.abs().max())
        assert largest > 0
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * largest)
    else:
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            same(one, other, scale)


@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("case", CASES)
def test_equals_captum(case: str, of_input: bool) -> None:
    build, inputs, target, further, paths = CASES[case]
    if of_input:  # Captum needs inputs with a gradient there: token ids have none
        paths = [path for path in paths if path not in ("embedding1", "embedding2", "words")]
    model = seeded(build)
    layers = [model.get_submodule(path) for path in paths]
    ours = cf.LayerActGrad(model, layers)
    options = {"additional_forward_args": further, "attribute_to_layer_input": of_input}
    same(
        ours.attribute(inputs, target, **options),
        captum_attr.LayerGradientXActivation(model, layers).attribute(inputs, target, **options),
    )
    same(
        cf.LayerActGrad(model, paths[0]).attribute(inputs, target, **options),
        captum_attr.LayerGradientXActivation(model, layers[0]).attribute(inputs, target, **options),
    )


@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize(
    "case", ["stack", "in place", "several inputs", "convolutions", "encoder", "a layer that runs twice"]
)
def test_reduced_is_captums_reduced(case: str, of_input: bool) -> None:
    build, inputs, target, further, paths = CASES[case]
    paths = [path for path in paths if path != "words"]
    dims = [1 if path in ("conv1", "pool1", "conv2") else -1 for path in paths]
    model = seeded(build)
    layers = [model.get_submodule(path) for path in paths]
    options = {"additional_forward_args": further, "attribute_to_layer_input": of_input}
    whole = captum_attr.LayerGradientXActivation(model, layers).attribute(inputs, target, **options)
    for reduction, rule in (
        ("max", lambda x: x.amax(1)),
        ("sum", lambda x: x.sum(1)),
        ("mean", lambda x: x.mean(1)),
        ("absmax", lambda x: x.abs().amax(1)),
        ("last", lambda x: x[:, -1]),
    ):
        want = [rule(x.movedim(dim, -1).reshape(3, -1, x.shape[dim])) for x, dim in zip(whole, dims, strict=True)]
        got = cf.LayerActGrad(model, layers).attribute_reduced(inputs, target, reduction, dim=dims, **options)
        same(got, want, max(float(x.detach().abs().max()) for x in whole))


def test_reduced_with_lengths_and_mask() -> None:
    model, lengths = seeded(Encoder), torch.tensor([4, 1, 3])
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    ours = cf.LayerActGrad(model, "encoder.layers.0.linear1")
    whole = ours.attribute(IDS, 3)
    for positions in (None, mask):
        got = ours.attribute_reduced(IDS, 3, "sum", lengths=lengths, positions=positions)
        kept = torch.arange(4) < lengths[:, None]
        kept = kept if positions is None else kept & positions
        same(got, (whole * kept[..., None]).sum(1))


def test_a_function_stands_for_a_model() -> None:
    model = seeded(Encoder)
    double = lambda ids: 2 * model(ids)  # noqa: E731
    layers = [model.head, model.encoder.layers[0].linear1]
    want = captum_attr.LayerGradientXActivation(double, layers).attribute(IDS, 3)
    same(cf.LayerActGrad(double, layers).attribute(IDS, 3), want)
    same(cf.LayerActGrad(double, layers).attribute_reduced(IDS, 3)[1], want[1].amax(1))


def test_nothing_of_the_product_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reduced form hands activation and gradient to the operation that reduces them block by block."""
    from culnig_kernels import native

    seen, own = [], native.actgrad_reduce

    def watch(act: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = own(act, *args, **kwargs)
        seen.append((tuple(act.shape), tuple(out.shape)))
        return out

    monkeypatch.setattr(native, "actgrad_reduce", watch)
    model = seeded(Encoder)
    got = cf.LayerActGrad(model, ["encoder.layers.0.linear1", "head"]).attribute_reduced(IDS, 3)
    assert sorted(seen) == [((3, 4, 5), (3, 5)), ((3, 4, 24), (3, 24))]
    assert [tuple(x.shape) for x in got] == [(3, 24), (3, 5)]


def test_checkpointed_layers() -> None:
    class Checkpointed(Encoder):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, ids, use_reentrant=False)

    one, other = (cf.LayerActGrad(seeded(m), ["encoder.layers.0.linear1", "head"]) for m in (Checkpointed, Encoder))
    same(one.attribute(IDS, 3), other.attribute(IDS, 3))
    same(one.attribute_reduced(IDS, 3), other.attribute_reduced(IDS, 3))


def test_no_trace_is_left_and_errors_are_named() -> None:
    model = seeded(Reused).train()
    model.inner.weight.requires_grad_(False)
    x = draw(3, 4).requires_grad_()

    def state() -> list[Any]:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        grads = [(p.requires_grad, p.grad is None) for p in (*model.parameters(), x)]
        return [hooks, grads, [m.training for m in model.modules()]]

    before = state()
    ours = cf.LayerActGrad(model, ["inner", "outer"])
    ours.attribute(x, 1)
    assert state() == before
    for call, word in (
        (lambda: ours.attribute(x), "give a target"),
        (lambda: ours.attribute(x, 3), "target 3 does not fit"),
        (lambda: ours.attribute(x, [1, 2]), "leaves"),
        (lambda: ours.attribute(x, (0, 1)), "does not fit"),
        (lambda: ours.attribute_reduced(x, 1, "median"), "reduction"),
        (lambda: ours.attribute_reduced(x, 1, dim=[1]), "1 dims"),
        (lambda: cf.LayerActGrad(model, "iner"), "iner"),
        (lambda: cf.LayerActGrad(model, []), "no layer"),
        (lambda: cf.LayerActGrad(model, nn.Linear(4, 4)).attribute(x, 1), "layer 0"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            call()
        assert state() == before
    with pytest.raises(RuntimeError):
        ours.attribute(draw(3, 7), 1)
    assert state() == before


def test_flags_change_only_while_the_model_runs() -> None:
    model, x, frozen = seeded(Reused), draw(3, 4), []
    model.outer.register_forward_hook(
        lambda m, args, out: frozen.append(not any(p.requires_grad for p in m.parameters()))
    )
    ours = cf.LayerActGrad(model, "inner")
    ours.attribute(x, 1, attribute_to_layer_input=True)
    ours.attribute_reduced(x, 1)
    assert frozen and all(frozen), "gradients of weights cost memory and time"
    assert all(p.requires_grad for p in model.parameters())
    assert not x.requires_grad
