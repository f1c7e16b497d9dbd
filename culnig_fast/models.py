"""Loads checkpoints: a folder, a hub id, or the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.loaded import check_loaded

EMBEDDED = "demo"
"""The name under which the embedded model is loaded."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a checkpoint that also sees or hears has beside weights and tokenizer."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


def embedded_folder(part: str) -> Path:
    """The folder `model` or `data` of the embedded model."""
    return Path(str(resources.files("culnig_fast.demo"))) / part


def local_folder(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, only: Sequence[str] = ()
) -> Path:
    """The folder of a checkpoint: a local one as it is, the embedded one, or a hub's, fetched if need be.

    `only` fetches files of these names alone.

    Raises:
        CulnigError: there is no such folder, and the hub cannot be reached or has none of that name.
    """
    if name == EMBEDDED:
        return embedded_folder("model")
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    wanted = list(only) or ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"] + (
        ["*.py"] if trust_remote_code else []
    )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CulnigError(f"cannot fetch {name} from the hub ({reason[0][:300]}); name a checkpoint folder") from error


def processor_files(name: str) -> list[Path]:
    """The checkpoint's `PROCESSOR_FILES`; a model of text alone has none.

    Raises:
        CulnigError: as `local_folder`.
    """
    folder = local_folder(name, only=PROCESSOR_FILES)
    return [folder / file for file in PROCESSOR_FILES if (folder / file).is_file()]


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint folder, without its weights; CulnigError when it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # as in load_model
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CulnigError(f"cannot load the tokenizer of {folder} ({reason[0][:300]}); is it complete?") from error


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    tensor_parallel: bool = False,
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer; one that also sees, where there is no other.

    Args:
        name: a checkpoint folder, a hub id, or `demo` for the embedded model.
        dtype: `auto` keeps what the checkpoint holds.
        device: where to put it; None means the first GPU, or the CPU where there is none; `auto` spreads it over all
            GPUs, and what does not fit over the CPU and the disk (transformers' `device_map`, by accelerate).
        trust_remote_code: run code that comes with the checkpoint.
        tensor_parallel: divide the weights among the processes of the job by transformers' plan for the model; each
            has a card of its own, or all run on CPUs.

    Raises:
        CulnigError: no such checkpoint, a broken one or one that lacks some of the model's weights, an unknown dtype
            or device, or a model without such a plan.

    Warns:
        CulnigWarning: the checkpoint holds tensors for which the model has no place.
    """
    import torch
    from transformers import AutoTokenizer

    from culnig_fast.divided import division_of

    if dtype not in DTYPES:
        raise CulnigError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    path = str(embedded_folder("model")) if name == EMBEDDED else name
    if not Path(path).exists() and (path.count("/") != 1 or path.startswith((".", "/"))):
        raise CulnigError(f"no checkpoint folder {name}; give a folder, a hub id or {EMBEDDED!r}")
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in Path(path).glob(pattern))
        if pickled:
            raise CulnigError(
                f"{name} holds {pickled[0]}, pickled weights, which could run code and are never loaded; save the "
                "model as safetensors where it was made (save_pretrained does)"
            )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spread = device == "auto"
    if tensor_parallel and spread:
        raise CulnigError("device 'auto' is for one process and its cards, tensor parallel for several; leave out one")
    try:
        target = torch.device("cpu" if spread else device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise CulnigError(f"cannot use device {device!r} ({str(error).splitlines()[0]}); try cpu") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        model = _whole_model(
            path,
            name,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **(_tensor_parallel() if tensor_parallel else {"device_map": "auto"} if spread else {}),
        )
    except CulnigError:
        raise
    except Exception as error:  # transformers, safetensors and the hub client raise a dozen unrelated types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "is it a whole safetensors checkpoint?"
        if tensor_parallel:
            remedy += " Does the number of processes divide its heads and its vocabulary?"
        raise CulnigError(f"cannot load {name} ({reason[0][:300]}); {remedy}") from error
    if tensor_parallel and division_of(model) is None:
        raise CulnigError(
            f"transformers has no tensor-parallel plan for {type(model).__name__}; divide the samples instead "
            "(torchrun alone does), or spread the model with --device auto"
        )
    return (model if spread or tensor_parallel else model.to(target)).eval(), tokenizer


def _whole_model(path: str, name: str, **options: Any) -> Any:
    """The model of a checkpoint, every weight of it from there; `options` of transformers' `from_pretrained`.

    An adapter's folder gives its base model with the adapter in it. transformers accounts for the adapter alone there,
    so the two are loaded one after the other.

    Raises:
        CulnigError: weights are missing.
        Exception: whatever transformers raises.
    """
    from transformers.utils.import_utils import is_peft_available
    from transformers.utils.peft_utils import find_adapter_config_file

    adapter = find_adapter_config_file(path) if is_peft_available() else None
    if adapter is None:
        model, info = _auto_class(path, options["trust_remote_code"]).from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        check_loaded(name, model, info)
        return model
    if (Path(adapter).parent / "config.json").is_file():
        raise CulnigError(
            f"{name} holds a model and an adapter in one folder, where missing weights of the model would not be seen; "
            "move the adapter to a folder of its own, or merge it into the model (peft's merge_and_unload)"
        )
    base = str(read_json(adapter)["base_model_name_or_path"])
    model = _whole_model(base, base, **options)
    found = model.load_adapter(path)
    if found is not None:  # before transformers 5 it gave no account
        check_loaded(name, model, found.to_dict())
    return model


def _auto_class(path: str, trust_remote_code: bool) -> Any:
    """transformers' way of loading the checkpoint: as a causal model, or as one that also sees where it knows no other.

    Most configurations of models that see have no causal class; the text decoder in them is one all the same.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    known = [type(config) in kind._model_mapping for kind in (AutoModelForCausalLM, AutoModelForImageTextToText)]
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return AutoModelForImageTextToText if known == [False, True] and not own_code else AutoModelForCausalLM


def _tensor_parallel() -> dict[str, Any]:
    """How this version of transformers is asked to divide weights."""
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    except (ImportError, TypeError):  # before 5.17
        return {"tp_plan": "auto"}
