"""What the projections of one decoder layer are, by name; every weight matrix of the layer must be one of them.

What a projection does is told by `probing`, and is held against the configuration's sizes; routed experts are found by
`mixtures.probe`, and a shared expert is an MLP within their block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import Columns, Interleaved, places
from culnig_fast.mixtures.listed import ListedExperts, tells_tokens_apart
from culnig_fast.mixtures.probe import Mixture, fused_mixture, listed_mixture
from culnig_fast.neurons import ATTENTION_MODULES
from culnig_fast.norm_weights import is_norm_weight
from culnig_fast.probing.layer import Block, LayerProbe, Projection, lies_under


@dataclass(frozen=True)
class Role:
    """One site within a layer: the projection's path there (of routed experts, their part) and its columns."""

    module_name: str
    path: str
    columns: Columns
    tensor: Literal["output", "input"] = "output"
    routed: bool = False


Roles = list[Role]
"""Those of one layer."""


def find_mixture(probe: LayerProbe, path: str, problem: str) -> Mixture | None:
    """The layer's routed experts, if it has any."""
    return fused_mixture(probe, path, problem) or listed_mixture(probe, path, problem)


def layer_roles(probe: LayerProbe, config: Any, problem: str, mixture: Mixture | None) -> Roles:
    """Name the parts of one layer, or raise CulnigError saying what is missing."""
    blocks, loose = probe.blocks(() if mixture is None else mixture.skipped(probe.layer))
    found = "; ".join([block.describe() for block in blocks] + [f"{p.path} alone" for p in loose]) or "no projection"
    broken = [block for block in blocks if not probe.is_finite(block)]
    if broken:
        raise CulnigError(
            f"{problem}: activations at {broken[0].exit.path} are NaN or infinite; "
            "the checkpoint's weights are damaged, or its dtype overflows: try bfloat16 or float32"
        )
    attention = [block for block in blocks if probe.mixes_tokens(block)]
    mlps = [block for block in blocks if block not in attention]
    fits = len(mlps) == 1 if mixture is None else len(mlps) <= 1
    if len(attention) != 1 or not fits:
        leftover = _unaccounted(probe.layer, blocks, mixture)
        raise CulnigError(
            f"{problem}: expected one attention block (q, k, v → output) and one MLP (gate, up → down)"
            + ("" if mixture is None else f" or experts ({mixture.path}) with at most one shared MLP beside them")
            + f", found {len(attention)} and {len(mlps)}: {found}"
            + ("" if leftover is None else f"; {leftover}")
        )
    if loose:
        raise CulnigError(
            f"{problem}: no projection reads what {', '.join(p.path for p in loose)} makes, so what it does cannot be "
            f"told (found {found})"
        )
    outside = [block for block in mlps if mixture is not None and not _is_within(block, mixture)]
    if mixture is not None and outside:
        raise CulnigError(
            f"{problem}: its MLP ({outside[0].describe()}) is no part of the block of the experts {mixture.path}; "
            "beside experts only a shared MLP within their block is supported"
        )
    if probe.looks_ahead(attention[0]):
        raise CulnigError(
            f"{problem}: its attention also reads the tokens that follow (it is not causal), so a sample's scores "
            "would depend on its padding; only decoders that read from left to right are supported"
        )
    roles = _attention_roles(probe, attention[0], config, problem)
    if mixture is None:
        roles += _mlp_roles(probe, mlps[0], config, problem)
    else:
        shared = [role for mlp in mlps for role in _mlp_roles(probe, mlp, None, problem)]
        roles += [_renamed(role, "mlp.shared_expert") for role in shared] + _expert_roles(mixture, problem)
    leftover = _unaccounted(probe.layer, blocks, mixture, partial(is_norm_weight, probe))
    if leftover is not None:
        raise CulnigError(f"{problem}: {leftover} (found {found}); such a layer would be scored only in part")
    return roles


