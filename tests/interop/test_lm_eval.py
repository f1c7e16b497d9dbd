"""lm-evaluation-harness: the wrapper answers as the baked checkpoint does, and gives the model back."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import invoke

import culnig_fast as cf
from culnig_fast.interop import lm_eval as wrapper
from culnig_fast.models import load_model

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install culnig_fast[lm-eval]"
)

WORDS = ("fidazi", "lukiru")
ROUNDING = 1e-5
"""Of log-likelihoods of about -1: float32 sums of a few hundred terms, in batches that are formed alike."""


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    """The embedded model, and its tokenizer with an end of text, which the harness cannot do without."""
    model, tokenizer = load_model("demo", device="cpu")
    tokenizer.eos_token = "<|end|>"
    return model, tokenizer


@pytest.fixture(scope="module")
def chosen() -> cf.NeuronSet:
    """Every eighth gate neuron and value of the first two layers: enough to change every answer."""
    names = ("mlp.gate_proj",) * 128 + ("self_attn.v_proj",) * 16
    layers = [0] * 64 + [1] * 64 + [0] * 8 + [1] * 8
    columns = [8 * i for i in range(64)] * 2 + [8 * i for i in range(8)] * 2
    return cf.NeuronSet(names, layers, columns, [0.0] * len(names))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task of the harness for each kind of request, on a local file, found without the harness's own thousands."""
    tmp_path = tmp_path_factory.mktemp("harness")
    rows = [{"text": f"Which letter stands before {w}?\n\nA. fidazi\nB. lukiru\n\nAnswer:", "gold": w} for w in WORDS]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "rows.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    kinds: dict[str, dict[str, Any]] = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_choice": ["A", "B", *WORDS],
            "doc_to_target": "{{0}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        "write": {
            "output_type": "generate_until",
            "doc_to_target": "{{gold}}",
            "generation_kwargs": {"max_gen_toks": 4, "until": ["<|end|>"]},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **kind}), encoding="utf-8")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def untouched(demo: Any, tasks: Any) -> tuple[torch.Tensor, list[str], dict[str, Any]]:
    """What the harness's own class makes of the model."""
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = demo
    return run(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks)


