"""Scores of single samples: which neurons are looked at, and where their tables lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.sources import Sources
from culnig_fast.pipeline.workbench import Workbench


def reductions(config: RunConfig) -> tuple[str, ...]:
    """Over positions, of the scores of single samples: as the neurons were scored, and the sum where that is asked."""
    return tuple(dict.fromkeys((config.scoring.reduction, *(["sum"] if config.analyses.summed else []))))


def instance_path(out: Path, reduction: str) -> Path:
    """A table of single samples' scores."""
    return out / "instances" / f"{reduction}.safetensors"


def watched(sources: Sources) -> NeuronSet:
    """The neurons that are looked at sample by sample: the general set, and the first ones of each country's."""
    rows: dict[tuple[str, int, int], float] = {}
    for name, chosen in sources.chosen().items():
        for neuron in list(chosen)[: None if name == "general" else sources.config.analyses.shown]:
            rows.setdefault((neuron.module_name, neuron.layer_idx, neuron.neuron_idx), neuron.attribute_score)
    modules, layers, columns = zip(*rows, strict=True) if rows else ((), (), ())
    return NeuronSet(tuple(modules), np.array(layers), np.array(columns), np.array(list(rows.values())))


def record(bench: Workbench, out: Path) -> None:
    """Write the scores of the watched neurons on every question of the identification half."""
    from culnig_fast.instances import record_instances

    config, chosen = bench.config, watched(Sources(bench, out))
    for reduction in reductions(config):
        table = record_instances(
            bench.model,
            bench.tokenizer,
            bench.questions(config.culture, "neur"),
            chosen,
            reduction=reduction,
            positions=config.scoring.positions,
            batch_tokens=config.batch_tokens,
            on_unusable=config.on_unusable,
            progress=bench.progress,
        )
        table.save(instance_path(out, reduction), overwrite=True)
