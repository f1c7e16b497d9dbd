"""What a result says of the model that it is from."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from culnig_fast.architecture import Architecture


def provenance(architecture: Architecture) -> dict[str, Any]:
    """Model, number format, attention's backend, device and versions, JSON-ready."""
    model, weight = architecture.model, architecture.embedding.weight
    return {
        "model": str(getattr(model.config, "_name_or_path", "")),
        "model_class": type(model).__name__,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "attention": str(getattr(model.config, "_attn_implementation", "unknown")),
        "device": weight.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
