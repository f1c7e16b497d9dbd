"""The parts of a decoder layer that can be fused, found by what they do on a recorded call.

`discover` knows which projections hold the neurons. Here the rest of the layer is accounted for: which norms stand
where (by the tensors that pass through them), what the activation and each norm compute (by running them), which
rotation lies between a projection and the attention. Whatever does not fit raises `NotFusable` with its reason, and the
layer stays on taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from culnig_kernels import reference
from culnig_kernels.activations import ACTIVATIONS
from culnig_kernels.reference.gated import activate
from torch import nn

from culnig_fast.architecture import SiteLocation
from culnig_fast.fused.trace import NotFusable, Trace, record
from culnig_fast.probing.layer import LayerProbe, linear_shape, same_tensor


@dataclass(frozen=True)
class Norm:
    """An RMS norm, (offset + weight) · x / rms(x), of a module's weight."""

    module: Any
    eps: float
    offset: float

    @property
    def settings(self) -> dict[str, float]:
        """Keyword arguments of the norm's operations, beside the weight."""
        return {"eps": self.eps, "offset": self.offset}


@dataclass(frozen=True)
class LayerParts:
    """A layer of the form z = x + P₁(attention(N₁(x))), y = z + P₂(mlp(N₂(z))).

    Attributes:
        sites: the layer's neurons by module name.
        qkv, gate_up: projections that read one tensor, in the order of their columns; one where the model fuses them.
        o, down: the projections that end the two blocks.
        before_attention, before_mlp: N₁ and N₂.
        after_attention, after_mlp: P₁ and P₂, None in most families.
        query_norm, key_norm: norms of a head's columns before the rotation, or None.
        head_dim: columns of a head.
        activation: what the kernels call it.
        scale: of the attention's scores; None is 1/√head_dim.
        positions: the layer's keyword argument that holds (cos, sin).
        returns_tuple: whether the layer returns its output in a tuple.
        inside: every module of the layer, none of which is called any more.
    """

    sites: dict[str, SiteLocation]
    qkv: tuple[nn.Linear, ...]
    gate_up: tuple[nn.Linear, ...]
    o: nn.Linear
    down: nn.Linear
    before_attention: Norm
    before_mlp: Norm
    after_attention: Norm | None
    after_mlp: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None
    head_dim: int
    activation: str
    scale: float | None
    positions: str
    returns_tuple: bool
    inside: tuple[nn.Module, ...]


def find_parts(probe: LayerProbe, sites: Sequence[SiteLocation]) -> LayerParts:
    """The parts of a recorded layer.

    Args:
        probe: the layer and the call that the model made.
        sites: all of the layer's neurons, as discovery found them.

    Raises:
        NotFusable: the layer has another form, or somebody hooked a part of it.
    """
    by_name = {site.site.module_name: site for site in sites}
    if any(site.experts is not None for site in sites):
        raise NotFusable("its MLP is a mixture of experts")
    _check_form(probe, by_name)
    with torch.no_grad():
        trace = record(probe)
        qkv = _projections([by_name[f"self_attn.{n}_proj"] for n in "qkv"])
        gate_up = _projections([by_name["mlp.gate_proj"], by_name["mlp.up_proj"]])
        down = by_name["mlp.act"].module
        o = _other_projection(probe.layer, {*qkv, *gate_up, down})
        norms = _Norms(trace)
        head_dim, scale = _attention(trace, by_name)
        parts = LayerParts(
            sites=by_name,
            qkv=qkv,
            gate_up=gate_up,
            o=o,
            down=down,
            before_attention=norms.required("attention", output=trace.input_of(qkv[0])),
            before_mlp=norms.required("the MLP", output=trace.input_of(gate_up[0])),
            after_attention=norms.find(input=trace.output_of(o)),
            after_mlp=norms.find(input=trace.output_of(down)),
            query_norm=norms.find(input=trace.columns_of(by_name["self_attn.q_proj"])),
            key_norm=norms.find(input=trace.columns_of(by_name["self_attn.k_proj"])),
            head_dim=head_dim,
            activation=_activation(trace, by_name["mlp.gate_proj"]),
            scale=scale,
            positions="",
            returns_tuple=isinstance(trace.result, (tuple, list)),
            inside=tuple(probe.layer.modules())[1:],
        )
        norms.check_all_found(probe.layer)
        check_head_norms(parts.query_norm, parts.key_norm, head_dim)
        return _with_positions(parts, trace, probe)