def _expert_roles(mixture: Mixture, problem: str) -> Roles:
    """What the parts of a routed expert do."""
    if mixture.sample is None:
        form = mixture.experts.form
        width = len(range(*form.gate))
        return [
            Role("mlp.experts.gate_proj", form.entry, slice(*form.gate), routed=True),
            Role("mlp.experts.up_proj", form.entry, slice(*form.up), routed=True),
            Role("mlp.experts.act", form.exit, slice(0, width), "input", routed=True),
        ]
    problem = f"{problem}: expert 0 of {mixture.path}"
    blocks, loose = mixture.sample.blocks()
    leftover = _unaccounted(mixture.sample.layer, blocks)
    if len(blocks) != 1 or loose or leftover is not None:
        found = "; ".join([block.describe() for block in blocks] + [f"{p.path} alone" for p in loose])
        raise CulnigError(
            f"{problem} is no single MLP (gate, up → down): found {found or 'no projection'}"
            + ("" if leftover is None else f"; {leftover}")
        )
    if not mixture.sample.is_finite(blocks[0]):
        raise CulnigError(f"{problem}: activations are NaN or infinite; the checkpoint's weights are damaged")
    return [_renamed(role, "mlp.experts", True) for role in _mlp_roles(mixture.sample, blocks[0], None, problem)]


def _renamed(role: Role, module: str, routed: bool = False) -> Role:
    name = role.module_name.rpartition(".")[2]
    return Role(f"{module}.{name}", role.path, role.columns, role.tensor, routed)


def _is_within(block: Block, mixture: Mixture) -> bool:
    return all(lies_under(projection.path, mixture.block) for projection in (*block.entries, block.exit))


def prove_listed(mixture: Mixture, roles: Roles, problem: str) -> None:
    """Raise CulnigError unless the tokens that an expert of a list sees can be told."""
    if mixture.sample is None or not isinstance(mixture.experts, ListedExperts):
        return
    exits = next(role.path for role in roles if role.routed and role.tensor == "input")
    if not tells_tokens_apart(mixture.experts, exits, mixture.sample.args[0]):
        raise CulnigError(
            f"{problem}: which tokens the experts of {mixture.path} see cannot be told from their rows; "
            "such a mixture is not supported"
        )


