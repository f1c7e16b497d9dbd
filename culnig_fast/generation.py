"""Answers of several tokens: greedy generation in batches, with a cache of keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from culnig_fast.attention import without_cudnn
from culnig_fast.batching import default_batch_tokens, plan_batches
from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import Evaluation
from culnig_fast.last_position import evaluation_mode
from culnig_fast.prompt_limits import check_prompts
from culnig_fast.questions import Question, check_tokenizer, check_unique_ids, encode_prompts, listed
from culnig_fast.wrappers import input_device

Scorer = Callable[[str, str, str], float]
"""(question id, answer, prediction) → points 0…100, as `Task.score`."""


def generate(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 32,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> list[str]:
    """The most probable continuation of each prompt, token by token, until the model ends it.

    Prompts of similar length share a batch, padded on the left, masked, and numbered from their first real token: what
    a prompt gets is what it gets alone. Whatever sampling the checkpoint's own settings ask for is not done.

    Args:
        model: a Hugging Face decoder, with or without an intervention in force; left as it was.
        tokenizer: its tokenizer.
        questions: whose prompts to continue.
        max_new_tokens: where an answer is cut off.
        batch_tokens: padded tokens a batch, the new ones included; None means a default for the device.
        progress: show a progress bar on standard error.

    Returns:
        the new text of each question, without special tokens.

    Raises:
        CulnigError: no questions, a prompt without tokens or that the model cannot look up with its answer, a length
            below 1, or logits that are not numbers.
    """
    if max_new_tokens < 1:
        raise CulnigError(f"max_new_tokens is {max_new_tokens}; an answer has at least one token")
    check_tokenizer(tokenizer)
    questions = listed(questions)
    if not questions:
        raise CulnigError("there are no questions; check the file, the split and the countries asked for")
    token_ids = encode_prompts(tokenizer, questions)
    check_prompts(model, questions, token_ids, more=max_new_tokens - 1)
    device = input_device(model)
    budget = default_batch_tokens(device) if batch_tokens is None else batch_tokens
    batches = plan_batches([len(tokens) + max_new_tokens for tokens in token_ids], budget)
    settings = _greedy(model, tokenizer, max_new_tokens)
    texts = [""] * len(questions)
    bar = tqdm(total=len(questions), unit="answer", desc="generating", disable=not progress)
    with torch.no_grad(), without_cudnn(), evaluation_mode(model), _in_force(model, settings), bar:
        for index in batches:
            input_ids, mask = _left_padded([token_ids[i] for i in index], settings.pad_token_id)
            output = model.generate(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                logits_processor=[_refuse_nan],
            )
            new = output[:, input_ids.shape[1] :].cpu()
            for i, text in zip(index, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                texts[i] = text
            bar.update(len(index))
    return texts


def answer(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    score: Scorer,
    *,
    max_new_tokens: int = 32,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Generate an answer to every question and hold it against the annotators'.

    Args:
        score: of the questions' task; an answer is correct at 100 points.

    Returns:
        an `Evaluation` whose predictions are the generated texts; `probability` is NaN, for there is no one gold text.

    Raises:
        CulnigError: as `generate`, or two questions share an id.
    """
    asked = listed(questions)
    check_unique_ids(asked)
    texts = generate(
        model, tokenizer, asked, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, progress=progress
    )
    correct = [score(q.id, q.answer, text) == 100.0 for q, text in zip(asked, texts, strict=True)]
    return Evaluation(
        ids=tuple(q.id for q in asked),
        groups=tuple(q.group for q in asked),
        answers=tuple(q.answer for q in asked),
        predictions=tuple(texts),
        correct=np.array(correct),
        probability=np.full(len(asked), np.nan),
    )


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    """Settings that take nothing from the checkpoint's but its end-of-text tokens."""
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    end = getattr(own, "eos_token_id", None)
    if end is None:
        end = tokenizer.eos_token_id
    ends = [end] if isinstance(end, int) else list(end or [])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=True,
    )


@contextlib.contextmanager
def _in_force(model: Any, settings: Any) -> Iterator[None]:
    """The model's own settings put aside: `generate` fills whatever it is not told from them, penalties included."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [batch, T] tokens and mask, the padding on the left so that every row continues at its end."""
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return input_ids, mask


def _refuse_nan(input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    # The most probable of NaNs is token 0: without this a broken model would answer.
    if torch.isnan(logits).any():
        raise CulnigError("the model's logits are NaN while it generates; check its weights")
    return logits
