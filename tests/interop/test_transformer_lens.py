"""Hook points of TransformerLens, scored as the library's own caches of values and gradients say."""

from __future__ import annotations

from functools import partial
from typing import Any

import families
import pytest
import torch

import culnig_fast as cf
from culnig_fast.models import load_model

bridges = pytest.importorskip(
    "transformer_lens.model_bridge",
    reason="TransformerLens is not installed: pip install culnig_fast[transformer-lens]",
)

IDS = torch.tensor([[5, 9, 12, 3, 8], [7, 8, 2, 0, 0], [4, 1, 6, 2, 0]])
LENGTHS = torch.tensor([5, 3, 4])
GOLD = torch.tensor([3, 1, 2])
ROWS = torch.arange(3)


def boot(model: Any) -> Any:
    """The library's bridge around a model, without a look at any hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return bridges.TransformerBridge.boot_transformers(
            "local", hf_model=model, tokenizer=load_model("demo")[1], device="cpu", dtype=torch.float32
        )


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def bridge(request: pytest.FixtureRequest) -> Any:
    return boot(families.build(request.param))


def objective(model: Any) -> torch.Tensor:
    logits = model(IDS)
    return logits[ROWS, LENGTHS - 1].log_softmax(-1)[ROWS, GOLD]


def by_caches(model: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Value × gradient of each hook, [batch, position, columns], by the library's own hooks."""
    values: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}

    def keep(store: dict[str, torch.Tensor], name: str) -> Any:
        return lambda tensor, hook: store.__setitem__(name, tensor.detach().clone())

    with model.hooks(
        fwd_hooks=[(name, keep(values, name)) for name in names],
        bwd_hooks=[(name, keep(gradients, name)) for name in names],
    ):
        objective(model).sum().backward()
    model.zero_grad()
    return {name: (values[name] * gradients[name]).flatten(2) for name in names}


def reduced(products: torch.Tensor, reduction: str) -> torch.Tensor:
    """[batch, columns] over each sample's real positions."""
    rule = {"max": lambda x: x.amax(0), "sum": lambda x: x.sum(0), "last": lambda x: x[-1]}[reduction]
    return torch.stack([rule(x[:length]) for x, length in zip(products, LENGTHS.tolist(), strict=True)])


def state(model: Any) -> list[Any]:
    modules = list(model.modules())
    return [
        [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in modules],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
    ]


