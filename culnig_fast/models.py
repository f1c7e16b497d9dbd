"""Loads checkpoints: a folder, a hub id, or the embedded model."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError

EMBEDDED = "demo"
"""The name under which the embedded model is loaded."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


def embedded_folder(part: str) -> Path:
    """The folder `model` or `data` of the embedded model."""
    return Path(str(resources.files("culnig_fast.demo"))) / part


def load_model(
    name: str, *, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        name: a checkpoint folder, a hub id, or `demo` for the embedded model.
        dtype: `auto` keeps what the checkpoint holds.
        device: where to put it; None means the first GPU, or the CPU where there is none.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        CulnigError: no such checkpoint, a broken one, or an unknown dtype or device.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise CulnigError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    path = str(embedded_folder("model")) if name == EMBEDDED else name
    if not Path(path).exists() and (path.count("/") != 1 or path.startswith((".", "/"))):
        raise CulnigError(f"no checkpoint folder {name}; give a folder, a hub id or {EMBEDDED!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise CulnigError(f"cannot use device {device!r} ({str(error).splitlines()[0]}); try cpu") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except Exception as error:  # transformers, safetensors and the hub client raise a dozen unrelated types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CulnigError(f"cannot load {name} ({reason[0][:300]}); is it a whole safetensors checkpoint?") from error
    return model.to(target).eval(), tokenizer
