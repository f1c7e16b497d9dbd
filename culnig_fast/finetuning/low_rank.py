"""Low-rank updates of chosen modules: projections by layers beside them, experts in 3-D parameters by an update each.

Both are peft's; an update of [experts, outputs, inputs] has the rank for every expert by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.finetuning.options import TrainingOptions


@contextlib.contextmanager
def low_rank(model: Any, names: Sequence[str], options: TrainingOptions) -> Iterator[Any]:
    """The frozen model with updates beside the named modules, merged into its weights when the block ends well.

    Args:
        model: a Hugging Face decoder, every parameter frozen.
        names: full names, as `Choice.names`.
        options: rank and alpha.

    Raises:
        CulnigError: peft would adapt other modules than these, or its version cannot adapt experts.
    """
    from peft import LoraConfig, get_peft_model

    parameters = expert_parameters(model, names)
    alpha = 2 * options.lora if options.lora_alpha is None and options.lora is not None else options.lora_alpha
    settings: dict[str, Any] = {"r": options.lora, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none"}
    if parameters:
        if "target_parameters" not in LoraConfig.__dataclass_fields__:
            raise CulnigError(
                f"this version of peft cannot adapt {parameters[0]}, which holds experts; install peft 0.17 or newer, "
                "or train without --lora"
            )
        settings["target_parameters"] = parameters
    held = {parameter.rpartition(".")[0] for parameter in parameters}
    config = LoraConfig(**settings, target_modules=[name for name in names if name not in held])
    adapted = get_peft_model(model, config)
    merged = False
    try:
        _check_adapted(model, [*(name for name in names if name not in held), *parameters])
        yield adapted
        adapted.merge_and_unload()
        merged = True
    finally:
        if not merged:
            adapted.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config


def expert_parameters(model: Any, names: Sequence[str]) -> list[str]:
    """Full names of the 3-D parameters that the named modules hold themselves."""
    return [
        f"{name}.{part}"
        for name in names
        for part, parameter in model.get_submodule(name).named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def _check_adapted(model: Any, names: Sequence[str]) -> None:
    """Raise CulnigError unless just these projections and parameters are adapted."""
    adapted = set()
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            parameter = getattr(module, "parameter_name", None)
            # Updates of several parameters of one module lie around one another.
            adapted.add(name if parameter is None else f"{name.replace('.base_layer', '')}.{parameter}")
    if adapted != set(names):
        wrong = sorted(adapted ^ set(names))
        raise CulnigError(
            f"peft adapts other modules than those chosen ({', '.join(wrong[:3])}, …); train without --lora"
        )
