"""Single samples: on how many a neuron helps, and on which it helps and harms most (CULNIG, section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet

if TYPE_CHECKING:
    import pandas as pd

    from culnig_fast.instances import InstanceTable


def positive_shares(table: InstanceTable, sets: Mapping[str, NeuronSet] | None = None) -> pd.DataFrame:
    """On what share of the samples each neuron's score is above 0, in the table's order.

    Args:
        table: of at least one sample.
        sets: name → set, to say which sets a neuron is in.

    Returns:
        One row a neuron: `module_name`, `layer_idx`, `neuron_idx`, `attribute_score`, `sets` (names joined by "; "),
        `positive` (samples with a score above 0), `samples`, `positive_share`, `mean_score` (over the samples).

    Raises:
        CulnigError: no samples, or scores that do not fit neurons and samples.
    """
    import pandas as pd

    check_instances(table)
    positive = np.count_nonzero(table.scores > 0, axis=0)
    samples = len(table.ids)
    return pd.DataFrame(
        {
            "module_name": np.array(table.neurons.module_names, dtype=object),
            "layer_idx": table.neurons.layer_idx,
            "neuron_idx": table.neurons.neuron_idx,
            "attribute_score": table.neurons.scores,
            "sets": ["; ".join(names) for names in memberships(table.neurons, sets or {})],
            "positive": positive,
            "samples": samples,
            "positive_share": positive / samples,
            "mean_score": np.asarray(table.scores).mean(axis=0),
        }
    )


def mean_positive_share(frame: pd.DataFrame, of: str | None = None) -> float:
    """Mean over neurons of the share of samples that they help on, over one set where `of` names it.

    Raises:
        CulnigError: no neuron is in that set.
    """
    shares = frame["positive_share"]
    if of is not None:
        shares = shares[[of in str(names).split("; ") for names in frame["sets"]]]
    if not len(shares):
        raise CulnigError(f"no neuron of {of!r} was looked at sample by sample; record its neurons")
    return float(shares.mean())


def extreme_samples(table: InstanceTable, place: int, count: int = 10) -> tuple[list[int], list[int]]:
    """Samples on which a neuron scores highest, best first, and lowest, worst first; earlier samples first in ties.

    Args:
        table: the samples.
        place: of the neuron in `table.neurons`.
        count: how many of each, at most; no more than there are.
    """
    column = np.asarray(table.scores[:, place], dtype=np.float64)
    return np.argsort(-column, kind="stable")[:count].tolist(), np.argsort(column, kind="stable")[:count].tolist()


def instances_dict(
    table: InstanceTable,
    questions: Mapping[str, Mapping[str, str]],
    sets: Mapping[str, NeuronSet] | None = None,
    count: int = 10,
) -> dict[str, Any]:
    """JSON-ready: each neuron with its share and extreme samples, and the text of every sample named.

    Args:
        table: of at least one sample.
        questions: sample id → `prompt` and `answer`.
        sets: name → set, to say which sets a neuron is in.
        count: samples at either end of a neuron.

    Returns:
        `neurons`: a list of `module_name`, `layer_idx`, `neuron_idx`, `attribute_score`, `sets`, `positive_share`,
        `top` and `bottom` (lists of `id`, `score`, `probability`); `questions`: id → `prompt`, `answer`, `group`.

    Raises:
        CulnigError: as for `positive_shares`; a sample without a question; a count below 1.
    """
    check_instances(table)
    if count < 1:
        raise CulnigError(f"count is {count}; name at least one sample a neuron")
    shares = np.count_nonzero(table.scores > 0, axis=0) / len(table.ids)
    named: set[int] = set()
    neurons = []
    for place, (neuron, inside) in enumerate(zip(table.neurons, memberships(table.neurons, sets or {}), strict=True)):
        ends = extreme_samples(table, place, count)
        named.update(*ends)
        top, bottom = ([_sample(table, place, row) for row in end] for end in ends)
        neurons.append(
            {**neuron._asdict(), "sets": inside, "positive_share": float(shares[place]), "top": top, "bottom": bottom}
        )
    texts = {}
    for row in sorted(named):
        name = table.ids[row]
        if name not in questions:
            raise CulnigError(f"sample {name!r} has no question; give the questions that were scored")
        asked = questions[name]
        texts[name] = {"prompt": asked["prompt"], "answer": asked["answer"], "group": table.groups[row]}
    return {"neurons": neurons, "questions": texts}


def memberships(neurons: NeuronSet, sets: Mapping[str, NeuronSet]) -> list[list[str]]:
    """Names of the sets that hold each neuron, in the order of `sets`."""
    members = {name: {(n.module_name, n.layer_idx, n.neuron_idx) for n in one} for name, one in sets.items()}
    return [
        [name for name, inside in members.items() if (n.module_name, n.layer_idx, n.neuron_idx) in inside]
        for n in neurons
    ]


def check_instances(table: InstanceTable) -> None:
    """Raise CulnigError unless there are samples, and scores [samples, neurons] of numbers."""
    shape = (len(table.ids), len(table.neurons))
    if not len(table.ids):
        raise CulnigError("no sample was recorded; record at least one question")
    if tuple(table.scores.shape) != shape or len(table.probability) != shape[0] or len(table.groups) != shape[0]:
        raise CulnigError(
            f"scores of single samples have the shape {list(table.scores.shape)}, but there are {shape[0]} samples "
            f"and {shape[1]} neurons; record them again"
        )
    if not np.isfinite(table.scores).all():
        raise CulnigError("a score of a single sample is NaN or infinite; record again in a wider dtype")


def _sample(table: InstanceTable, place: int, row: int) -> dict[str, Any]:
    return {
        "id": table.ids[row],
        "score": float(table.scores[row, place]),
        "probability": float(table.probability[row]),
    }
