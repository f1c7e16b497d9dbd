"""Any module's neurons: encoders, vision transformers, convolutions and plain stacks against float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_rules import RULES, assert_close
from small_modules import IDS, LENGTHS, MASK, ByHead, Encoder, Flattened, conv, plain, seeded, vision
from torch import nn
from torch.utils.checkpoint import checkpoint

import culnig_fast as cf
from culnig_fast.modules.sites import ModuleSite

WEIGHT = torch.tensor([0.5, -2.0, 1.5])
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
