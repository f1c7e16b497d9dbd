"""Training samples, and their loss held to the labels that a causal model usually takes."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

from culnig_fast.errors import CulnigError
from culnig_fast.finetuning.data import answer_loss, collate, set_apart, training_set
from culnig_fast.questions import Question

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(12)


def labelled_loss(model: Any, samples: list[tuple[tuple[int, ...], int]]) -> torch.Tensor:
    """The model's own loss on prompt and answer, right-padded and masked, with −100 but at the answer."""
    longest = max(len(tokens) + 1 for tokens, _ in samples)
    ids, mask, labels = (torch.full((len(samples), longest), fill) for fill in (0, 0, -100))
    for row, (tokens, answer) in enumerate(samples):
        ids[row, : len(tokens) + 1] = torch.tensor([*tokens, answer])
        mask[row, : len(tokens) + 1] = 1
        labels[row, len(tokens)] = answer
    further = {"token_type_ids": torch.zeros_like(ids)} if hasattr(model.config, "vision_config") else {}
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels, **further).loss
    return loss


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gemma3_multimodal", "gpt2_conv1d_fused"])
def test_loss_and_gradient_are_those_of_labels_at_the_answer_alone(family: str) -> None:
    model = families.build(family, torch.float64).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = training_set(TOKENIZER, QUESTIONS)
    samples = [data[i] for i in range(7)]
    assert len({len(tokens) for tokens, _ in samples}) > 1
    weights = [p for p in model.parameters() if p.requires_grad]
    loss = answer_loss(model, model.get_output_embeddings(), collate(samples))
    expected = labelled_loss(model, samples)
    # transformers casts logits to float32 before its own loss.
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-6, atol=0)
    got = torch.autograd.grad(loss, weights, allow_unused=True)
    want = torch.autograd.grad(expected, weights, allow_unused=True)
    assert any(g is not None and g.abs().max() > 1e-3 for g in got)
    for weight, ours, theirs in zip(weights, got, want, strict=True):
        ours, theirs = (torch.zeros_like(weight) if g is None else g for g in (ours, theirs))  # noqa: PLW2901
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_batches_are_padded_on_the_right() -> None:
    batch = collate([((5, 6, 7), 4), ((8,), 6)])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 8, 8]]
    assert batch["lengths"].tolist() == [3, 1] and batch["answers"].tolist() == [4, 6]


def test_samples_are_drawn_by_the_seed() -> None:
    drawn = [training_set(TOKENIZER, QUESTIONS, limit=5, seed=seed).token_ids for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    assert len(training_set(TOKENIZER, QUESTIONS, limit=99)) == 12


def test_an_answer_of_several_tokens_is_refused_or_counted() -> None:
    questions = [*QUESTIONS, Question("long", "g", "w9 w10", "w9 w10")]
    with pytest.raises(CulnigError, match="'long' is not one token"):
        training_set(TOKENIZER, questions)
    assert training_set(TOKENIZER, questions, on_unusable="skip").unusable == ("long",)


def test_evaluated_questions_are_set_apart() -> None:
    training = [Question(f"t{i}", "g", f"prompt {i}", "A") for i in range(200)]
    shown = {"task": [Question("q", "g", "prompt 7", "B"), Question("r", "g", "another", "A")]}
    kept, left_out = set_apart(training, shown)
    assert left_out == ["t7"] and kept == [q for q in training if q.id != "t7"]
    with pytest.raises(CulnigError, match="3 of 200 training questions are evaluated too \\('t0' in task"):
        set_apart(training, {"task": training[:3]})
