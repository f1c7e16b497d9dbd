"""The engine and the benchmark on a GPU that is none: all on one device, no waits in the loop, the scores of a CPU."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from each_batch import around_each_batch
from simulated_gpu import GPU, SimulatedGpu, on_gpu
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import attribution_speed
from harness import clock, kernel_speed, roofs, rounds

pytestmark = [
    pytest.mark.usefixtures("interpreter"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the other tests run on it"),
]

TOKENIZER, QUESTIONS = make_tokenizer(), make_questions(6)
FUSED = ["llama", "qwen3", "gemma3", "phi3"]
"""Plain; norms of q and k; norms after each part and masks; joined projections."""
TAPS = ["llama", "gemma2", "phi3", "opt_plain", "gpt2_conv1d_fused", "qwen3_moe"]


def attributed(model: Any, **options: Any) -> np.ndarray:
    return cf.attribute(model, TOKENIZER, QUESTIONS, **{"batch_tokens": 40, "progress": False, **options}).totals


def agree(got: Any, expected: Any, tolerance: float) -> None:
    scale = np.abs(np.asarray(expected)).max()
    assert scale > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("family", TAPS)
def test_taps(family: str) -> None:
    expected = attributed(families.build(family), path="taps", control=True)
    with SimulatedGpu():
        got = attributed(on_gpu(families.build(family)), path="taps", control=True)
    assert np.array_equal(got, expected)  # a maximum rounds nothing, and the sums over samples are of one order


@pytest.mark.parametrize("family", FUSED)
def test_fused_layers(family: str) -> None:
    expected = attributed(families.build(family), path="taps")
    with SimulatedGpu():
        got = attributed(on_gpu(families.build(family)), path="fused")
    agree(got, expected, 1e-5)


@pytest.mark.parametrize(
    ("family", "path"),
    [("llama", "fused"), ("llama", "taps"), ("gemma3", "fused"), ("gemma3", "taps"), ("qwen3_moe", "taps")],
)
def test_the_host_never_waits_while_a_batch_is_scored(family: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the batch's making to its last accumulation; tests/kernels/test_no_wait.py asks a real GPU."""
    waited: list[list[str]] = []
    # Experts' products are asked for at once in bfloat16.
    monkeypatch.setattr("culnig_fast.mixtures.experts.one_launch", lambda values, weight: values.device.type == "cuda")
    with SimulatedGpu() as gpu:

        @contextlib.contextmanager
        def watched() -> Iterator[None]:
            before = len(gpu.waits)
            yield
            waited.append(gpu.waits[before:])

        around_each_batch(monkeypatch, watched)
        attributed(on_gpu(families.build(family)), path=path, batch_tokens=10)
    assert len(waited) > 2
    assert waited == [[]] * len(waited)


def test_streamed_layers(tmp_path: Path) -> None:
    model = families.build("gemma3")
    model.save_pretrained(tmp_path)
    options = {"batch_tokens": 40, "progress": False}
    with SimulatedGpu():
        got = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, device=str(GPU), **options).totals
    agree(got, attributed(model), 1e-5)


def instances(model: Any, neurons: cf.NeuronSet) -> Any:
    return cf.record_instances(model, TOKENIZER, QUESTIONS, neurons, progress=False).scores


def suppressed(model: Any, neurons: cf.NeuronSet) -> Any:
    with cf.suppress(model, neurons):
        return cf.evaluate(model, TOKENIZER, QUESTIONS, progress=False).probability


def baked(model: Any, neurons: cf.NeuronSet) -> Any:
    return cf.evaluate(cf.bake(model, neurons), TOKENIZER, QUESTIONS, progress=False).probability


def ablated(model: Any, neurons: cf.NeuronSet) -> Any:
    return cf.ablate(model, TOKENIZER, QUESTIONS, neurons, progress=False).effects


def counted(model: Any, neurons: cf.NeuronSet) -> Any:
    return cf.count_activations(model, TOKENIZER, QUESTIONS, progress=False).means


def integrated(model: Any, neurons: cf.NeuronSet) -> Any:
    return cf.integrated_gradients(model, TOKENIZER, QUESTIONS, steps=2, progress=False).totals


