"""How often and how strongly neurons are active, counted in one forward pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from culnig_fast.baselines.asked import Asked, ask
from culnig_fast.baselines.counters import SUMS, Counters
from culnig_fast.baselines.hooks import observed
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import EXPERT_MODULES, NeuronLayout, NeuronSite, named_modules
from culnig_fast.provenance import provenance
from culnig_fast.questions import Question
from culnig_fast.scores import ScoreTable
from culnig_fast.tensors import map_tensor, read_facts, read_metadata, read_texts, read_value, save_tensors

FORMAT = "culnig_fast.activations/1"
_ARRAYS = {
    "positive": np.int64,
    "means": np.float64,
    "magnitudes": np.float64,
    "tokens": np.int64,
    "counts": np.int64,
}


@dataclass(frozen=True, eq=False)
class ActivationTable:
    """Counters of every neuron over the real tokens of a dataset, one row a group.

    A routed expert's neurons are counted over the tokens that reached it: any other is absent there, not 0. A sample's
    mean is over its own such tokens, and a sample of which none came adds nothing, as in a score table.

    Attributes:
        positive: int64 [groups, neurons] tokens at which the neuron's activation is above 0.
        means: float64 [groups, neurons] Σ over samples of the sample's mean activation.
        magnitudes: float64 [groups, neurons] the same of the activation's absolute value.
        tokens: int64 [groups] real tokens.
        counts: int64 [groups] samples.
        groups: names of the rows.
        ids: ids of the samples.
        layout: which column is which neuron.
        metadata: JSON-ready provenance.
        visits: int64 [groups, experts] real tokens that reached each routed expert, site after site in flat order; None
            where the layout has no routed experts.

    Raises:
        CulnigError: shapes disagree, or a group is named twice.
    """

    positive: np.ndarray
    means: np.ndarray
    magnitudes: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray
    groups: tuple[str, ...]
    ids: tuple[str, ...]
    layout: NeuronLayout
    metadata: dict[str, Any] = field(default_factory=dict)
    visits: np.ndarray | None = None

    def __post_init__(self) -> None:
        wide, narrow = (len(self.groups), self.layout.size), (len(self.groups),)
        for name in _ARRAYS:
            shape, needed = getattr(self, name).shape, wide if name in SUMS else narrow
            if shape != needed:
                raise CulnigError(f"activation counters `{name}` are {list(shape)}, but {list(needed)} are needed")
        experts = sum(site.experts for site in _routed(self.layout))
        visited = None if self.visits is None else self.visits.shape
        if visited != ((len(self.groups), experts) if experts else None):
            raise CulnigError(f"activation counters need `visits` of their {experts} routed experts, none without any")
        if len(set(self.groups)) != len(self.groups):
            raise CulnigError(f"activation counters name a group twice: {', '.join(sorted(self.groups))}")

    def probability(self) -> np.ndarray:
        """Share of its tokens at which each neuron is active, float64 [groups, neurons].

        A routed expert's tokens are those that reached it; where none of a group did, its neurons are active at 0.
        """
        if self.visits is None:
            shares: np.ndarray = self.positive / self.tokens[:, None]
            return shares
        seen = np.repeat(self.tokens[:, None], self.layout.size, axis=1)
        start = 0
        for site in _routed(self.layout):
            visits = self.visits[:, start : start + site.experts]
            where = self.layout.slice(site.module_name, site.layer_idx)
            # Nothing is above 0 where nothing came, so a count of 1 there makes the share 0.
            seen[:, where] = np.repeat(np.maximum(visits, 1), site.width // site.experts, axis=1)
            start += site.experts
        return np.asarray(self.positive / seen)

    def merged(self, parts: Mapping[str, Iterable[str]]) -> ActivationTable:
        """Groups put together, as countries into languages; a group that no part names stays as it is.

        Raises:
            CulnigError: a part names an unknown group, or two parts name the same.
        """
        target = {name: name for name in self.groups}
        taken: set[str] = set()
        for new, names in parts.items():
            for name in names:
                if name not in target or name in taken:
                    what = "is in two merged groups" if name in taken else "is no group of the counters"
                    raise CulnigError(f"group {name!r} {what}; there are {', '.join(self.groups)}")
                taken.add(name)
                target[name] = new
        groups = tuple(dict.fromkeys(target.values()))
        rows = np.array([groups.index(target[name]) for name in self.groups])
        arrays = {}
        for name, value in self._arrays().items():
            arrays[name] = np.zeros((len(groups), *value.shape[1:]), value.dtype)
            np.add.at(arrays[name], rows, value)
        return ActivationTable(**arrays, groups=groups, ids=self.ids, layout=self.layout, metadata=self.metadata)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Everything with a row a group."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return arrays if self.visits is None else {**arrays, "visits": self.visits}

    def scores(self, magnitude: bool = True) -> ScoreTable:
        """A score table whose score is a neuron's mean activation, so that selection can rank it.

        Args:
            magnitude: of the absolute value (a neuron that is strongly negative is active too), else signed.
        """
        return ScoreTable(
            totals=np.array(self.magnitudes if magnitude else self.means),
            groups=self.groups,
            counts=self.counts,
            probability=np.zeros(len(self.groups)),
            ids=self.ids,
            layout=self.layout,
            metadata={**self.metadata, "score": "mean |activation|" if magnitude else "mean activation"},
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file; atomic.

        Raises:
            CulnigError: the file exists and `overwrite` is false, or it cannot be written.
        """
        header = {
            "format": FORMAT,
            "groups": json.dumps(self.groups, ensure_ascii=False),
            "ids": json.dumps(self.ids, ensure_ascii=False),
            "layout": json.dumps(self.layout.to_dict()),
            "metadata": json.dumps(self.metadata, ensure_ascii=False, sort_keys=True),
        }
        save_tensors(path, self._arrays(), header, overwrite)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> ActivationTable:
        """Memory-map what `save` wrote; `verify` as for a score table. CulnigError for anything else."""
        path = Path(path)
        header = read_metadata(path, verify=verify)
        if header.get("format") != FORMAT:
            raise CulnigError(f"{path} holds no activation counters ({FORMAT}); write them with `baseline activations`")
        try:
            layout = NeuronLayout.from_dict(read_value(header, "layout"))
            arrays = {**_ARRAYS, **({"visits": np.int64} if _routed(layout) else {})}
            return cls(
                **{name: map_tensor(path, name, dtype) for name, dtype in arrays.items()},
                groups=read_texts(header, "groups"),
                ids=read_texts(header, "ids"),
                layout=layout,
                metadata=read_facts(header),
            )
        except (OSError, ValueError) as error:
            raise CulnigError(f"{path} is damaged ({error}); count again to rewrite it") from error


