"""Whether a model can look up every token and position of some prompts, and rotates each as it would by itself.

On a CPU a look-up beyond a table is an `IndexError` in the middle of a run; on a GPU it ends the process's use of the
card. Rotations that change with the longest prompt of a run would make a sample's score depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.probing.rotations import rotation_limit
from culnig_fast.questions import EncodedQuestions, Question

_TABLES = ("embed_positions", "pos_encoding")
"""Buffers of fixed positions that cannot grow (GPT-J, CodeGen, CTRL)."""


def check_encoded(model: Any, encoded: EncodedQuestions) -> None:
    """`check_prompts` of encoded questions, and of their answers.

    Raises:
        CulnigError: as there; or an answer is no token of the model's.
    """
    check_prompts(model, encoded.questions, encoded.token_ids)
    rows = _rows(model)
    for question, token in zip(encoded.questions, encoded.answers, strict=True):
        if token >= rows:
            raise CulnigError(
                f"the answer {question.answer!r} of question {question.id!r} is token {token}, but "
                f"{type(model).__name__} has {rows}; load the tokenizer that belongs to the model"
            )


def check_prompts(model: Any, questions: Sequence[Question], token_ids: Sequence[Sequence[int]], more: int = 0) -> None:
    """Refuse prompts that the model cannot look up; rotary positions have no end.

    Args:
        model: a Hugging Face decoder.
        questions: of the prompts, for messages.
        token_ids: their tokens, at least one each.
        more: tokens that the model reads behind each.

    Raises:
        CulnigError: a token lies beyond the embedding, a prompt is longer than the table of positions, or its rotations
            are not those of the others; names the question.
    """
    rows, positions = _rows(model), min(_positions(model), default=None)
    for question, tokens in zip(questions, token_ids, strict=True):
        if max(tokens) >= rows:
            raise CulnigError(
                f"the prompt of question {question.id!r} holds token {max(tokens)}, but {type(model).__name__} embeds "
                f"{rows}; load the tokenizer that belongs to the model"
            )
        if positions is not None and len(tokens) + more > positions:
            new = f" and an answer of up to {more + 1}" if more else ""
            raise CulnigError(
                f"the prompt of question {question.id!r} has {len(tokens)} tokens{new}, but {type(model).__name__} "
                f"knows {positions} positions; shorten it, or leave it out"
            )
    _check_rotations(model, questions, [len(tokens) + more for tokens in token_ids])


def _check_rotations(model: Any, questions: Sequence[Question], lengths: Sequence[int]) -> None:
    limit = rotation_limit(model.config.get_text_config(decoder=True))
    if limit is None or max(lengths) <= limit.positions:
        return
    question = questions[lengths.index(max(lengths))]
    if limit.kind == "dynamic":
        raise CulnigError(
            f"question {question.id!r} has {max(lengths)} tokens, and beyond {limit.positions} the rotations of "
            f"{type(model).__name__} depend on what ran before ('dynamic'); shorten it, or leave it out"
        )
    if min(lengths) <= limit.positions:
        raise CulnigError(
            f"question {question.id!r} has {max(lengths)} tokens, and beyond {limit.positions} {type(model).__name__} "
            "rotates all prompts that run together otherwise ('longrope'); ask the longer questions by themselves"
        )


def _rows(model: Any) -> int:
    if not hasattr(model, "get_input_embeddings"):
        raise CulnigError(
            f"the model is a {type(model).__name__}, not a Hugging Face decoder; load one with AutoModelForCausalLM"
        )
    return int(model.get_input_embeddings().weight.shape[0])


def _positions(model: Any) -> Iterator[int]:
    """How many positions each table holds that tokens are looked up in by their position.

    Known by its name and by holding as many as the configuration says: a picture's patches have tables too.
    """
    config = model.config.get_text_config(decoder=True)
    declared = getattr(config, "max_position_embeddings", None)
    for path, module in ((model.get_decoder() if hasattr(model, "get_decoder") else None) or model).named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("pos" in name or name == "wpe" or "Position" in type(module).__name__):
            # Positions begin behind a table's first rows where those stand for padding, by either way of saying so.
            first = getattr(module, "offset", None) or (module.padding_idx + 1 if module.padding_idx is not None else 0)
            if module.num_embeddings in (declared, (declared or 0) + first):
                yield module.num_embeddings - first
        for buffer in _TABLES:
            table = module._buffers.get(buffer)
            if table is not None and table.dim() == 2 and table.shape[0] == declared:
                yield declared
