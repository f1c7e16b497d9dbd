"""Names of countries, modules and sets as people write them."""

from __future__ import annotations

from culnig_fast.tasks.countries import place_name

_MODULES = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "mlp.gate_proj": "MLP gate",
    "mlp.up_proj": "MLP up",
    "mlp.act": "MLP activation",
    "mlp.shared_expert.gate_proj": "shared expert's gate",
    "mlp.shared_expert.up_proj": "shared expert's up",
    "mlp.shared_expert.act": "shared expert's activation",
    "mlp.experts.gate_proj": "experts' gate",
    "mlp.experts.up_proj": "experts' up",
    "mlp.experts.act": "experts' activation",
}

_SETS = {
    "general": "culture-general",
    "random": "random sets",
    "mlp": "MLP",
    "attention": "attention",
    "suppressed": "culture-general",
}


def module_label(name: str) -> str:
    """`self_attn.q_proj`: query."""
    return _MODULES.get(name, name)


def set_label(name: str) -> str:
    """`general`: culture-general; `specific-South_Korea` and `South_Korea`: South Korea."""
    name = name.removeprefix("specific-")
    return _SETS[name] if name in _SETS else place_name(name)


def counted(number: float, noun: str) -> str:
    """`1 neuron`, `2 neurons`, `8,087 neurons`."""
    return f"{number:,g} {noun}" if number == 1 else f"{number:,.0f} {noun}s"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
