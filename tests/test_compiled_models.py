"""Models that are compiled give what they give uncompiled, and are compiled again afterwards."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.finetuning.data import answer_loss, collate, training_set
from culnig_fast.generation import generate
from culnig_fast.uncompiled import uncompiled

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(6)
TOKENS = torch.tensor([[9, 12, 30, 5, 22]])
NEURONS = cf.NeuronSet(("mlp.gate_proj", "self_attn.v_proj", "mlp.act"), [0, 1, 1], [3, 2, 5], [1.0, 1.0, 1.0])


class Runs:
    """A backend of the compiler that counts what runs compiled."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.count += 1
            return graph.forward(*args)

        return run


def whole(model: Any, runs: Runs) -> Any:
    model.compile(backend=runs)
    return model


def wrapped(model: Any, runs: Runs) -> Any:
    return torch.compile(model, backend=runs)


def layer_by_layer(model: Any, runs: Runs) -> Any:
    for layer in model.model.layers:
        layer.compile(backend=runs)
    return model


def a_layer_replaced(model: Any, runs: Runs) -> Any:
    model.model.layers[0] = torch.compile(model.model.layers[0], backend=runs)
    return model


@pytest.fixture(params=[whole, wrapped, layer_by_layer])
def pair(request: pytest.FixtureRequest) -> Any:
    """A model, the same one compiled, which has run so, and the count of its compiled runs."""
    torch.compiler.reset()
    runs, model = Runs(), families.build("llama")
    compiled = request.param(copy.deepcopy(model), runs)
    with torch.no_grad():
        compiled(input_ids=TOKENS, use_cache=False)
    assert runs.count > 0
    return model, compiled, runs


def test_discovery_scores_and_evaluation_are_those_of_the_model_as_written(pair: Any) -> None:
    model, compiled, runs = pair
    before = runs.count
    assert [x.site for x in cf.discover(compiled).locations] == [x.site for x in cf.discover(model).locations]
    for path in ("taps", "auto"):
        tables = [cf.attribute(m, TOKENIZER, QUESTIONS, path=path, progress=False) for m in (model, compiled)]
        assert np.array_equal(tables[0].totals, tables[1].totals)
    found = [cf.evaluate(m, TOKENIZER, QUESTIONS, progress=False) for m in (model, compiled)]
    assert np.array_equal(found[0].probability, found[1].probability)
    recomputed = cf.attribute(compiled, TOKENIZER, QUESTIONS, path="taps", recompute=True, progress=False)
    assert np.abs(recomputed.totals - tables[0].totals).max() <= 1e-5 * np.abs(tables[0].totals).max()
    assert generate(compiled, TOKENIZER, QUESTIONS, max_new_tokens=3, progress=False) == generate(
        model, TOKENIZER, QUESTIONS, max_new_tokens=3, progress=False
    )
    assert runs.count == before
    with torch.no_grad():
        compiled(input_ids=TOKENS, use_cache=False)
    assert runs.count > before


def test_interventions_act_and_end(pair: Any) -> None:
    model, compiled, _ = pair
    with torch.no_grad():
        plain = model(input_ids=TOKENS, use_cache=False).logits
        with cf.suppress(model, NEURONS):
            expected = model(input_ids=TOKENS, use_cache=False).logits
        assert not torch.equal(plain, expected)
        of_modules = cf.ModuleNeurons.of_decoder(model, NEURONS)
        with cf.suppress(compiled, NEURONS):
            assert torch.equal(compiled(input_ids=TOKENS, use_cache=False).logits, expected)
        target = getattr(compiled, "_orig_mod", compiled)
        with cf.suppress(target, of_modules):
            assert torch.equal(compiled(input_ids=TOKENS, use_cache=False).logits, expected)
        assert torch.equal(compiled(input_ids=TOKENS, use_cache=False).logits, plain)
        baked = cf.bake(compiled, NEURONS)
        assert torch.equal(baked(input_ids=TOKENS, use_cache=False).logits, expected)


def test_a_loss_is_of_the_last_position(pair: Any) -> None:
    model, compiled, _ = pair
    batch = collate([training_set(TOKENIZER, QUESTIONS)[i] for i in range(4)])
    with torch.no_grad():
        losses = [answer_loss(m, m.get_output_embeddings(), batch) for m in (model, compiled)]
    assert torch.equal(*losses)


def test_a_compiled_layer_in_the_place_of_one_is_found() -> None:
    torch.compiler.reset()
    model = families.build("llama")
    compiled = a_layer_replaced(copy.deepcopy(model), Runs())
    tables = [cf.attribute(m, TOKENIZER, QUESTIONS, path="taps", progress=False) for m in (model, compiled)]
    assert np.array_equal(tables[0].totals, tables[1].totals)


def is_compiled(function: Callable[[torch.Tensor], torch.Tensor], runs: Runs) -> bool:
    before = runs.count
    function(torch.ones(3))
    return runs.count > before


def test_blocks_of_two_threads_may_end_in_any_order() -> None:
    torch.compiler.reset()
    runs = Runs()
    double = torch.compile(lambda x: x * 2 + 1, backend=runs)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with uncompiled():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with uncompiled():
        thread.start()
        entered.wait()
        with uncompiled():
            assert not is_compiled(double, runs)
    assert not is_compiled(double, runs)  # the other thread's block is still open
    leave.set()
    thread.join()
    assert is_compiled(double, runs)
    with pytest.raises(ZeroDivisionError), uncompiled():
        raise ZeroDivisionError
    assert is_compiled(double, runs)