@pytest.mark.parametrize("reduction", ["max", "sum", "last"])
def test_scores_are_those_of_the_librarys_caches(bridge: Any, reduction: str) -> None:
    names = [
        *(f"blocks.{layer}.mlp.hook_{end}" for layer in (0, 1) for end in ("pre", "post")),
        *(f"blocks.1.attn.hook_{end}" for end in "qkvz"),
        "blocks.0.hook_resid_post",
    ]
    want = {name: reduced(x, reduction) for name, x in by_caches(bridge, names).items()}
    before = state(bridge)
    group = torch.tensor([0, 1, 0])
    weight = torch.tensor([1.0, 2.0, 0.5])
    with cf.hooked_attributor(bridge, names, n_groups=2, reduction=reduction) as attributor:
        attributor.backward(objective(bridge), weight=weight, group=group, lengths=LENGTHS)
    assert state(bridge) == before
    got = attributor.by_path()
    assert list(got) == names
    for name in names:
        assert want[name].abs().max() > 0
        rows = (want[name] * weight[:, None]).double()
        expected = torch.stack([rows[0] + rows[2], rows[1]])
        torch.testing.assert_close(got[name], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_wildcards_short_forms_and_columns(bridge: Any) -> None:
    hooks = ["blocks.*.mlp.hook_pre", ("q", 0), ("blocks.1.attn.hook_v", slice(2, 5))]
    with cf.hooked_attributor(bridge, hooks, watch=[("blocks.1.attn.hook_v", 3)]) as attributor:
        attributor.backward(objective(bridge), lengths=LENGTHS)
    layers = bridge.cfg.n_layers
    pre = [f"blocks.{layer}.mlp.hook_pre" for layer in range(layers)]
    got = attributor.by_path()
    assert list(got) == [*pre, "blocks.0.attn.hook_q", "blocks.1.attn.hook_v"]
    paths, columns = attributor.layout.locate([attributor.layout.size - 1])
    assert (paths[0], columns[0]) == ("blocks.1.attn.hook_v", 4)
    value = reduced(by_caches(bridge, ["blocks.1.attn.hook_v"])["blocks.1.attn.hook_v"], "max")
    torch.testing.assert_close(attributor.scores[:, 0], value[:, 3], rtol=0, atol=1e-5 * float(value.abs().max()))


def test_neurons_under_hook_names_are_silenced_as_the_librarys_hooks_silence_them(bridge: Any) -> None:
    names = ["blocks.0.mlp.hook_post", "blocks.1.attn.hook_v"]
    with cf.hooked_attributor(bridge, names, reduction="sum") as attributor:
        attributor.backward(objective(bridge), lengths=LENGTHS)
    chosen = attributor.table().top(6, absolute=True)
    assert set(chosen.paths) == set(names)
    ablator = cf.ModuleAblator(bridge, chosen, modules=bridge.hook_dict, progress=False)
    effects = torch.from_numpy(ablator.add(objective))

    def silence(tensor: torch.Tensor, hook: Any, column: int) -> torch.Tensor:
        changed = tensor.clone()
        changed.flatten(2)[..., column] = 0
        return changed

    with torch.no_grad():
        whole = objective(bridge)
        for place, neuron in enumerate(chosen):
            hook = (neuron.path, partial(silence, column=neuron.column))
            with bridge.hooks(fwd_hooks=[hook]):
                want = whole - objective(bridge)
            assert want.any()
            torch.testing.assert_close(effects[:, place].float(), want, rtol=0, atol=1e-6)
    before = state(bridge)
    with cf.scaled_columns(bridge, chosen, 0.0, modules=bridge.hook_dict), torch.no_grad():
        assert not torch.equal(objective(bridge), whole)
    assert state(bridge) == before


def test_hooks_of_the_caller_stay_and_come_first(bridge: Any) -> None:
    name = "blocks.0.mlp.hook_post"
    with bridge.hooks(fwd_hooks=[(name, lambda tensor, hook: tensor * 0.0)]):
        with cf.hooked_attributor(bridge, name) as attributor:
            attributor.backward(objective(bridge), lengths=LENGTHS)
        assert not attributor.totals.any()
    with cf.hooked_attributor(bridge, name) as attributor:
        attributor.backward(objective(bridge), lengths=LENGTHS)
    assert attributor.totals.any()


def test_what_cannot_be_scored_is_named(bridge: Any) -> None:
    for call, words in (
        (lambda: cf.hooked_attributor(bridge, "blocks.0.mlp.hook_pr"), "blocks.0.mlp.hook_pre"),
        (lambda: cf.hooked_attributor(bridge, "blocks.0.attn.hook_pattern"), "holds no neurons"),
        (lambda: cf.hooked_attributor(torch.nn.Linear(2, 2), "hook_pre"), "hook_dict"),
        (lambda: cf.hooked_attributor(bridge, []), "no site"),
    ):
        with pytest.raises(cf.CulnigError, match=words):
            call()
    with (
        pytest.raises(cf.CulnigError, match="does not start with the batch's 3 samples"),
        cf.hooked_attributor(bridge, "blocks.0.attn.hook_cos") as one,
    ):
        one.backward(objective(bridge))


def test_a_bridge_is_scored_by_the_model_inside(bridge: Any) -> None:
    inside = bridge.original_model
    with cf.Attributor(bridge, reduction="sum") as attributor:
        attributor.backward(attributor.forward(IDS, LENGTHS).log_softmax(-1)[ROWS, GOLD])
    layout, totals = attributor.layout, attributor.totals[0]
    assert attributor.architecture.model is inside
    want = reduced(by_caches(bridge, ["blocks.1.mlp.hook_pre"])["blocks.1.mlp.hook_pre"], "sum").sum(0).double()
    got = totals[layout.slice("mlp.gate_proj", 1)]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_a_rewritten_bridge_is_refused() -> None:
    rewritten = boot(families.build("llama"))
    rewritten.enable_compatibility_mode()
    with pytest.raises(cf.CulnigError, match="enable_compatibility_mode"):
        cf.Attributor(rewritten)
