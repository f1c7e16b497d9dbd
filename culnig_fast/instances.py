"""The scores of chosen neurons, sample by sample: a second pass that keeps what the first one adds up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from culnig_fast.attributor import Attributor
from culnig_fast.batching import default_batch_tokens, plan_batches
from culnig_fast.chosen_positions import PositionRule, choose_positions
from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.prompt_limits import check_encoded
from culnig_fast.provenance import provenance
from culnig_fast.questions import Question, encode_questions
from culnig_fast.running.budget import Budget
from culnig_fast.running.loop import Loop, non_finite_named
from culnig_fast.running.samples import Samples
from culnig_fast.running.world import World
from culnig_fast.tensors import map_tensor, read_facts, read_metadata, read_texts, save_tensors

FORMAT = "culnig_fast.instances/1"


@dataclass(frozen=True, eq=False)
class InstanceTable:
    """Scores of chosen neurons on every sample (CULNIG, section 9).

    Attributes:
        neurons: the set.
        scores: float64 [samples, neurons], s(x_q, y_q): n·∂P/∂n reduced over positions, by default their maximum; not
            weighted.
        probability: float64 [samples], P_q.
        ids, groups: [samples] of the questions.
        metadata: JSON-ready provenance.

    Raises:
        CulnigError: shapes disagree.
    """

    neurons: NeuronSet
    scores: np.ndarray
    probability: np.ndarray
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        samples = len(self.ids)
        if (
            self.scores.shape != (samples, len(self.neurons))
            or self.probability.shape != (samples,)
            or len(self.groups) != samples
        ):
            raise CulnigError(
                f"an instance table of {samples} samples and {len(self.neurons)} neurons got scores "
                f"{list(self.scores.shape)}, probabilities {list(self.probability.shape)}, {len(self.groups)} groups"
            )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file with neurons, ids and groups in its header; atomic."""
        header = {
            "format": FORMAT,
            "ids": json.dumps(self.ids, ensure_ascii=False),
            "groups": json.dumps(self.groups, ensure_ascii=False),
            "modules": json.dumps(self.neurons.module_names),
            "metadata": json.dumps(self.metadata, ensure_ascii=False, sort_keys=True),
        }
        tensors = {
            "scores": self.scores,
            "probability": self.probability,
            "layer_idx": self.neurons.layer_idx,
            "neuron_idx": self.neurons.neuron_idx,
            "attribute_score": self.neurons.scores,
        }
        save_tensors(path, tensors, header, overwrite)

    @classmethod
    def load(cls, path: str | Path) -> InstanceTable:
        """Memory-map a table that `save` wrote.

        Raises:
            CulnigError: the file is missing, cut off, not safetensors, or not an instance table.
        """
        path = Path(path)
        header = read_metadata(path)
        if header.get("format") != FORMAT:
            raise CulnigError(f"{path} is not an instance table ({FORMAT}); record one with record_instances")
        try:
            layers, columns = (np.array(map_tensor(path, name, np.int64)) for name in ("layer_idx", "neuron_idx"))
            scores = np.array(map_tensor(path, "attribute_score", np.float64))
            return cls(
                NeuronSet(read_texts(header, "modules"), layers, columns, scores),
                map_tensor(path, "scores", np.float64),
                np.array(map_tensor(path, "probability", np.float64)),
                read_texts(header, "ids"),
                read_texts(header, "groups"),
                read_facts(header),
            )
        except CulnigError as error:
            raise CulnigError(f"{path} is a damaged instance table ({error}); record it again") from error


def record_instances(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    neurons: NeuronSet,
    *,
    batch_tokens: int | None = None,
    reduction: str = "max",
    positions: PositionRule = "all",
    backend: str = "auto",
    path: str = "auto",
    on_unusable: str = "error",
    progress: bool = True,
) -> InstanceTable:
    """Score the chosen neurons on every sample: s(x_q, y_q) of CULNIG's section 2, not summed.

    Args:
        model: a Hugging Face decoder; left as it was.
        tokenizer: its tokenizer.
        questions: what to score.
        neurons: which neurons; memory is 8 bytes a neuron and sample.
        batch_tokens, reduction, positions, backend, path, on_unusable, progress: as `attribute`.

    Raises:
        CulnigError: as `attribute`; or the set is empty, or holds a neuron that the model has not.
    """
    if not len(neurons):
        raise CulnigError("the neuron set is empty: there is nothing to record")
    encoded = encode_questions(tokenizer, questions, on_unusable)
    kept, chosen = encoded.questions, choose_positions(positions, tokenizer, encoded)
    options: dict[str, Any] = {
        "sites": sorted(set(neurons.module_names)),
        "reduction": reduction,
        "backend": backend,
        "path": path,
    }
    attributor = Attributor(model, watch=neurons, **options)
    check_encoded(attributor.architecture.model, encoded)
    device = attributor.architecture.embedding.weight.device
    budget = Budget(default_batch_tokens(device) if batch_tokens is None else batch_tokens)
    order = np.concatenate(plan_batches([len(tokens) for tokens in encoded.token_ids], budget.tokens or 1))
    double = attributor.architecture.embedding.weight.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    attributor.watched = torch.full((len(kept), len(neurons)), torch.nan, dtype=dtype, device=device)
    samples = Samples.of(encoded, np.zeros(len(kept), dtype=np.int64), chosen, False, None)
    with non_finite_named(attributor, samples, options), attributor:
        p = Loop(attributor, samples, order, budget, World()).run(progress)
    probability = np.empty(len(kept))
    probability[order] = p
    return InstanceTable(
        neurons,
        attributor.watched.cpu().double().numpy() * probability[:, None],
        probability,
        samples.ids,
        tuple(question.group for question in kept),
        {
            **provenance(attributor.architecture),
            "reduction": reduction,
            "positions": chosen.rule,
            "unusable": list(encoded.unusable),
            "fusion": attributor.fusion.describe(),
        },
    )