def _attention_roles(probe: LayerProbe, block: Block, config: Any, problem: str) -> Roles:
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise CulnigError(
            f"{problem}: {type(config).__name__} names no num_attention_heads, so queries, keys and values cannot be "
            f"told in {block.describe()}"
        )
    module = probe.layer.get_submodule(block.exit.path.rpartition(".")[0])
    head_dim = getattr(module, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    queries = block.exit.inputs
    if queries != heads * head_dim:
        raise CulnigError(
            f"{problem}: {block.exit.path} reads {queries} columns, but the configuration's {heads} heads × "
            f"{head_dim} make {heads * head_dim}"
        )
    groups = kv_heads(config)
    widths = [queries, groups * head_dim, groups * head_dim]
    parts = _slices(block.entries, widths, problem, "queries, keys, values", block)
    named = _named(probe, block, parts)
    if len(block.entries) == 1:  # all in one, but not part after part: perhaps head after head, or some heads together
        for count in range(2, groups + 1):
            if len(named) < len(parts) and groups % count == 0:
                named = _named(probe, block, _interleaved(block.entries[0], widths, count))
    if len(named) < len(parts):
        what = "queries, keys and values, one behind the other or head after head"
        raise CulnigError(_undecided(problem, block, what))
    expected = dict(zip(ATTENTION_MODULES, widths, strict=True))
    roles = []
    for name, (entry, columns) in named.items():
        width = len(places(columns))
        if width != expected[name]:
            raise CulnigError(
                f"{problem}: {entry.path} acts as {name} with {width} columns, but the configuration "
                f"({heads} heads, {groups} key-value heads × {head_dim}) makes {expected[name]}"
            )
        roles.append(Role(name, entry.path, columns))
    return roles


def _named(
    probe: LayerProbe, block: Block, parts: Sequence[tuple[Projection, Columns]]
) -> dict[str, tuple[Projection, Columns]]:
    """What each part of an attention block is; fewer than the parts where they do not behave as one of each."""
    named: dict[str, tuple[Projection, Columns]] = {}
    for entry, columns in parts:
        # Linearity first: under a saturated softmax a value may reach no later token, and would pass for a query.
        if probe.acts_linearly(block, entry, columns):
            name = "self_attn.v_proj"
        elif probe.acts_locally(block, entry, columns):
            name = "self_attn.q_proj"
        else:
            name = "self_attn.k_proj"
        if name in named:
            break
        named[name] = (entry, columns)
    return named


def _interleaved(entry: Projection, widths: list[int], count: int) -> list[tuple[Projection, Columns]]:
    """The parts where they lie in `count` groups, each with its share of every part."""
    shares = [width // count for width in widths]
    starts = [sum(shares[:i]) for i in range(len(shares))]
    return [
        (entry, Interleaved(start, start + share, sum(shares), sum(widths)))
        for start, share in zip(starts, shares, strict=True)
    ]


def _mlp_roles(probe: LayerProbe, block: Block, config: Any, problem: str) -> Roles:
    width = block.exit.inputs
    declared = getattr(config, "intermediate_size", None)
    if isinstance(declared, int) and declared != width:
        raise CulnigError(
            f"{problem}: {block.exit.path} reads {width} columns where the configuration's intermediate_size is "
            f"{declared}; either the two do not belong together, or the model makes its width from that by a rule of "
            "its own, which is not supported"
        )
    act = Role("mlp.act", block.exit.path, slice(0, width), "input")
    if len(block.entries) == 1 and block.entries[0].outputs == width:
        return [Role("mlp.up_proj", block.entries[0].path, slice(0, width)), act]
    parts = _slices(block.entries, [width, width], problem, "gate and up", block)
    linear = [probe.acts_linearly(block, entry, columns) for entry, columns in parts]
    if sum(linear) != 1:
        raise CulnigError(_undecided(problem, block, "gate and up, one behind the other"))
    names = ["mlp.up_proj" if is_up else "mlp.gate_proj" for is_up in linear]
    return [Role(name, entry.path, columns) for name, (entry, columns) in zip(names, parts, strict=True)] + [act]


def _slices(
    entries: list[Projection], widths: list[int], problem: str, what: str, block: Block
) -> list[tuple[Projection, slice]]:
    """Pair each of the parts with its columns: one projection each, or all in one, one behind the other."""
    if len(entries) == len(widths):
        return [(entry, slice(0, entry.outputs)) for entry in entries]
    if len(entries) == 1 and entries[0].outputs == sum(widths):
        starts = [sum(widths[:i]) for i in range(len(widths))]
        return [(entries[0], slice(start, start + w)) for start, w in zip(starts, widths, strict=True)]
    raise CulnigError(
        f"{problem}: {what} of {', '.join(map(str, widths))} columns were expected, separate or fused in this order, "
        f"found {block.describe()}"
    )


def kv_heads(config: Any) -> int:
    """Key-value heads that a configuration names, in whichever way."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return int(config.num_attention_heads)


def _undecided(problem: str, block: Block, what: str) -> str:
    return (
        f"{problem}: the columns of {block.describe()} do not behave as {what} (they lie in another order, or their "
        "weights are all zero); such a layout is not supported"
    )


def _unaccounted(
    layer: nn.Module,
    blocks: list[Block],
    mixture: Mixture | None = None,
    of_norm: Callable[[str], bool] = lambda path: False,
) -> str | None:
    """The weights that are in none of the blocks, nor the mixture's, as a phrase; None when there are none.

    `of_norm` tells the weight of a norm from a matrix.
    """
    known = [projection.path for block in blocks for projection in (*block.entries, block.exit)]
    left = [
        f"{path} {list(parameter.shape)}"
        for path, parameter in layer.named_parameters()
        if parameter.dim() >= 2
        and path.rpartition(".")[0] not in known
        and not (mixture is not None and mixture.covers(layer, path))
        and not of_norm(path)
    ]
    if not left:
        return None
    shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
    return f"weights that belong to neither: {shown}"