def count_activations(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    sites: Iterable[str] | None = None,
    batch_tokens: int | None = None,
    on_unusable: str = "error",
    progress: bool = True,
) -> ActivationTable:
    """Count activations in one forward pass; no [batch, T, neurons] tensor outlives its layer.

    A gate neuron's value is its pre-activation: SiLU, GELU and ReLU keep the sign, so above 0 before them is above 0
    after. Padding is excluded, and so is a token at an expert that it was not routed to. Counts are integers, sums
    float64, both on the device of their layer.

    Args:
        model: a Hugging Face decoder; left as it was.
        tokenizer: its tokenizer.
        questions: whose prompts are read; groups become rows in the order of their first question.
        sites: module names; None means q, k, v, gate and up, where the model has them.
        batch_tokens: padded tokens a batch; None means a default for the device.
        on_unusable: as for `attribute`, so that both see the same questions.
        progress: show a progress bar on standard error.

    Raises:
        CulnigError: as `attribute`; or an activation that is not finite.
    """
    asked = ask(model, tokenizer, questions, batch_tokens, on_unusable)
    sites = named_modules(sites)
    locations = asked.architecture.select(sites)
    layout = asked.architecture.layout(sites)
    counters = Counters(len(asked.groups))
    bar = tqdm(total=len(asked.ids), unit="question", desc="counting", disable=not progress)
    with torch.no_grad(), asked.head() as head, bar, observed(locations, counters.add, lambda: len(counters.lengths)):
        for index in asked.batches:
            batch = asked.batch(index)
            counters.begin(batch, asked.group_of[index])
            head.logits(batch.input_ids, batch.lengths)
            bar.update(len(index))
    arrays = {name: counters.joined(name, locations) for name in SUMS}
    _check_finite(arrays["magnitudes"], layout)
    return ActivationTable(
        **arrays,
        tokens=_tokens(asked),
        counts=asked.counts,
        groups=asked.groups,
        ids=asked.ids,
        layout=layout,
        metadata={
            **provenance(asked.architecture),
            "unusable": list(asked.unusable),
        },
        visits=counters.visits(locations) if _routed(layout) else None,
    )


def _routed(layout: NeuronLayout) -> list[NeuronSite]:
    return [site for site in layout.sites if site.module_name in EXPERT_MODULES]


def _tokens(asked: Asked) -> np.ndarray:
    tokens = np.zeros(len(asked.groups), dtype=np.int64)
    np.add.at(tokens, asked.group_of.numpy(), [len(row) for row in asked.token_ids])
    return tokens


def _check_finite(magnitudes: np.ndarray, layout: NeuronLayout) -> None:
    bad = np.argwhere(~np.isfinite(magnitudes))
    if len(bad):
        names, layers, columns = layout.locate(bad[0][1])
        raise CulnigError(
            f"an activation of neuron {columns[0]} of {names[0]} in layer {layers[0]} is NaN or infinite; "
            "the model's weights are damaged, or its dtype overflows: try bfloat16 or float32"
        )