def normed(model: Any, neurons: cf.NeuronSet) -> Any:
    return cf.weight_norms(model).totals


@pytest.mark.parametrize("work", [instances, suppressed, baked, ablated, counted, integrated, normed])
def test_what_users_do_with_a_model(work: Callable[[Any, cf.NeuronSet], Any]) -> None:
    model = families.build("llama")
    layout = cf.discover(model).layout()
    neurons = cf.NeuronSet.from_flat(layout, np.random.default_rng(0).permutation(layout.size)[:12])
    with SimulatedGpu():
        got = work(on_gpu(families.build("llama")), neurons)
    agree(got, work(model, neurons), 1e-5)


def test_any_module() -> None:
    ids = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([7, 4, 6])

    def scores(model: Any, device: torch.device) -> torch.Tensor:
        with cf.ModuleAttributor(model, ["model.layers.0.mlp.gate_proj", "model.layers.1.self_attn.q_proj"]) as found:
            logits = model(input_ids=ids.to(device)).logits
            last = logits[torch.arange(3, device=device), lengths.to(device) - 1]
            found.backward(last.log_softmax(-1)[:, 5], lengths=lengths.to(device))
            return torch.cat([scores.flatten().cpu() for scores in found.by_path().values()])

    with SimulatedGpu():
        got = scores(on_gpu(families.build("llama")), GPU)
    agree(got, scores(families.build("llama"), torch.device("cpu")), 1e-6)


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and others are checked and timed, and every kernel; the figures mean nothing."""
    monkeypatch.setitem(roofs.SIZES, "cuda", 32)
    monkeypatch.setitem(roofs.COPIED, "cuda", 1024)
    monkeypatch.setattr(clock, "_BUSY_BYTES", 1024)
    monkeypatch.setattr(rounds, "_LEAST_SECONDS", 0.0)
    sizes = {
        "_SAMPLES": 3,
        "_LENGTH": 5,
        "_GROUPS": 2,
        "_HIDDEN": 32,
        "_COLUMNS": 48,
        "_HEADS": 2,
        "_KEY_HEADS": 1,
        "_HEAD_DIM": 8,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(kernel_speed, name, value)
    monkeypatch.setattr(kernel_speed, "_REPEATS", 2)
    file, methods = tmp_path / "out.json", ["bare", "hooks", "kernels", "fused"]
    micro = ["--shape", "micro", "--tokens", "20", "--length", "9", "--repeats", "1"]
    with SimulatedGpu():
        assert attribution_speed.main(["--device", str(GPU), *micro, "--methods", *methods, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert {row["method"]: row["status"] for row in document["rows"]} == dict.fromkeys(methods, "timed")
    assert len(document["kernels"]) == 12
    assert all(row["gb_per_s"] > 0 and not row["note"] for row in document["kernels"]), document["kernels"]


def test_devices_may_not_be_mixed() -> None:
    with SimulatedGpu():
        there, here = torch.ones(3, device=GPU), torch.ones(3)
        assert (there + 1).device == (there + torch.tensor(1.0)).device == GPU
        assert (there.cpu() + here).device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="of a tensor on the CPU"):
            here[torch.tensor([0], device=GPU)]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
    assert there.device.type == "cpu"


@pytest.mark.parametrize(
    ("waits", "work"),
    [
        (1, lambda x: x.sum().item()),
        (1, lambda x: bool((x > 0).all())),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x[torch.tensor([0])]),
        (1, lambda x: x.cpu()),
        (1, lambda x: x.copy_(torch.zeros(3))),
        (1, lambda x: x.tolist()),
        (1, lambda x: torch.tensor([1.0], device=x.device)),
        (0, lambda x: x.copy_(torch.zeros(3), non_blocking=True)),
        (0, lambda x: torch.zeros(3).to(x.device, non_blocking=True)),
        (0, lambda x: torch.where(x > 0, x, 0).sum()),
    ],
)
def test_what_the_host_waits_for_is_counted(waits: int, work: Callable[[torch.Tensor], Any]) -> None:
    with SimulatedGpu() as gpu:
        x = torch.ones(3, device=GPU)
        work(x)
    assert len(gpu.waits) == waits, gpu.waits
