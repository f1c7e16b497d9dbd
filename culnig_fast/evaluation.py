"""Accuracy of a model on multiple-choice questions (CULNIG, section 8)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from culnig_fast.batching import default_batch_tokens, make_batch, plan_batches
from culnig_fast.errors import CulnigError
from culnig_fast.files import atomic_write, parse_json
from culnig_fast.last_position import LastPosition, check_causal, evaluation_mode
from culnig_fast.prompt_limits import check_encoded
from culnig_fast.questions import EncodedQuestions, Question, encode_questions
from culnig_fast.statistics import paired_bootstrap
from culnig_fast.wrappers import decoder_of, input_device

FIELDS = ("id", "group", "answer", "prediction", "correct", "probability")
_KINDS: dict[str, type] = {"correct": bool, "probability": float}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model answered, question by question.

    Attributes:
        ids, groups, answers: [n] of the questions, in the order given.
        predictions: [n] the most probable token, decoded.
        correct: bool [n] whether the prediction equals the answer as text.
        probability: float64 [n] of the gold token.
        unusable: ids left out because their answer is not one token.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    answers: tuple[str, ...]
    predictions: tuple[str, ...]
    correct: np.ndarray
    probability: np.ndarray
    unusable: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0…1."""
        return float(self.correct.mean())

    def by_group(self) -> dict[str, float]:
        """Accuracy of each group, 0…1, in the order of their first question."""
        groups = np.array(self.groups, dtype=object)
        return {name: float(self.correct[groups == name].mean()) for name in dict.fromkeys(self.groups)}

    def where(self, keep: Iterable[str]) -> Evaluation:
        """The part of it with the given question ids."""
        wanted = set(keep)
        rows = [i for i, name in enumerate(self.ids) if name in wanted]
        if not rows:
            raise CulnigError("none of the questions asked for was evaluated; check the ids")
        ids, groups, answers, predictions = (
            tuple(column[i] for i in rows) for column in (self.ids, self.groups, self.answers, self.predictions)
        )
        return Evaluation(ids, groups, answers, predictions, self.correct[rows], self.probability[rows])

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write one row a question, as csv or jsonl by the path's ending; atomic."""
        columns = (
            self.ids,
            self.groups,
            self.answers,
            self.predictions,
            self.correct.tolist(),
            # JSON has no NaN: answers in the model's own words have no P.
            [None if math.isnan(p) else p for p in self.probability.tolist()],
        )
        rows = [dict(zip(FIELDS, row, strict=True)) for row in zip(*columns, strict=True)]
        suffix = Path(path).suffix.lower()
        if suffix not in (".csv", ".jsonl"):
            raise CulnigError(f"{path} must end in .csv or .jsonl")
        with (
            atomic_write(path, overwrite) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            if suffix == ".csv":
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read a jsonl file that `save` wrote; CulnigError for anything else."""
        try:
            # splitlines() would also cut at the Unicode line separators that an answer may hold unescaped.
            lines = Path(path).read_text(encoding="utf-8").split("\n")
            # Earlier versions wrote NaN.
            rows = [parse_json(line, "a line is no JSON", parse_constant=float) for line in lines if line]
            columns = [[_checked(field, row[field]) for row in rows] for field in FIELDS]
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CulnigError(f"{path} is not a jsonl file of results ({error!r}); write one with evaluate") from error
        if not rows:
            raise CulnigError(f"{path} holds no results; evaluate again")
        ids, groups, answers, predictions, correct, probability = columns
        return cls(
            tuple(ids),
            tuple(groups),
            tuple(answers),
            tuple(predictions),
            np.array(correct, dtype=bool),
            np.array(probability, dtype=np.float64),
        )


def _checked(field: str, value: Any) -> Any:
    """The value of a row's field; ValueError when it is none. Answers in the model's own words have NaN for P."""
    if field == "probability" and (value is None or type(value) is int):
        value = math.nan if value is None else float(value)
    if not isinstance(value, _KINDS.get(field, str)) or (isinstance(value, float) and math.isinf(value)):
        raise ValueError(f"{field} is {value!r:.60}")
    return value


@dataclass(frozen=True, eq=False)
class Prepared:
    """Questions tokenised and batched once, to be asked under any number of interventions; `prepare` makes it.

    Attributes:
        encoded: the questions and their tokens.
        batches: index arrays into them.
    """

    encoded: EncodedQuestions
    batches: tuple[np.ndarray, ...]


def prepare(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    batch_tokens: int | None = None,
    on_unusable: str = "error",
) -> Prepared:
    """Tokenise questions and plan their batches; arguments and errors as for `evaluate`."""
    encoded = encode_questions(tokenizer, questions, on_unusable)
    model = decoder_of(model)
    check_encoded(model, encoded)
    device = input_device(model)
    budget = default_batch_tokens(device) if batch_tokens is None else batch_tokens
    return Prepared(encoded, tuple(plan_batches([len(tokens) for tokens in encoded.token_ids], budget)))


def evaluate(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question] | Prepared,
    *,
    batch_tokens: int | None = None,
    on_unusable: str = "error",
    progress: bool = True,
) -> Evaluation:
    """Answer every question by the most probable next token.

    Args:
        model: a Hugging Face decoder, with or without an intervention in force; left as it was.
        tokenizer: its tokenizer.
        questions: what to ask; `Prepared` ones are neither tokenised nor batched again.
        batch_tokens: padded tokens a batch; None means a default for the device.
        on_unusable: `error` or `skip` for an answer that is not one token.
        progress: show a progress bar on standard error.

    Raises:
        CulnigError: no questions, a repeated id, an unusable answer, a prompt that the model cannot look up, logits
            that are not finite, or a model that is not causal.
    """
    model = decoder_of(model)
    if not isinstance(questions, Prepared):
        questions = prepare(model, tokenizer, questions, batch_tokens=batch_tokens, on_unusable=on_unusable)
    encoded, batches = questions.encoded, questions.batches
    device = input_device(model)
    answers = torch.tensor(encoded.answers)
    chosen, gold = [], []
    head = LastPosition(model, model.get_output_embeddings())
    bar = tqdm(total=len(encoded.questions), unit="question", desc="evaluating", disable=not progress)
    try:
        with torch.no_grad(), evaluation_mode(model), bar:
            check_causal(model, head)
            for index in batches:
                batch = make_batch(encoded.token_ids, index, device)
                log_p = torch.log_softmax(head.logits(batch.input_ids, batch.lengths), dim=-1)
                chosen.append(log_p.argmax(-1))
                gold.append(log_p.gather(1, answers[index].to(log_p.device)[:, None])[:, 0])
                bar.update(len(index))
    finally:
        head.remove()
    order = np.argsort(np.concatenate(batches))
    probability = torch.cat(gold).double().exp().cpu().numpy()[order]
    bad = np.flatnonzero(~np.isfinite(probability))
    if bad.size:
        name = encoded.questions[bad[0]].id
        raise CulnigError(f"the model gives question {name!r} the probability {probability[bad[0]]}; check its weights")
    tokens = torch.cat(chosen).cpu().numpy()[order].tolist()
    decoded = {token: tokenizer.decode([token]) for token in set(tokens)}
    predictions = tuple(decoded[token] for token in tokens)
    gold_labels = tuple(question.answer for question in encoded.questions)
    return Evaluation(
        ids=tuple(question.id for question in encoded.questions),
        groups=tuple(question.group for question in encoded.questions),
        answers=gold_labels,
        predictions=predictions,
        correct=np.array([p == a for p, a in zip(predictions, gold_labels, strict=True)]),
        probability=probability,
        unusable=encoded.unusable,
    )


def compare(
    result: Evaluation, other: Evaluation, points: Callable[[Evaluation], np.ndarray] | None = None
) -> dict[str, float]:
    """Paired bootstrap of two evaluations of the same questions.

    Args:
        result, other: of the same questions, in any order.
        points: a benchmark's own points, 0…100 a question (`Task.scores`); None compares accuracy in percent.

    Returns:
        `difference` (result − other), its 95 % interval `low`, `high`, and the one-sided `p_value` of result < other.

    Raises:
        CulnigError: they are of different questions.
    """
    if set(result.ids) != set(other.ids):
        raise CulnigError(
            f"the results are of different questions ({len(result.ids)} and {len(other.ids)}, "
            f"{len(set(result.ids) & set(other.ids))} in common); evaluate both on the same task and split"
        )
    place = {name: row for row, name in enumerate(other.ids)}
    mine, theirs = (100.0 * one.correct if points is None else points(one) for one in (result, other))
    test = paired_bootstrap(mine, theirs[[place[name] for name in result.ids]])
    return {
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p_value": test.p_less,
    }
