"""How modules are trained, checked before anything is loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from culnig_fast.errors import CulnigError

EXTRA = "pip install 'culnig_fast[train]'"


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of one training, the published ones by default; AdamW, gradients clipped to norm 1.

    Attributes:
        rate: learning rate, constant after the warm-up.
        epochs: passes over the samples; `steps`, where given, counts instead.
        batch: samples a step on the device; times `accumulate` they make one update.
        decay: weight decay.
        warmup: steps over which the rate grows from 0.
        samples: at most so many of the training questions, drawn by the seed; None takes all.
        lora: rank of low-rank updates instead of full ones; their scale is `lora_alpha` ÷ rank, alpha 2 · rank unless
            given.
        bf16: compute in bfloat16 by autocast, whatever the weights are held in. Weights held in bfloat16 themselves
            lose most updates of a small rate to rounding; load them as float32.
        checkpointing: recompute activations in backward to spare memory.
        save_steps: keep a checkpoint every so many updates, to continue from; 0 keeps none.
    """

    rate: float = 3e-5
    epochs: float = 1.0
    steps: int | None = None
    batch: int = 4
    accumulate: int = 4
    decay: float = 0.0
    warmup: int = 0
    samples: int | None = 10_000
    lora: int | None = None
    lora_alpha: int | None = None
    bf16: bool = False
    checkpointing: bool = False
    save_steps: int = 200

    def check(self) -> None:
        """Raise CulnigError for a value out of range or a library that is missing."""
        least = {"rate": 0, "epochs": 0, "steps": 0, "batch": 0, "accumulate": 0, "samples": 0, "lora": 0,
                 "lora_alpha": 0}  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound < value < float("inf"):
                raise CulnigError(f"{name} is {value}; choose it above {bound}")
        for name in ("decay", "warmup", "save_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise CulnigError(f"{name} is {getattr(self, name)}; choose 0 or more")
        for library in ("accelerate", *(("peft",) if self.lora is not None else ())):
            if importlib.util.find_spec(library) is None:
                raise CulnigError(f"fine-tuning needs {library}, which is not installed; {EXTRA}")

    def inputs(self) -> dict[str, Any]:
        """What decides the trained weights, JSON-ready."""
        return {key: value for key, value in asdict(self).items() if key != "save_steps"}
