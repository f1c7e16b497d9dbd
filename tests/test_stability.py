"""The public surface is what the record says, importing it is light, and using it leaves nothing behind."""

from __future__ import annotations

import difflib
import logging
import pkgutil
import random
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import api
import families
import matplotlib
import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(12)

IMPORTED_LIGHTLY = """
import sys
import culnig_fast as cf
heavy = ("torch", "transformers", "numpy", "pandas", "scipy", "datasets", "matplotlib", "triton", "typer")
print([name for name in heavy if name in sys.modules])
import torch
def refuse(*args, **kwargs):
    raise SystemExit("CUDA was initialised")
torch.cuda.init = torch.cuda._lazy_init = refuse
for name in cf.__all__:
    getattr(cf, name)
print(torch.cuda.is_initialized())
"""


def test_public_names_and_signatures_are_those_of_the_record() -> None:
    found, recorded = api.describe().splitlines(), api.RECORD.read_text(encoding="utf-8").splitlines()
    changes = difflib.unified_diff(recorded, found, "tests/api.txt", "culnig_fast", lineterm="", n=0)
    assert found == recorded, (
        "the public API changed; users rely on it. If the change is meant, run `python tests/api.py --write`, say "
        "it in CHANGELOG.md, and keep what was there working as the deprecation policy says:\n" + "\n".join(changes)
    )


def test_type_checkers_see_the_same_names() -> None:
    written = api.STUB.read_text(encoding="utf-8")
    assert written == api.stub(), "the names changed; run `python tests/api.py --write`, which writes __init__.pyi"


def test_no_public_name_is_also_a_module() -> None:
    """Importing a submodule sets it as the package's attribute, which would hide the public name."""
    modules = {info.name for info in pkgutil.iter_modules(cf.__path__)}
    assert modules & set(cf.__all__) == set()


def test_import_is_light_and_leaves_the_gpu_alone() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED_LIGHTLY], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["[]", "False", ""], done.stdout + done.stderr


def test_two_models_in_two_threads_give_what_they_give_one_after_another(tmp_path: Path) -> None:
    """Neither a table nor an intervention of one thread reaches the other's model."""
    names = ("llama", "qwen3")
    models = {name: families.build(name) for name in names}
    together = threading.Barrier(len(names), timeout=60)

    def work(name: str, wait: bool, run: int) -> tuple[Any, ...]:
        if wait:
            together.wait()
        saved = tmp_path / f"{name}-{wait}-{run}"
        table = cf.attribute(models[name], TOKENIZER, QUESTIONS, progress=False, batch_tokens=16, checkpoint=saved)
        chosen = cf.select_general(table, None, None, mlp_share=0.3, attention_share=0.3)
        with cf.suppress(models[name], chosen):
            result = cf.evaluate(models[name], TOKENIZER, QUESTIONS, progress=False)
        return table.totals.tobytes(), tuple(chosen), result.probability.tobytes()

    alone = {name: work(name, False, 0) for name in names}
    assert alone["llama"] != alone["qwen3"]
    with ThreadPoolExecutor(len(names)) as pool:
        for run in range(5):
            futures = {name: pool.submit(work, name, True, run) for name in names}
            assert {name: future.result() for name, future in futures.items()} == alone


def surroundings() -> dict[str, Any]:
    """What a library could change for everybody else in the process."""
    patched = {
        "attention": F.scaled_dot_product_attention,
        "softmax": F.softmax,
        "linear": F.linear,
        "tensor methods": tuple(vars(torch.Tensor).items()),
        "module methods": tuple(vars(torch.nn.Module).items()),
        "linear methods": tuple(vars(torch.nn.Linear).items()),
        "llama": tuple(
            (cls, *vars(cls).items())
            for cls in vars(transformers.models.llama.modeling_llama).values()
            if isinstance(cls, type) and cls.__module__.endswith("modeling_llama")
        ),
        "llama functions": tuple(vars(transformers.models.llama.modeling_llama).items()),
        "attention functions": tuple(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.items()),
        "global hooks": tuple(
            len(hooks) for name, hooks in vars(torch.nn.modules.module).items() if name.startswith("_global_") and hooks
        ),
    }
    state = {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "torch generator": torch.random.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),
        "python generator": random.getstate(),
        "numpy errors": np.geterr(),
        "figures": dict(matplotlib.rcParams),
        "backend": matplotlib.rcParams["backend"],
        "warnings": tuple(warnings.filters),
        "log levels": (
            logging.root.level,
            logging.getLogger("transformers").level,
            transformers.logging.get_verbosity(),
        ),
        "signals": tuple(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)),
        "excepthook": sys.excepthook,
    }
    return {**patched, **state}


def of_instances(model: Any) -> list[Any]:
    """What each module has of its own: a `forward` of an instance hides its class's, parameters may be replaced."""
    return [
        (type(module), sorted(vars(module)), [(name, id(value)) for name, value in module._parameters.items()],
         len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for module in model.modules()
    ]  # fmt: skip


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("path", ["auto", "taps"])
def test_nothing_is_left_behind(path: str, grad: bool) -> None:
    model = families.build("llama")
    cf.attribute(model, TOKENIZER, QUESTIONS, path=path, progress=False)  # what loads once has been loaded
    with torch.set_grad_enabled(grad):
        before, own = surroundings(), of_instances(model)
        table = cf.attribute(model, TOKENIZER, QUESTIONS, path=path, progress=False)
        chosen = cf.select_general(table, None, None, mlp_share=0.3)
        for intervention in (cf.suppress, cf.enhance):
            with intervention(model, chosen):
                cf.evaluate(model, TOKENIZER, QUESTIONS, progress=False)
        cf.bake(model, chosen)
        cf.integrated_gradients(model, TOKENIZER, QUESTIONS[:2], steps=2, progress=False)
        cf.count_activations(model, TOKENIZER, QUESTIONS, progress=False)
        after = surroundings()
    assert [name for name in before if after[name] != before[name]] == []
    assert of_instances(model) == own


@pytest.mark.parametrize("path", ["auto", "taps"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_get_the_same_scores(mode: Any, path: str) -> None:
    model = families.build("llama")
    usual = cf.attribute(model, TOKENIZER, QUESTIONS, path=path, progress=False)
    with mode():
        table = cf.attribute(model, TOKENIZER, QUESTIONS, path=path, progress=False)
    assert np.array_equal(table.totals, usual.totals)


@pytest.mark.parametrize("where", ["scoring", "asking", "inside the block", "evaluating"])
def test_nothing_is_left_behind_when_something_raises(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build("llama")
    neurons = cf.NeuronSet(("mlp.gate_proj",), [0], [1], [1.0])  # type: ignore[arg-type]
    cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("on purpose")

    before, own = surroundings(), of_instances(model)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="on purpose"):
        if where == "scoring":
            patch.setattr("culnig_fast.batch_scorer.BatchScorer._add", fail)
            cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
        elif where == "asking":
            with cf.Attributor(model) as attributor:
                attributor.forward(torch.tensor([[5, 6]]), torch.tensor([2]))
                fail()
        elif where == "inside the block":
            with cf.suppress(model, neurons):
                fail()
        else:
            patch.setattr("culnig_fast.last_position.LastPosition.logits", fail)
            cf.evaluate(model, TOKENIZER, QUESTIONS, progress=False)
    after = surroundings()
    assert [name for name in before if after[name] != before[name]] == []
    assert of_instances(model) == own
