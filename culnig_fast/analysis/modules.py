"""Which modules hold the chosen neurons most densely, and which of them to train (CULNIG, section 9).

A module is one layer's MLP or one layer's attention, see `found_modules`.

Density is the set's neurons in the module ÷ the neurons of the module that could have been chosen: by default the
columns of gate (up, where a model has no gate) and of q, k and v, and those of any further module that the set itself
names. `per="parameters"` divides by the module's weights and biases instead; an MLP holds far more weights a neuron
than an attention block does, so the two orders differ.

Modules are chosen in the order of their density, equal ones by layer, attention before MLP, until the next one would
exceed the share of the model's parameters. That one is not skipped for a smaller one further on: what is chosen is
always the head (or the tail) of the ranking, and no module outside it is denser than one inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from culnig_fast.analysis.found_modules import KINDS, Kind, Module, find_modules, kind_of
from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES, NeuronLayout, check_module_names

if TYPE_CHECKING:
    import pandas as pd

Which = Literal["top", "bottom", "all"]
CHOICES: tuple[Which, ...] = ("top", "bottom", "all")

PER = ("neurons", "parameters")


@dataclass(frozen=True)
class Choice:
    """Modules chosen from a ranking.

    Attributes:
        which, share: as asked.
        modules: in the order in which they were taken.
        parameters, total: of these modules, and of the whole model.
        table: the ranking's rows, with `chosen` filled in.
    """

    which: Which
    share: float
    modules: tuple[Module, ...]
    parameters: int
    total: int
    table: pd.DataFrame

    @property
    def names(self) -> list[str]:
        """Full names of their projections: `target_modules` of a PEFT configuration."""
        return [name for module in self.modules for name in module.names]


def rank_modules(
    neurons: NeuronSet,
    layout: NeuronLayout,
    modules: Sequence[Module] = (),
    *,
    scored: Iterable[str] | None = None,
    per: str = "neurons",
) -> pd.DataFrame:
    """Modules by density of the set's neurons, densest first.

    Args:
        neurons: the set.
        layout: of the model that it was chosen from, or of a table of its scores.
        modules: as `find_modules` gives; without them the column `parameters` is empty.
        scored: module names whose columns make up a module's size; None means gate, q, k, v, and what the set names.
        per: what density is per, `neurons` or `parameters`.

    Returns:
        a row a module: kind, layer_idx, neurons (of the set), size (neurons that could be chosen), density,
        parameters, rank (from 1).

    Raises:
        CulnigError: an empty set, one that names neurons the layout lacks or `scored` leaves out, an unknown `per`.
    """
    import pandas as pd

    if per not in PER:
        raise CulnigError(f"density per {per!r} is unknown; choose from {', '.join(PER)}")
    if per == "parameters" and not modules:
        raise CulnigError("density per parameters needs the model; a layout holds no parameter counts")
    if not len(neurons):
        raise CulnigError("the neuron set is empty, so every module's density is 0; select with wider thresholds")
    sized = _sized(neurons, layout, scored)
    counts, sizes = _counts(neurons, layout, sized)
    parameters = {(module.kind, module.layer_idx): module.parameters for module in modules}
    rows = []
    for layer_idx in layout.layers:
        for kind in KINDS:
            key = kind, layer_idx
            if key not in sizes:
                continue
            below = sizes[key] if per == "neurons" else parameters[key]
            density = counts.get(key, 0) / below
            rows.append((kind, layer_idx, counts.get(key, 0), sizes[key], density, parameters.get(key)))
    table = pd.DataFrame(rows, columns=["kind", "layer_idx", "neurons", "size", "density", "parameters"])
    table["parameters"] = table["parameters"].astype("Int64")
    table = table.sort_values("density", ascending=False, kind="stable").reset_index(drop=True)
    table["rank"] = table.index + 1
    return table


def choose_modules(ranking: pd.DataFrame, modules: Sequence[Module], which: Which, share: float, total: int) -> Choice:
    """Take modules from the head or the tail of a ranking, up to a share of the model's parameters.

    Args:
        ranking: from `rank_modules` with these modules.
        modules: as `find_modules` gives.
        which: `top`: densest first; `bottom`: least dense first; `all`: every module, whatever the share. Ties are
            taken in layer order from either end.
        share: of `total`, above 0 and at most 1.
        total: parameters of the whole model, embeddings and everything else included.

    Raises:
        CulnigError: an unknown choice, a share out of range, or one that not even the first module fits in.
    """
    if which not in CHOICES:
        raise CulnigError(f"modules {which!r} is unknown; choose from {', '.join(CHOICES)}")
    if not 0 < share <= 1:
        raise CulnigError(f"the share of parameters is {share}; choose it above 0 and at most 1, e.g. 0.1")
    by_key = {(module.kind, module.layer_idx): module for module in modules}
    ordered = ranking.sort_values("density", ascending=True, kind="stable") if which == "bottom" else ranking
    # A stable ascending sort of a table in rank order keeps ties in layer order, as rank order does.
    taken: list[Module] = []
    used = 0
    for kind, layer_idx in zip(ordered["kind"], ordered["layer_idx"], strict=True):
        module = by_key[kind, layer_idx]
        if which != "all" and used + module.parameters > share * total:
            if not taken:
                need = 1000 * module.parameters / total
                raise CulnigError(
                    f"a share of {share:g} holds no module: the first, {kind} of layer {layer_idx}, is "
                    f"{100 * module.parameters / total:.1f} % of the parameters; "
                    f"choose at least {(int(need) + 1) / 1000:g}"
                )
            break
        taken.append(module)
        used += module.parameters
    keys = {(module.kind, module.layer_idx) for module in taken}
    table = ranking.copy()
    table["chosen"] = [key in keys for key in zip(table["kind"], table["layer_idx"], strict=True)]
    return Choice(which, share, tuple(taken), used, total, table)


def pick_modules(
    model: Any,
    neurons: NeuronSet,
    which: Which = "top",
    share: float = 0.1,
    *,
    scored: Iterable[str] | None = None,
    per: str = "neurons",
) -> Choice:
    """Rank the modules of a model and choose among them, in one go.

    Args:
        model: a Hugging Face decoder, or the `Architecture` found in it.
        neurons, scored, per: as for `rank_modules`.
        which, share: as for `choose_modules`.

    Raises:
        CulnigError: as the two raise.
    """
    from culnig_fast.architecture import architecture_of

    architecture = architecture_of(model)
    modules = find_modules(architecture)
    names = sorted({location.site.module_name for location in architecture.locations})
    ranking = rank_modules(neurons, architecture.layout(names), modules, scored=scored, per=per)
    total = sum(parameter.numel() for parameter in architecture.model.parameters())
    return choose_modules(ranking, modules, which, share, total)


def to_yaml(choice: Choice, model_name: str) -> str:
    """A configuration in the form that the published training program reads.

    It keeps the model's name under `model.model_name_or_path` and the projections to train under
    `train.target_modules`, with the neuron count of a projection's module in a comment. There names are compared as
    parts of parameter names, or handed to PEFT; full names are right for both. Its other keys (data set, learning
    rate, output folder) say nothing about modules and are left for its user to fill in.
    """
    import yaml

    counts = {
        (kind, layer_idx): neurons
        for kind, layer_idx, neurons in choice.table[["kind", "layer_idx", "neurons"]].itertuples(index=False)
    }
    head = yaml.safe_dump({"model": {"model_name_or_path": model_name}}, allow_unicode=True, width=1000)
    lines = [
        f"# {choice.which} modules by density: {choice.parameters:,} of {choice.total:,} parameters "
        f"({100 * choice.parameters / choice.total:.2f} %)",
        *head.splitlines(),
        "train:",
        "  target_modules:",
    ]
    for module in choice.modules:
        count = counts[module.kind, module.layer_idx]
        lines += [f"    - {name}  # {count} neurons in this {module.kind}" for name in module.names]
    return "\n".join([*lines, ""])


def _sized(neurons: NeuronSet, layout: NeuronLayout, scored: Iterable[str] | None) -> tuple[str, ...]:
    """Module names whose columns are counted as a module's size."""
    if scored is None:
        ups = [name for name in layout.module_names if name.endswith(".up_proj")]
        gate = [name for name in layout.module_names if name.endswith(".gate_proj")] or ups
        attention = [name for name in ATTENTION_MODULES if name in layout.module_names]
        return check_module_names({*attention, *gate, *neurons.module_names})
    sized = check_module_names(scored)
    outside = sorted(set(neurons.module_names) - set(sized))
    if outside:
        raise CulnigError(
            f"the set holds neurons of {', '.join(outside)}, which the density would leave out; name these too"
        )
    return sized


def _counts(
    neurons: NeuronSet, layout: NeuronLayout, sized: Sequence[str]
) -> tuple[dict[tuple[Kind, int], int], dict[tuple[Kind, int], int]]:
    """(neurons of the set, neurons that could be chosen) by module; every neuron is checked against the layout."""
    neurons.flat(layout)
    layout.indices(sized)
    counts: dict[tuple[Kind, int], int] = {}
    sizes: dict[tuple[Kind, int], int] = {}
    for (name, layer_idx), count in Counter(zip(neurons.module_names, neurons.layer_idx.tolist(), strict=True)).items():
        key = kind_of(name), layer_idx
        counts[key] = counts.get(key, 0) + count
    for site in layout.sites:
        if site.module_name in sized:
            key = kind_of(site.module_name), site.layer_idx
            sizes[key] = sizes.get(key, 0) + site.width
    return counts, sizes