def check_head_norms(query: Norm | None, key: Norm | None, head_dim: int) -> None:
    """Raise NotFusable unless heads of queries and keys are normalised alike, each by a weight of its own, or not."""
    settings = [None if norm is None else norm.settings for norm in (query, key)]
    if settings[0] != settings[1]:
        raise NotFusable("its queries and its keys are normalised in different ways")
    for norm in (query, key):
        if norm is not None and norm.module.weight.shape != (head_dim,):
            raise NotFusable("its queries and keys are normalised across heads")


def check_untouched(modules: Sequence[nn.Module]) -> None:
    """Raise NotFusable when something beside the module's own code runs with it."""
    for module in modules:
        # Asked of every module in every pass: its dictionaries answer at once, its own __getattr__ does not.
        own = vars(module)
        hooked = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"]
        if hooked or "forward" in own or "parametrizations" in own["_modules"]:
            raise NotFusable(f"{type(module).__name__} has hooks or a replaced forward, which fusing would skip")


def _check_form(probe: LayerProbe, by_name: dict[str, SiteLocation]) -> None:
    layer = probe.layer
    check_untouched(list(layer.modules()))
    if "mlp.gate_proj" not in by_name:
        raise NotFusable("its MLP has no gate")
    for module in layer.modules():
        if linear_shape(module) is not None and type(module) is not nn.Linear:
            raise NotFusable(f"its projections are {type(module).__name__}, not plain linear layers")
        if isinstance(module, nn.Linear) and (type(module.weight) is not nn.Parameter or module.weight.is_meta):
            raise NotFusable(f"its weights are {type(module.weight).__name__}, not plain parameters")
    dtypes = {parameter.dtype for parameter in layer.parameters()}
    if not dtypes <= {torch.float32, torch.bfloat16, torch.float16, torch.float64}:
        raise NotFusable(f"its weights are of {', '.join(sorted(map(str, dtypes)))}")
    if len({parameter.device for parameter in layer.parameters()}) != 1:
        raise NotFusable("its weights are spread over devices")


def _projections(locations: list[SiteLocation]) -> tuple[nn.Linear, ...]:
    """The projections that hold the sites, whose columns must follow each other in the sites' order."""
    modules = tuple(dict.fromkeys(location.module for location in locations))
    if len(modules) == len(locations):
        return modules
    end = 0
    for location in locations:
        if len(modules) != 1 or not isinstance(location.columns, slice) or location.columns.start != end:
            names = ", ".join(location.site.module_name for location in locations)
            raise NotFusable(f"its fused projection does not hold {names} in this order")
        end = location.columns.stop
    return modules


def _other_projection(layer: nn.Module, known: set[nn.Module]) -> nn.Linear:
    others = [module for module in layer.modules() if isinstance(module, nn.Linear) and module not in known]
    if len(others) != 1:
        raise NotFusable(f"it has {len(others)} projections beside q, k, v, gate, up and down")
    return others[0]


class _Norms:
    """The RMS norms of a trace, found by what goes in or comes out."""

    def __init__(self, trace: Trace) -> None:
        self._calls = [call for call in trace.calls if _is_norm(call[0])]
        self._found: set[nn.Module] = set()

    def find(self, *, input: torch.Tensor | None = None, output: torch.Tensor | None = None) -> Norm | None:
        """The norm that reads `input` or made `output`; None when there is none."""
        for module, given, made in self._calls:
            reads = input is not None and same_tensor(given, input)
            if reads or (output is not None and same_tensor(made, output)):
                self._found.add(module)
                return _fitted(module)
        return None

    def required(self, what: str, output: torch.Tensor) -> Norm:
        """The norm that made `output`."""
        norm = self.find(output=output)
        if norm is None:
            raise NotFusable(f"no RMS norm stands before {what}")
        return norm

    def check_all_found(self, layer: nn.Module) -> None:
        """Raise NotFusable when the layer has weights beside projections and the norms found."""
        for module in layer.modules():
            weighted = any(True for _ in module.parameters(recurse=False)) and linear_shape(module) is None
            if weighted and module not in self._found:
                raise NotFusable(f"it has a {type(module).__name__} in a place that fusing does not know")


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return len(parameters) == 1 and parameters[0].dim() == 1 and hasattr(module, "weight")