def run(model: Any, tasks: Any, **options: Any) -> tuple[torch.Tensor, list[str], dict[str, Any]]:
    """(log-likelihoods [questions · choices], texts, the harness's facts about the run)."""
    found = lm_eval.simple_evaluate(
        model=model, tasks=["choose", "write"], task_manager=tasks, bootstrap_iters=0, log_samples=True, **options
    )
    samples = [found["samples"][name] for name in ("choose", "write")]
    values = [choice[0][0] for sample in samples[0] for choice in sample["resps"]]
    return torch.tensor(values), [sample["resps"][0][0] for sample in samples[1]], found["config"]


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_the_wrapper_answers_as_the_baked_checkpoint(
    factor: float, demo: Any, chosen: cf.NeuronSet, tasks: Any, untouched: Any, tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = demo
    cf.bake(model, chosen, factor).save_pretrained(tmp_path / "baked")
    plain = {"tokenizer": tokenizer, "device": "cpu", "batch_size": 4}
    want, texts, _ = run(HFLM(pretrained=str(tmp_path / "baked"), **plain), tasks)
    with cf.harness_model("demo", chosen, factor, **plain) as wrapped:
        got, written, facts = run(wrapped, tasks)
    assert torch.allclose(got, want, rtol=0, atol=ROUNDING)
    assert written == texts
    assert (got - untouched[0]).abs().min() > 100 * ROUNDING, "every log-likelihood must change"
    assert factor or written != untouched[1]
    assert (facts["neurons"], facts["neurons_count"], facts["neurons_factor"]) == (None, len(chosen), factor)


def test_by_its_name_and_arguments_as_text(
    demo: Any, chosen: cf.NeuronSet, tasks: Any, untouched: Any, tmp_path: Path
) -> None:
    """What `--model culnig --model_args …` comes to; a factor of 1 changes nothing."""
    _, tokenizer = demo
    chosen.save(tmp_path / "set.json")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert wrapper.register() is wrapper.register() is lm_eval.api.registry.get_model(wrapper.NAME)
    text = f"pretrained=demo,tokenizer={tmp_path / 'tokenizer'},neurons={tmp_path / 'set.json'},factor=1"
    got, written, facts = run(wrapper.NAME, tasks, model_args=text, device="cpu", batch_size=4)
    assert torch.allclose(got, untouched[0], rtol=0, atol=ROUNDING)
    assert written == untouched[1]
    assert facts["neurons_factor"] == 1.0
    assert facts["neurons"] == str(tmp_path / "set.json")


def test_a_closed_one_gives_the_model_back_and_answers_no_more(demo: Any, chosen: cf.NeuronSet) -> None:
    model, tokenizer = demo
    ids = torch.tensor([[5, 9, 12]])
    with torch.no_grad():
        before = model(ids).logits
        wrapped = cf.harness_model(model, chosen, tokenizer=tokenizer)
        assert not torch.equal(wrapped._model_call(ids), before)
        wrapped.close()
        wrapped.close()
        assert hooks(model) == 0
        assert torch.equal(model(ids).logits, before)
    for call in (
        lambda: wrapped._model_call(ids),
        lambda: wrapped._model_generate(ids, max_length=5, stop=[]),
        wrapped.__enter__,
    ):
        with pytest.raises(cf.CulnigError, match="was closed"):
            call()
    with pytest.raises(ZeroDivisionError), cf.harness_model(model, chosen, tokenizer=tokenizer):
        assert hooks(model) > 0
        raise ZeroDivisionError
    assert hooks(model) == 0


def test_one_that_nobody_closed_lets_go_of_the_model(demo: Any, chosen: cf.NeuronSet) -> None:
    model, tokenizer = demo
    wrapped = cf.harness_model(model, chosen, tokenizer=tokenizer)
    assert hooks(model) > 0
    del wrapped
    gc.collect()
    assert hooks(model) == 0


def test_what_does_not_fit_is_refused_when_the_model_is_made(demo: Any, chosen: cf.NeuronSet, tmp_path: Path) -> None:
    """So that no question was asked, nor a task's data fetched: the harness makes its model first."""
    model, tokenizer = demo
    (tmp_path / "none.json").write_text("{}")
    for given, word in (
        ({"neurons": cf.NeuronSet(("mlp.gate_proj",), [0], [100_000], [0.0])}, "100000"),
        ({"neurons": cf.NeuronSet(("mlp.gate_proj",), [99], [0], [0.0])}, "99"),
        ({"neurons": tmp_path / "nowhere.json"}, "nowhere.json"),
        ({"neurons": tmp_path / "none.json"}, "top_neurons"),
        ({"neurons": None}, "neurons=SET.json"),
        ({"factor": "half"}, "factor is 'half'"),
        ({"factor": float("nan")}, "finite"),
        ({"factor": True}, "factor"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            cf.harness_model(model, **{"neurons": chosen, **given, "tokenizer": tokenizer})
        assert hooks(model) == 0


def test_the_command_hands_over_its_arguments(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: given.append(sys.argv[1:]))
    assert invoke("lm-eval", "run", "--model", "culnig", "--help") == 0
    assert given == [["run", "--model", "culnig", "--help"]]
    assert invoke("lm-eval") == 1
    assert "lm-eval run --help" in capsys.readouterr().err
    assert invoke("lm-eval", "--help") == 0
    assert "--model culnig" in capsys.readouterr().out
    assert len(given) == 1


def test_without_the_harness_one_sentence_says_so() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\nimport culnig_fast as cf\n"
        "try:\n    cf.harness_model('demo', cf.NeuronSet.empty())\nexcept cf.CulnigError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'culnig_fast[lm-eval]'" in done.stdout
