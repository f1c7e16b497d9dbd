"""Hook points of TransformerLens, scored as the library's own caches of values and gradients say."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch

import culnig_fast as cf
from culnig_fast.models import load_model
from culnig_fast.questions import Question

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
    model.config.architectures = [type(model).__name__]
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
    """Value × gradient of each hook, [batch, position, columns], by the library's own hooks.

    The batch's 5 positions tell their dimension, wherever it is: no model here has 5 of anything else.
    """
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
    products = {name: values[name] * gradients[name] for name in names}
    return {name: x.movedim(list(x.shape).index(IDS.shape[1], 1), 1).flatten(2) for name, x in products.items()}


def reduced(products: torch.Tensor, reduction: str) -> torch.Tensor:
    """[batch, columns] over each sample's real positions."""
    rule = {"max": lambda x: x.amax(0), "sum": lambda x: x.sum(0), "last": lambda x: x[-1]}[reduction]
    return torch.stack([rule(x[:length]) for x, length in zip(products, LENGTHS.tolist(), strict=True)])


def state(model: Any) -> list[Any]:
    modules = list(model.modules())
    return [
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training) for m in modules],
        [(list(point.fwd_hooks), list(point.bwd_hooks)) for point in model.hook_dict.values()],
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


def check_points(model: Any, names: list[str]) -> None:
    """Each of the points, alone in its own attributor, has the scores that the library's hooks give."""
    want = {name: reduced(x, "max") for name, x in by_caches(model, names).items()}
    for name in names:
        with cf.hooked_attributor(model, name) as attributor:
            attributor.backward(objective(model), lengths=LENGTHS)
        assert want[name].abs().max() > 0
        got, total = attributor.by_path()[name][0], want[name].sum(0).double()
        torch.testing.assert_close(got, total, rtol=0, atol=1e-5 * float(total.abs().max()), msg=name)


NORMS = pytest.mark.filterwarnings("ignore:Backward hooks on hook_scale", "ignore:.*hook_normalized")
"""A bridge warns that its norms with hooks differ from Hugging Face's by rounding."""


@NORMS
def test_points_that_lie_otherwise_are_scored_as_hooks_see_them(bridge: Any) -> None:
    names = [f"blocks.1.attn.hook_rot_{which}" for which in "qk"]
    names += ["blocks.0.ln1.hook_normalized", "blocks.1.ln2.hook_scale", "ln_final.hook_normalized"]
    if hasattr(bridge.blocks[1].attn, "q_norm"):  # heads before positions, for hooks too
        normed = [f"blocks.1.attn.hook_{which}_normed" for which in "qk"]
        normed += [f"blocks.0.attn.q_norm.hook_{end}" for end in ("in", "out", "normalized")]
        names += normed if hasattr(bridge.hook_dict[normed[0]], "pos_dim") else []  # refused before version 4
    check_points(bridge, names)


@pytest.mark.parametrize(
    ("family", "points"),
    [
        ("gpt2_conv1d_fused", ("mlp.hook_pre", "attn.hook_q", "attn.hook_v", "attn.hook_z")),  # one fused projection
        ("opt_plain", ("mlp.hook_pre", "mlp.hook_post", "hook_resid_mid")),  # [batch · position, columns] inside
        ("granite", ("hook_attn_out", "hook_mlp_out", "mlp.hook_post")),  # scaled ones fire when they are hooked
    ],
)
def test_points_of_other_structures(family: str, points: tuple[str, ...]) -> None:
    model = families.build(family)
    if family == "granite":
        model.config.residual_multiplier = 0.5
        for layer in model.model.layers:
            layer.residual_multiplier = 0.5
    check_points(boot(model), [f"blocks.{layer}.{point}" for layer in (0, 1) for point in points])


@NORMS
def test_the_callers_own_calls_work_inside_the_block(bridge: Any) -> None:
    bridge.run_with_cache(IDS)  # transformers' own hooks for outputs of layers come with the first such call, and stay
    name, before = "blocks.0.mlp.hook_post", state(bridge)
    seen: list[Any] = []

    def noting(tensor: torch.Tensor, hook: Any) -> None:
        seen.append(hook.name)

    def after_reset(ids: torch.Tensor) -> torch.Tensor:
        bridge.reset_hooks()
        return bridge(ids)

    totals = []
    for run in (
        bridge,
        lambda ids: bridge.run_with_hooks(ids, fwd_hooks=[(name, noting)]),
        lambda ids: bridge.run_with_cache(ids)[0],
        after_reset,
    ):
        with cf.hooked_attributor(bridge, [name, "ln_final.hook_normalized"]) as attributor:
            attributor.backward(objective(run), lengths=LENGTHS)
        totals.append(attributor.totals)
    assert len(seen) == 1 and totals[0].any()
    assert all(torch.equal(other, totals[0]) for other in totals)
    assert state(bridge) == before


