"""Only what was chosen changes; the same seed gives the same bits, whole or interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from transformers import TrainerCallback
from wordlevel import make_questions, make_tokenizer

from culnig_fast.analysis.found_modules import find_modules
from culnig_fast.errors import CulnigError
from culnig_fast.finetuning import low_rank, training
from culnig_fast.finetuning.data import TrainingSet, training_set
from culnig_fast.finetuning.options import TrainingOptions
from culnig_fast.finetuning.training import kept_weights, train_modules

DATA = training_set(make_tokenizer(), make_questions(12))
OPTIONS = TrainingOptions(rate=1e-2, steps=4, batch=4, accumulate=1, save_steps=0)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    after = model.state_dict()
    assert after.keys() == before.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def options(**other: Any) -> TrainingOptions:
    return TrainingOptions(**{**OPTIONS.__dict__, **other})


def train(model: Any, names: tuple[str, ...], folder: Path, seed: int = 0, **other: Any) -> Any:
    return train_modules(model, DATA, names, options(**other), seed=seed, folder=folder, progress=False)


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "gemma3_multimodal", "gpt2_conv1d_fused"])
def test_only_the_chosen_modules_change(family: str, lora: int | None, tmp_path: Path) -> None:
    if lora:
        pytest.importorskip("peft", reason="the extra [train] is not installed")
    model = families.build(family)
    before = weights(model)
    module = next(m for m in find_modules(model) if (m.kind, m.layer_idx) == ("attention", 1))
    found = train(model, module.names, tmp_path, lora=lora)
    own = {name for name in before if name.rpartition(".")[0] in module.names}
    # A low-rank update leaves biases alone.
    expected = {name for name in own if not (lora and name.endswith("bias"))}
    # A query's or key's bias may have no gradient at all; weights have.
    assert {n for n in expected if n.endswith("weight")} <= changed(model, before) <= expected
    assert found.steps == 4 and found.samples == 12
    if lora is None:
        assert found.trained == module.parameters
    else:
        assert 0 < found.trained < module.parameters
    assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not hasattr(model, "peft_config")
    assert list(tmp_path.iterdir()) == []


def test_a_training_lowers_the_loss_and_its_seed_decides_it(tmp_path: Path) -> None:
    names = tuple(name for module in find_modules(families.build("llama")) for name in module.names)
    states, found = [], None
    for seed in (3, 3, 4):
        model = families.build("llama")
        found = train(model, names, tmp_path, seed, steps=30)
        states.append(weights(model))
    assert found is not None and [step for step, _ in found.losses] == [10, 20, 30]
    assert found.losses[-1][1] < 0.5 * found.losses[0][1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


class Killed(BaseException):
    pass


class Killer(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise Killed


@pytest.mark.parametrize(("family", "lora"), [("llama", None), ("llama", 2), ("qwen3_moe", 2)])
def test_an_interrupted_training_goes_on_to_the_same_bits(
    family: str, lora: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lora:
        pytest.importorskip("peft", reason="the extra [train] is not installed")
    names = find_modules(families.build(family))[1].names
    whole = families.build(family)
    train(whole, names, tmp_path / "whole", steps=7, save_steps=2, lora=lora)
    killed = families.build(family)
    make = training._trainer

    def with_killer(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(Killer)
        return trainer

    monkeypatch.setattr(training, "_trainer", with_killer)
    with pytest.raises(Killed):
        train(killed, names, tmp_path / "killed", steps=7, save_steps=2, lora=lora)
    monkeypatch.undo()
    # A checkpoint that was cut off: its last file is missing.
    (tmp_path / "killed" / "checkpoint-6").mkdir()
    resumed = families.build(family)
    calls = []
    monkeypatch.setattr(training, "answer_loss", lambda *a, f=training.answer_loss: calls.append(1) or f(*a))
    found = train(resumed, names, tmp_path / "killed", steps=7, save_steps=2, lora=lora)
    assert found.steps == 7
    assert len(calls) == 3  # updates 5, 6 and 7: from the checkpoint of update 4
    expected = weights(whole)
    assert changed(resumed, expected) == set()


class Stopper(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise Killed


def stopped_training(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], folder: Path, **other: Any) -> None:
    """Leave the checkpoint of update 2 in the folder."""
    make = training._trainer

    def with_stopper(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(Stopper)
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(training, "_trainer", with_stopper)
        with pytest.raises(Killed):
            train(families.build("llama"), names, folder, save_steps=2, **other)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("different", ["modules", "options", "seed", "data", "model"])
def test_another_trainings_checkpoint_is_refused(
    different: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = find_modules(families.build("llama"))[1].names
    stopped_training(monkeypatch, names, tmp_path)
    model = families.build("llama")
    other = {"names": names, "data": DATA, "options": options(), "seed": 0}
    if different == "modules":
        other["names"] = find_modules(model)[0].names
    elif different == "options":
        other["options"] = options(rate=2e-2)
    elif different == "seed":
        other["seed"] = 1
    elif different == "data":
        other["data"] = TrainingSet(DATA.token_ids[:-1], DATA.answers[:-1])
    else:
        with torch.no_grad():
            model.model.embed_tokens.weight[5] *= 2
    before = weights(model)
    with pytest.raises(CulnigError, match=rf"another training \(different: .*{different}.*\); finish that training"):
        train_modules(model, folder=tmp_path, progress=False, **other)
    assert changed(model, before) == set()


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = find_modules(families.build("llama"))[1].names
    stopped_training(monkeypatch, names, tmp_path)
    (tmp_path / "training.json").unlink()
    with pytest.raises(CulnigError, match="checkpoint-2 does not say of which training it is"):
        train(families.build("llama"), names, tmp_path)


def test_half_trained_weights_go_on_and_a_finished_training_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = find_modules(families.build("llama"))[1].names
    whole = families.build("llama")
    train(whole, names, tmp_path / "whole")
    stopped_training(monkeypatch, names, tmp_path / "stopped")
    half = families.build("llama")
    with torch.no_grad():
        half.get_submodule(names[0]).weight.zero_()
    train(half, names, tmp_path / "stopped", save_steps=2)
    assert changed(half, weights(whole)) == set()
    assert list((tmp_path / "stopped").iterdir()) == []


def state_beside_weights(model: Any) -> Any:
    return (
        model.config.to_dict(),
        [(module, {key: value for key, value in vars(module).items() if key != "training"}) for module in
         model.modules()],
        [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in model.modules()],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
    )  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("lora", [None, 2])
def test_a_training_leaves_no_trace_but_the_weights(lora: int | None, fails: bool, tmp_path: Path) -> None:
    if lora:
        pytest.importorskip("peft", reason="the extra [train] is not installed")
    model = families.build("llama")
    model.config.use_cache = True
    module = find_modules(model)[0]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).requires_grad_(False)
    before = state_beside_weights(model)
    for _ in range(2):
        if fails:
            with torch.no_grad():
                model.get_submodule(module.names[0]).weight[0, 0] = float("nan")
            with pytest.raises(CulnigError, match="the loss is nan"):
                train(model, module.names, tmp_path, lora=lora, checkpointing=True, bf16=True)
        else:
            train(model, module.names, tmp_path, lora=lora, checkpointing=True, bf16=True)
        after = state_beside_weights(model)
        assert after[0] == before[0] and after[2] == before[2]
        for (_, old), (_, new) in zip(before[1], after[1], strict=True):
            assert old.keys() == new.keys() and all(new[key] is old[key] for key in old)
        assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(after[3], before[3], strict=True))
        assert not model.is_gradient_checkpointing and not model.training


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    names = find_modules(families.build("llama"))[0].names
    states = []
    for batch, accumulate in ((6, 1), (2, 3)):
        model = families.build("llama", torch.float64)
        train(model, names, tmp_path, steps=3, batch=batch, accumulate=accumulate)
        states.append(weights(model))
    for name, value in states[0].items():
        # AdamW's first steps are of size `rate` whatever the gradient; the loss itself is float64 here.
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-5)


def test_checkpointed_activations_give_the_same_update(tmp_path: Path) -> None:
    names = find_modules(families.build("llama"))[0].names
    states = []
    for checkpointing in (False, True):
        model = families.build("llama")
        train(model, names, tmp_path, checkpointing=checkpointing)
        states.append(weights(model))
    assert all(torch.allclose(states[0][name], states[1][name], rtol=0, atol=1e-6) for name in states[0])


def test_kept_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    model = families.build("phi3")
    before = weights(model)
    names = find_modules(model)[3].names
    with kept_weights(model, names):
        train(model, names, tmp_path)
        assert changed(model, before)
    assert changed(model, before) == set()
    with pytest.raises(ZeroDivisionError), kept_weights(model, names):
        train(model, names, tmp_path)
        raise ZeroDivisionError
    assert changed(model, before) == set()


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    model = families.build("llama")
    names = find_modules(model)[1].names
    with torch.no_grad():
        model.get_submodule(names[0]).weight[0, 0] = float("nan")
    with pytest.raises(CulnigError, match="the loss is nan after 0 steps; lower the rate"):
        train(model, names, tmp_path)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CulnigError, match="no module 'model.layers.9.mlp.up_proj'"):
        train(families.build("llama"), ("model.layers.9.mlp.up_proj",), tmp_path)
    with pytest.raises(CulnigError, match="no module was chosen"):
        train(families.build("llama"), (), tmp_path)


def test_peft_that_adapts_something_else_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra [train] is not installed")
    model = families.build("llama")
    before = weights(model)
    # A suffix, as PEFT would take it for both layers, is no name here; neither is one that PEFT widens.
    with pytest.raises(CulnigError, match="no module 'mlp.up_proj'"):
        train(model, ("mlp.up_proj",), tmp_path, lora=2)
    adapted = model.model.layers[0].mlp.up_proj
    adapted.lora_A = None
    with pytest.raises(CulnigError, match="adapts other modules than those chosen"):
        low_rank._check_adapted(model, ("model.layers.1.mlp.up_proj",))
    del adapted.lora_A
    assert changed(model, before) == set()


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"rate": 0.0}, "rate is 0.0"), ({"rate": float("nan")}, "rate is nan"), ({"batch": 0}, "batch is 0"),
     ({"lora": 0}, "lora is 0"), ({"decay": -1.0}, "decay is -1"), ({"steps": 0}, "steps is 0")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(CulnigError, match=message):
        options(**setting).check()


@pytest.mark.parametrize(("library", "lora"), [("accelerate", None), ("peft", 2)])
def test_a_missing_library_is_one_sentence(library: str, lora: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == library else find(name, *a))
    with pytest.raises(CulnigError, match=rf"needs {library}, which is not installed; pip install 'culnig_fast\[train"):
        options(lora=lora).check()


def test_nothing_is_reported_or_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = families.build("llama")
    data = TrainingSet(DATA.token_ids, DATA.answers)
    head = model.get_output_embeddings()
    bar = training._Progress(True)
    trainer = training._trainer(model, head, data, OPTIONS, 0, tmp_path, bar)
    assert trainer.args.report_to == []
    assert not trainer.args.push_to_hub
    train(model, find_modules(model)[0].names, tmp_path, steps=12)
    assert capsys.readouterr().out == ""
    assert "wandb" not in sys.modules
