"""Which neurons of a large language model contribute to the right answer, at the cost of little more than one pass.

Names are loaded when first used, so that importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

from culnig_fast.version import __version__

_HOMES = {
    "ActivationTable": "baselines.activations",
    "Architecture": "architecture",
    "Attributor": "attributor",
    "ColumnMeans": "modules.means",
    "CulnigError": "errors",
    "CulnigWarning": "errors",
    "DeviceTable": "selection.device",
    "Evaluation": "evaluation",
    "InstanceTable": "instances",
    "Interrupted": "errors",
    "LayerActGrad": "interop.captum",
    "ModuleAblator": "modules.ablator",
    "ModuleAttributor": "modules.attributor",
    "ModuleIntegrator": "modules.integrator",
    "ModuleLayout": "modules.sites",
    "ModuleNeurons": "modules.neurons",
    "ModuleScores": "modules.scores",
    "ModuleSite": "modules.sites",
    "NeuronLayout": "neurons",
    "NeuronSet": "neuron_sets",
    "NeuronSite": "neurons",
    "PromptTokens": "chosen_positions",
    "Question": "questions",
    "ScoreTable": "scores",
    "World": "running.world",
    "ablate": "baselines.ablation",
    "agreement": "baselines.ablation",
    "attribute": "attribution",
    "attribute_as_authors": "interop.as_authors",
    "attribute_streamed": "streaming.attribution",
    "bake": "masking",
    "compare_modules": "finetuning.comparison",
    "count_activations": "baselines.activations",
    "discover": "architecture",
    "enhance": "masking",
    "evaluate": "evaluation",
    "find_modules": "analysis.found_modules",
    "harness_model": "interop.lm_eval",
    "holm": "statistics",
    "hooked_attributor": "interop.transformer_lens",
    "integrated_gradients": "baselines.path",
    "joined": "running.distributed",
    "mean_interval": "statistics",
    "paired_bootstrap": "statistics",
    "pick_modules": "analysis.modules",
    "plan": "planning.plan",
    "prepare": "evaluation",
    "rank_modules": "analysis.modules",
    "read_score_file": "interop.score_files",
    "record_instances": "instances",
    "replaced_columns": "modules.columns",
    "scaled": "masking",
    "scaled_columns": "modules.columns",
    "select_by_entropy": "baselines.entropy",
    "select_general": "selection.rules",
    "select_like": "baselines.selecting",
    "select_random": "selection.rules",
    "select_specific": "selection.rules",
    "select_specific_all": "selection.rules",
    "sweep_general": "selection.sweep",
    "sweep_specific": "selection.sweep",
    "suppress": "masking",
    "train_modules": "finetuning.training",
    "weight_norms": "baselines.weights",
    "write_report": "report.writing",
    "write_score_file": "interop.score_files",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 — the keys are names


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
