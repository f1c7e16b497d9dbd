"""A model without its weights: the library's own modules, parameters on the meta device, buffers real."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.streaming.shards import Shards


def build_skeleton(folder: Path, shards: Shards, dtype: str, device: torch.device, trust_remote_code: bool) -> Any:
    """A checkpoint's model, in evaluation mode, frozen, its buffers on `device` and no weight in memory.

    Args:
        folder: holds the configuration.
        shards: its tensors.
        dtype: of the parameters; `auto` is the configuration's, else that of the first tensor.
        device: where it will run.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        CulnigError: the configuration cannot be used, or is of a quantised checkpoint.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None) is not None:
            raise CulnigError(
                f"{folder} is a quantised checkpoint, which cannot be streamed; load it whole, or stream the original"
            )
        with without_weights():
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=_dtype(config, shards, dtype), trust_remote_code=trust_remote_code
            )
    except CulnigError:
        raise
    except Exception as error:  # transformers raises a dozen unrelated types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CulnigError(f"cannot build the model of {folder} ({reason[0][:300]}); is it a causal decoder?") from error
    model.config._name_or_path = str(folder)
    _keep_in_float32(model)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model.requires_grad_(False).eval()


def _keep_in_float32(model: Any) -> None:
    """What loading in half precision leaves in float32, parameters and buffers, as a router's correction of scores."""
    if model.dtype not in (torch.float16, torch.bfloat16):
        return
    names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if model.dtype == torch.float16:
        names |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, module in model.named_modules() if names else ():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or not any(part in f"{path}.{name}" for part in names):
                    continue
                wide = tensor.detach().float()
                held[name] = nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide


def _dtype(config: Any, shards: Shards, dtype: str) -> torch.dtype:
    """As loading decides: what was asked for, else the configuration's, else the first tensor's."""
    # Reading the old name warns in new versions, so it is read where the new one is missing.
    named: Any = config.dtype if hasattr(config, "dtype") else getattr(config, "torch_dtype", None)
    if dtype != "auto":
        named = dtype
    if isinstance(named, str):
        named = getattr(torch, named)
    if isinstance(named, torch.dtype):
        return named
    floats = [entry.dtype for entry in shards.entries.values() if entry.dtype in ("F64", "F32", "F16", "BF16")]
    if not floats:
        raise CulnigError(f"{shards.folder} holds no floating-point tensor; is it a model's checkpoint?")
    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[floats[0]]


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Every parameter registered inside the block moves to the meta device before anything is written to it.

    Buffers stay real, because nothing but the module's own constructor knows what those hold that no checkpoint
    saves (rotary frequencies, an embedding's scale).
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
