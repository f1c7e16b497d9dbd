"""Per-layer recomputation: the same bits, one score a neuron, less kept for backward, no trace left."""

from __future__ import annotations

import weakref
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.batch_scorer import BatchScorer
from culnig_fast.neurons import NeuronSite

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(14)
SITES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.act")


def score(model: Any, **options: Any) -> cf.ScoreTable:
    return cf.attribute(model, TOKENIZER, QUESTIONS, batch_tokens=24, progress=False, **options)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        *((family, "auto") for family in families.LISTED),
        *(
            (family, "taps")
            for family in ("llama", "phi3", "gemma3", "opt_plain", "cohere_parallel", "openai_gpt_lists")
        ),
    ],
)
def test_totals_keep_their_bits(family: str, path: str) -> None:
    model = families.build(family)
    options = {"sites": None if family in families.UNLISTED else SITES, "path": path}
    plain, recomputed = score(model, **options), score(model, recompute=True, **options)
    assert np.array_equal(plain.totals, recomputed.totals)
    assert np.array_equal(plain.probability, recomputed.probability)
    assert plain.metadata["fusion"] == recomputed.metadata["fusion"]
    assert (plain.metadata["recomputed"], recomputed.metadata["recomputed"]) == (False, True)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("path", ["auto", "taps"])
def test_each_site_is_added_once_a_batch(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[NeuronSite] = []
    whole = BatchScorer._add

    def count(self: Any, locations: Any, *rest: Any) -> None:
        added.extend(location.site for location in locations)
        whole(self, locations, *rest)

    monkeypatch.setattr(BatchScorer, "_add", count)
    model = families.build("qwen3")
    with cf.Attributor(model, path=path, recompute=True) as attributor:
        for _ in range(2):
            logits = attributor.forward(torch.tensor([[5, 6, 7], [8, 9, 9]]), torch.tensor([3, 2]))
            attributor.backward(logits[:, 4])
    assert sorted(map(str, added)) == sorted(map(str, attributor.layout.sites * 2))


class LiveBytes:
    """Bytes that autograd keeps for backward, each storage once: now, and at most."""

    def __init__(self) -> None:
        self._held: dict[int, list[int]] = {}
        self.peak = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        entry = self._held.setdefault(storage.data_ptr(), [0, storage.nbytes()])
        entry[0] += 1
        self.peak = max(self.peak, sum(size for count, size in self._held.values() if count))
        box = _Box(tensor.detach())  # an output with its graph would hold itself
        weakref.finalize(box, self._drop, storage.data_ptr())
        return box

    def _drop(self, address: int) -> None:
        self._held[address][0] -= 1
        if not self._held[address][0]:
            del self._held[address]


class _Box:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("path", ["auto", "taps"])
def test_less_is_kept_for_backward(path: str) -> None:
    """Eight layers: without recomputation all of them are held at once, with it one and the others' inputs."""
    config = transformers.LlamaConfig(**{**families._COMMON, "num_hidden_layers": 8})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    peaks = []
    for recompute in (False, True):
        with cf.Attributor(model, path=path, recompute=recompute) as attributor:
            live = LiveBytes()
            weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}  # joined by now
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, live=live, weights=weights: t if t.untyped_storage().data_ptr() in weights else live.pack(t),
                lambda box: box.tensor if isinstance(box, _Box) else box,
            ):
                logits = attributor.forward(torch.arange(64).view(1, 64), torch.tensor([64]))
                attributor.backward(logits[:, 4])
        peaks.append(live.peak)
    assert peaks[1] < 0.4 * peaks[0], peaks


def test_a_failing_backward_leaves_no_trace() -> None:
    model = families.build("llama")
    with (
        pytest.raises(cf.CulnigError, match=r"ran outside Attributor.backward"),
        cf.Attributor(model, recompute=True) as attributor,
    ):
        attributor.forward(torch.tensor([[5, 6, 7]]), torch.tensor([3])).sum().backward()
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
