"""Any module's neurons: encoders, vision transformers, convolutions and plain stacks against float64 loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

import culnig_fast as cf
from culnig_fast.modules.sites import ModuleLayout, ModuleSite

RULES: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "max": np.maximum.reduce,
    "sum": lambda rows: np.sum(rows, axis=0),
    "mean": lambda rows: np.sum(rows, axis=0) / len(rows),
    "absmax": lambda rows: np.maximum.reduce([np.abs(row) for row in rows]),
    "last": lambda rows: rows[-1],
}
WEIGHT = torch.tensor([0.5, -2.0, 1.5])


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


def assert_close(got: Any, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 10, 3, 3, 0]])
LENGTHS = torch.tensor([5, 3, 4])
MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
ENCODER_SITES = [
    ModuleSite("encoder.layers.0.linear1"),
    ModuleSite("encoder.layers.1.linear1", slice(3, 9)),
    ModuleSite("encoder.layers.1.linear2", side="input"),
    ModuleSite("head", slice(1, None), side="input"),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", RULES)
def test_an_encoder(reduction: str, masked: bool) -> None:
    model = seeded(Encoder).train()
    places = [[i for i in range(int(n)) if not masked or MASK[s, i]] for s, n in enumerate(LENGTHS)]
    with cf.ModuleAttributor(model, ENCODER_SITES, n_groups=2, reduction=reduction) as attributor:
        out = model(IDS, LENGTHS)
        attributor.backward(
            torch.log_softmax(out, -1)[:, 2],
            weight=WEIGHT,
            group=torch.tensor([1, 0, 1]),
            lengths=LENGTHS,
            positions=MASK if masked else None,
        )
    parts = []
    for site in ENCODER_SITES:
        own = None if site.path == "head" else places  # [batch, K]
        parts.append(
            plain(
                model,
                lambda m, s: torch.log_softmax(m(IDS[s : s + 1, : LENGTHS[s]], LENGTHS[s : s + 1]), -1)[:, 2],
                site,
                own,
                reduction,
            )
        )
    weighted = np.concatenate(parts, axis=1) * WEIGHT.numpy()[:, None]
    assert attributor.totals.dtype == torch.float64
    assert_close(attributor.totals, np.stack([weighted[1], weighted[0] + weighted[2]]))


def test_a_vision_transformer() -> None:
    model, images = seeded(vision).eval(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    paths = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 20]
    assert len(paths) == 2
    with cf.ModuleAttributor(model, paths, watch=[(paths[1], 7), (paths[0], 0)]) as attributor:
        attributor.backward(model(pixel_values=images).logits[:, 1])
    want = [plain(model, lambda m, s: m(images[s : s + 1].double()).logits[:, 1], ModuleSite(path)) for path in paths]
    assert_close(attributor.totals[0], np.concatenate(want, axis=1).sum(0))
    assert attributor.scores is not None
    assert_close(attributor.scores, np.stack([want[1][:, 7], want[0][:, 0]], axis=1))


@pytest.mark.parametrize("trainable", [True, False])
def test_channels_of_a_convolution_that_is_overwritten(trainable: bool) -> None:
    model = seeded(conv).requires_grad_(trainable)
    images = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    sites = [ModuleSite("0", dim=1), ModuleSite("2", slice(1, 3), dim=1), ModuleSite("2", side="input", dim=1)]
    with cf.ModuleAttributor(model, [*sites, "5"], reduction="sum") as attributor:
        attributor.backward(model(images)[:, 0])
    double = images.detach().double()
    want = [
        plain(model, lambda m, s: m(double[s : s + 1])[:, 0], site, reduction="sum")
        for site in [*sites, ModuleSite("5")]
    ]
    assert_close(attributor.totals[0], np.concatenate(want, axis=1).sum(0))
    assert images.grad is None
    assert all(p.grad is None and p.requires_grad == trainable for p in model.parameters())


def test_rows_of_all_samples_in_one_dimension() -> None:
    model, x = seeded(Flattened), torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    sites = [ModuleSite("inner", slice(-2, None)), ModuleSite("outer", side="input")]
    with cf.ModuleAttributor(model, sites) as attributor:
        attributor.backward(model(x)[:, 1], lengths=LENGTHS)
    places = [list(range(int(n))) for n in LENGTHS]
    want = [plain(model, lambda m, s: m(x[s : s + 1].double())[:, 1], site, places) for site in sites]
    assert_close(attributor.totals[0], np.concatenate(want, axis=1).sum(0))


class ByHead(nn.Module):
    """A module that puts out [batch, T, heads, columns], as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)
        self.heads = nn.Unflatten(-1, (2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.heads(self.inner(x)).flatten(2)).mean(1)


def test_all_that_follows_positions_counts_neurons() -> None:
    model, x = seeded(ByHead), torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    sites = [ModuleSite("heads", dim=None), ModuleSite("inner", slice(1, 3), dim=None), ModuleSite("", dim=None)]
    sites.append(ModuleSite("inner", slice(4, 6)))
    with cf.ModuleAttributor(model, sites) as attributor:
        attributor.backward(model(x)[:, 1], lengths=LENGTHS)
    found = attributor.by_path()
    assert list(found) == ["heads", "inner[1:3]", "", "inner[4:6]"]
    with cf.ModuleAttributor(model, "inner") as plainly:
        plainly.backward(model(x)[:, 1], lengths=LENGTHS)
    assert plainly.totals.any() and found[""].shape == (1, 3)
    assert torch.equal(found["heads"], plainly.totals)
    assert torch.equal(found["inner[1:3]"], plainly.totals[:, 1:3])
    paths, columns = attributor.layout.locate([5, 6])
    assert list(zip(paths, columns, strict=True)) == [("heads", 5), ("inner", 1)]


def test_other_names_and_modules_for_sites() -> None:
    model, x = seeded(Flattened), torch.randn(3, 5, 4)
    with cf.ModuleAttributor(model, ["first"], modules={"first": model.inner}) as named:
        named.backward(model(x)[:, 1])
    with cf.ModuleAttributor(model, [model.inner]) as given:
        given.backward(model(x)[:, 1])
    assert list(named.by_path()) == ["first"] and list(given.by_path()) == ["inner"]
    assert torch.equal(named.totals, given.totals) and given.totals.any()
    with pytest.raises(cf.CulnigError, match="no module 'inner'"):
        cf.ModuleAttributor(model, ["inner"], modules={"first": model.inner})


def test_several_objectives_of_one_forward_pass_and_several_batches() -> None:
    model, x = seeded(Flattened), torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(1))
    with cf.ModuleAttributor(model, "inner", n_groups=3) as attributor:
        for rows in (slice(0, 3), slice(3, 4)):
            out = model(x[rows])
            for target in range(3):
                group = torch.full((len(out),), target)
                attributor.backward(out[:, target], group=group, retain_graph=target < 2)
    for target in range(3):
        with cf.ModuleAttributor(model, "inner") as alone:
            alone.backward(model(x)[:, target])
        assert_close(attributor.totals[target], alone.totals[0].numpy())


def test_checkpointed_modules_are_scored_once() -> None:
    class Checkpointed(Flattened):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    model, x = seeded(Checkpointed), torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    simple = seeded(Flattened)
    found = []
    for one in (model, simple):
        with cf.ModuleAttributor(one, ["inner", "outer"]) as attributor:
            attributor.backward(one(x)[:, 1])
        found.append(attributor.totals)
    assert torch.equal(*found)


def test_no_product_is_kept() -> None:
    """Beside what backward keeps anyway, nothing of [batch, T, K] outlives a site's turn."""
    model, x = seeded(Flattened), torch.randn(3, 5, 4)
    with cf.ModuleAttributor(model, ["inner", "outer"]) as attributor:
        out = model(x)
        attributor.backward(out[:, 1])
        kept = [value.numel() for value in (*attributor._sums.parts, attributor.totals)]
    assert kept == [6, 3, 9]
    assert attributor._found == {}


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
