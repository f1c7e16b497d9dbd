"""What is in memory, how often it is read, and that nothing stays."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import LAYERS, save
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.streaming import attributor as attributor_module
from culnig_fast.streaming.attributor import StreamedAttributor
from culnig_fast.streaming.model import StreamedModel, open_streamed
from culnig_fast.streaming.shards import Shards

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(20)
OPTIONS: dict[str, Any] = {"batch_tokens": 24, "progress": False}


def layers_in_memory(model: Any) -> list[int]:
    layers = model.get_decoder().layers
    return [i for i, layer in enumerate(layers) if any(not parameter.is_meta for parameter in layer.parameters())]


@pytest.mark.parametrize("path", ["auto", "taps"])
def test_one_layer_is_in_memory_at_a_time(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "llama")
    seen: list[list[int]] = []
    model: list[Any] = []
    whole = StreamedAttributor._go_back

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        model[:] = [self.architecture.model]
        seen.append(layers_in_memory(self.architecture.model))
        whole(self, *args, **kwargs)

    monkeypatch.setattr(StreamedAttributor, "_go_back", watched)
    cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, path=path, **OPTIONS)
    assert list(dict.fromkeys(map(tuple, seen))) == [(i,) for i in reversed(range(LAYERS))]
    assert layers_in_memory(model[0]) == []
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model[0].modules())


def test_each_weight_is_read_twice_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what finding the neurons reads: the first layer of each kind, embedding and head."""
    save(tmp_path, "llama")
    counts: collections.Counter[str] = collections.Counter()
    whole = Shards.read_into
    monkeypatch.setattr(
        Shards, "read_into", lambda self, name, tensor: (counts.update([name]), whole(self, name, tensor))[1]
    )
    opened: list[collections.Counter[str]] = []
    opening = open_streamed

    def watched(*args: Any, **kwargs: Any) -> StreamedModel:
        result = opening(*args, **kwargs)
        opened.append(counts.copy())
        return result

    monkeypatch.setattr("culnig_fast.streaming.attribution.open_streamed", watched)
    cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, stream_tokens=60, **OPTIONS)
    read = counts - opened[0]
    blocks = read["model.embed_tokens.weight"]
    assert blocks > 1
    for name, times in read.items():
        # Once more to try whether the last layer may be cut to its last position.
        tried = name == "lm_head.weight" or name.startswith(f"model.layers.{LAYERS - 1}.")
        assert times == blocks * (2 if name.startswith("model.layers.") else 1) + tried, name
    assert not any(name.startswith(f"model.layers.{LAYERS - 1}.") for name in opened[0])


def test_a_failure_leaves_no_weight_and_no_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "llama")
    streamed = open_streamed(tmp_path)
    model = streamed.architecture.model

    def fail(*args: Any) -> Any:
        raise RuntimeError("on purpose")

    batch = attributor_module.Batch(torch.tensor([[5, 6, 7]]), torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="on purpose"), StreamedAttributor(streamed) as attributor:
        attributor.run_block([batch], fail)
    assert layers_in_memory(model) == []
    assert model.lm_head.weight.is_meta and model.model.embed_tokens.weight.is_meta
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


def test_misuse_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "olmo2")
    attributor = StreamedAttributor(open_streamed(tmp_path))
    with pytest.raises(cf.CulnigError, match="with"):
        attributor.run_block([], lambda *args: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(cf.CulnigError, match="run_block"):
        attributor.forward(torch.tensor([[5]]), torch.tensor([1]))
    with pytest.raises(cf.CulnigError, match="can be fused"):
        cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, path="fused", **OPTIONS)


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np, torch, transformers
from wordlevel import make_questions, make_tokenizer
import culnig_fast as cf

def resident(name):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))

torch.set_num_threads(1)
tokenizer, questions = make_tokenizer(), make_questions(20)
# Once on a small model: what the libraries load when first used is none of the weights' memory.
cf.attribute_streamed(sys.argv[1], tokenizer, questions, progress=False)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS:")
cf.attribute_streamed(sys.argv[2], tokenizer, questions, progress=False)
print(json.dumps(1024 * (resident("VmHWM:") - before)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read and reset through /proc")
def test_peak_memory_is_a_fraction_of_the_weights(tmp_path: Path) -> None:
    import families
    import transformers

    small, large = tmp_path / "small", tmp_path / "large"
    save(small, "llama")
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 16}
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**{**families._COMMON, **sizes}))
    model.save_pretrained(large)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    del model
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak = json.loads(done.stdout.splitlines()[-1])
    assert 0 < peak < 0.5 * weights, (peak, weights)