def test_nothing_is_left_behind_in_any_mode(bridge: Any) -> None:
    name = "blocks.0.mlp.hook_post"
    first = next(bridge.parameters())
    bridge.train()
    bridge.blocks[1].eval()
    first.requires_grad_(False)
    try:
        before = state(bridge)
        with cf.hooked_attributor(bridge, [name, ("q", 1)]) as attributor:
            assert not any(module.training for module in bridge.modules())
            assert all(bridge.hook_dict[name].has_hooks(dir=way) for way in ("fwd", "bwd"))  # the library knows
            attributor.backward(objective(bridge), lengths=LENGTHS)
        assert state(bridge) == before
        with pytest.raises(KeyError), cf.hooked_attributor(bridge, name):
            raise KeyError
        assert state(bridge) == before
        with pytest.raises(cf.CulnigError, match="set_use_attn_result"):
            cf.hooked_attributor(bridge, [name, "blocks.0.attn.hook_result"]).__enter__()
        assert state(bridge) == before
        with attributor, pytest.raises(cf.CulnigError, match="in use already"):
            attributor.__enter__()
        assert state(bridge) == before
    finally:
        bridge.eval()
        first.requires_grad_(True)


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
    older = SimpleNamespace(hook_dict={"blocks.0.attn.hook_q_normed": torch.nn.Identity()})
    with pytest.raises(cf.CulnigError, match="upgrade to TransformerLens 4"):
        cf.hooked_attributor(older, "blocks.*")
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


def test_a_bridge_is_taken_where_a_decoder_is() -> None:
    plain, tokenizer = load_model("demo")
    bridge = boot(load_model("demo")[0])
    rows = [Question(id=str(i), prompt=text, answer="A", group="x") for i, text in enumerate(("A B C A", "B A"))]
    want, got = (cf.attribute(one, tokenizer, rows, progress=False).totals for one in (plain, bridge))
    assert abs(want).max() > 0 and abs(got - want).max() <= 1e-5 * abs(want).max()
    chosen = cf.NeuronSet(("mlp.gate_proj",) * 64, [3] * 64, list(range(64)), [0.0] * 64)
    with cf.suppress(plain, chosen), cf.suppress(bridge, chosen):
        want, got = (one(IDS) for one in (lambda ids: plain(ids).logits, bridge))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.detach().abs().max()))
    assert (want - plain(IDS).logits).abs().max() > 1e-3
    with pytest.raises(cf.CulnigError, match="load the Hugging Face model anew"):
        cf.bake(bridge, chosen)


@pytest.mark.parametrize("call", ["enable_compatibility_mode", "process_weights"])
def test_a_rewritten_bridge_is_refused(call: str) -> None:
    rewritten = boot(families.build("llama"))
    rewritten.enable_compatibility_mode(no_processing=True)  # names alone, which harms nothing
    with cf.Attributor(rewritten) as attributor:
        assert attributor.architecture.model is rewritten.original_model
    rewritten = boot(families.build("llama"))
    getattr(rewritten, call)()
    with pytest.raises(cf.CulnigError, match="has rewritten the weights"):
        cf.Attributor(rewritten)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_a_hooked_transformer_is_scored_by_its_hooks_alone() -> None:
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("HookedTransformer left TransformerLens in version 4; 3.9 has it")
    shape = {"n_layers": 2, "d_model": 16, "n_ctx": 16, "d_head": 4, "n_heads": 4, "d_mlp": 32, "d_vocab": 50}
    torch.manual_seed(0)
    hooked = HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu", default_prepend_bos=False))
    before = state(hooked)
    check_points(
        hooked, ["blocks.0.mlp.hook_pre", "blocks.1.attn.hook_z", "blocks.0.attn.hook_q", "ln_final.hook_scale"]
    )
    assert state(hooked) == before
    with pytest.raises(cf.CulnigError, match="use_attn_result"), cf.hooked_attributor(hooked, ("result", 0)):
        pass
    with pytest.raises(cf.CulnigError, match="hooked_attributor"):
        cf.Attributor(hooked)