def _fitted(module: Any) -> Norm:
    """The norm's epsilon and offset, by running it on values so small that the epsilon shows."""
    weight = module.weight
    work = torch.float64 if weight.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(weight), generator=generator, dtype=work).to(weight.device)
    samples = [x, 1e-3 * x]
    try:
        expected = [module(sample) for sample in samples]
    except RuntimeError as error:
        raise NotFusable(f"its {type(module).__name__} does not run on {work} ({error})") from error
    for eps in dict.fromkeys(value for value in vars(module).values() if isinstance(value, float)):
        for offset in (0.0, 1.0):
            got = [reference.rms_norm(s, weight.to(work), eps, offset=offset)[0] for s in samples]
            if all(_close(g, e, 1e-5) for g, e in zip(got, expected, strict=True)):
                return Norm(module, eps, offset)
    raise NotFusable(f"its {type(module).__name__} is no RMS norm")


def _activation(trace: Trace, gate: SiteLocation) -> str:
    columns = trace.columns_of(gate)
    for module, given, _ in trace.calls:
        if same_tensor(given, columns) and not any(True for _ in module.parameters()):
            grid = torch.linspace(-8, 8, 1001, device=columns.device)
            for name in ACTIVATIONS:
                if _close(activate(grid, name), module(grid), 1e-5):
                    return name
            raise NotFusable(f"there is no kernel for its activation {type(module).__name__}")
    raise NotFusable("its activation is no module of its own")


def _attention(trace: Trace, by_name: dict[str, SiteLocation]) -> tuple[int, float | None]:
    """(head_dim, scale) of the layer's one call of scaled_dot_product_attention."""
    if len(trace.attentions) != 1:
        raise NotFusable(f"it calls scaled_dot_product_attention {len(trace.attentions)} times, not once")
    args, kwargs = trace.attentions[0]
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
    query, key, value = given["query"], given["key"], given["value"]
    causal = given.get("is_causal") or given.get("attn_mask") is not None
    if not causal or given.get("dropout_p"):
        raise NotFusable("its attention is not causal, or drops out")
    head_dim = query.shape[-1]
    widths = [by_name[f"self_attn.{name}_proj"].site.width for name in "qkv"]
    if query.shape[1] * head_dim != widths[0] or widths[1] != widths[2] or value.shape[-1] != head_dim:
        raise NotFusable("its keys and values are not whole heads of the queries' size")
    # Grouped keys may have been repeated for the call.
    if key.shape[1] % (widths[1] // head_dim):
        raise NotFusable("its key heads do not divide its query heads")
    scale = given.get("scale")
    return head_dim, None if scale is None else float(scale)


def _with_positions(parts: LayerParts, trace: Trace, probe: LayerProbe) -> LayerParts:
    """The parts with the argument that holds (cos, sin), proved on what reached the attention."""
    args, kwargs = trace.attentions[0]
    query = args[0] if args else kwargs["query"]
    projected = trace.columns_of(parts.sites["self_attn.q_proj"])
    for name, value in probe.kwargs.items():
        if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(v, torch.Tensor) for v in value):
            continue
        cos, sin = value
        if cos.shape != sin.shape or cos.dim() != 3 or cos.shape[-1] % 2 or cos.shape[-1] > parts.head_dim:
            continue
        turned = reference.rotary(projected, cos, sin, parts.head_dim, **norm_arguments(parts.query_norm))
        expected = query.transpose(1, 2).flatten(2)
        if _close(turned, expected, 1e-5 + 4 * torch.finfo(query.dtype).eps):
            return LayerParts(**{**vars(parts), "positions": name})
    raise NotFusable("no rotation that the kernels know lies between its queries and its attention")


def norm_arguments(norm: Norm | None) -> dict[str, Any]:
    """What the rotary operations take of a head's norm."""
    return {} if norm is None else {"weight": norm.module.weight, **norm.settings}


def _close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    error = (got.double() - expected.double()).abs().max()
    return bool(error <= tolerance * expected.double().abs().max())
