"""Positions chosen prompt by prompt: against plain float64 loops, on every way to score, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import families
import numpy as np
import oracle
import pytest
import torch
from command_line import invoke
from plain_rules import RULES, assert_close
from small_tokenizers import BOS_TEMPLATE, CHAT_TEMPLATE, byte_level, metaspace
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.chosen_positions import choose_positions
from culnig_fast.models import load_tokenizer
from culnig_fast.questions import encode_questions
from culnig_fast.tasks.base import load_task
from culnig_fast.tasks.prompts import render

TOKENIZER = make_tokenizer()
TOKENIZER.chat_template = (
    "w20 w21{% for m in messages %} {{ m['content'] }} w22{% endfor %}{% if add_generation_prompt %} w23{% endif %}"
)
MESSAGES = make_questions(9, longest=5)
QUESTIONS = [cf.Question(q.id, q.group, render(TOKENIZER, q.prompt, " w24 w25"), q.answer) for q in MESSAGES]
COUNTS = [len(q.prompt.split()) for q in MESSAGES]
SITES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.act")
OPTIONS: dict[str, Any] = {"sites": SITES, "batch_tokens": 30, "progress": False}


def from_the_third(question: cf.Question, tokens: cf.PromptTokens) -> Iterable[int]:
    """Every other position, the number before the last by its place from the end, one of them twice."""
    return [*range(2, len(tokens.ids), 2), -2, 2]


PLACES: list[tuple[Any, Callable[[int, int], list[int]]]] = [
    ("last", lambda count, length: [length - 1]),
    ("content", lambda count, length: list(range(2, 2 + count))),
    (from_the_third, lambda count, length: sorted({*range(2, length, 2), length - 2, 2})),
    (lambda question, tokens: [i % 3 == 1 for i in range(len(tokens.ids))], lambda _, n: list(range(1, n, 3))),
]
"""Each rule, and the positions that it means, from the words of the message and of the prompt."""


def plain(model: Any, reduction: str, places: Callable[[int, int], list[int]]) -> np.ndarray:
    """float64 [groups, neurons]: one question at a time, a full backward of P, position by position."""
    double = copy.deepcopy(model).double().requires_grad_(True)
    groups = list(dict.fromkeys(question.group for question in QUESTIONS))
    totals: list[Any] = [0.0] * len(groups)
    for question, count in zip(QUESTIONS, COUNTS, strict=True):
        ids = TOKENIZER(question.prompt)["input_ids"]
        kept, handles = oracle.activation_tensors(double)
        logits = double(input_ids=torch.tensor([ids])).logits[0, -1]
        p = torch.softmax(logits, 0)[TOKENIZER.convert_tokens_to_ids(question.answer)]
        p.backward()
        parts = []
        for layer in range(len(oracle.decoder_layers(double))):
            for name in SITES:
                act, grad = oracle.columns_of(double, name, layer, kept)
                parts.append(RULES[reduction]([act[i] * grad[i] for i in places(count, len(ids))]))
        row = groups.index(question.group)
        totals[row] = totals[row] + p.item() * np.concatenate(parts)
        for handle in handles:
            handle.remove()
    return np.stack(totals)


@pytest.mark.parametrize("number", range(len(PLACES)))
@pytest.mark.parametrize("reduction", RULES)
def test_totals_equal_plain_loops(reduction: str, number: int) -> None:
    rule, places = PLACES[number]
    model = families.build(("llama", "phi3")[number % 2])
    table = cf.attribute(model, TOKENIZER, QUESTIONS, positions=rule, reduction=reduction, **OPTIONS)
    assert_close(table.totals, plain(model, reduction, places))
    assert list(table.metadata["fusion"]["taps"].values()) == [[0, 1]]


def test_the_last_of_all_is_what_the_reduction_last_takes() -> None:
    model = families.build("qwen3")
    whole = cf.attribute(model, TOKENIZER, QUESTIONS, reduction="last", **OPTIONS)
    for reduction in ("max", "sum", "mean"):
        chosen = cf.attribute(model, TOKENIZER, QUESTIONS, positions="last", reduction=reduction, **OPTIONS)
        assert_close(chosen.totals, whole.totals)


def test_all_is_the_same_as_nothing_chosen() -> None:
    model = families.build("llama")
    plainly = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    for rule in (None, "all"):
        table = cf.attribute(model, TOKENIZER, QUESTIONS, positions=rule, **OPTIONS)
        assert np.array_equal(table.totals, plainly.totals)
        assert table.metadata == plainly.metadata
        assert table.metadata["positions"] == "all"
        assert table.metadata["fusion"]["fused"] == [0, 1]
    on_taps = cf.attribute(model, TOKENIZER, QUESTIONS, path="taps", **OPTIONS)
    marked = cf.attribute(model, TOKENIZER, QUESTIONS, positions=lambda q, t: [True] * len(t.ids), **OPTIONS)
    assert np.array_equal(marked.totals, on_taps.totals)


@pytest.mark.parametrize("rule", ["content", from_the_third], ids=["content", "function"])
def test_recomputed_streamed_and_single_scores_are_the_same(rule: Any, tmp_path: Path) -> None:
    model = families.build("llama")
    model.save_pretrained(tmp_path)
    table = cf.attribute(model, TOKENIZER, QUESTIONS, positions=rule, **OPTIONS)
    again = cf.attribute(model, TOKENIZER, QUESTIONS, positions=rule, recompute=True, **OPTIONS)
    streamed = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, positions=rule, stream_tokens=60, **OPTIONS)
    for other in (again, streamed):
        assert np.array_equal(other.totals, table.totals)
        assert other.metadata["positions"] == table.metadata["positions"]
    some = cf.NeuronSet.from_flat(table.layout, range(0, table.layout.size, 7))
    single = cf.record_instances(model, TOKENIZER, QUESTIONS, some, positions=rule, progress=False)
    weighted = single.scores * single.probability[:, None]
    assert_close(weighted.sum(axis=0), table.totals.sum(axis=0)[::7])
    assert single.metadata["positions"] == table.metadata["positions"]


def test_the_table_says_what_was_chosen() -> None:
    model = families.build("llama")

    def named(rule: Any) -> str:
        table = cf.attribute(model, TOKENIZER, QUESTIONS, positions=rule, **OPTIONS)
        return str(table.metadata["positions"])

    assert (named("last"), named("content")) == ("last", "content")
    first = named(from_the_third)
    assert first.startswith("from_the_third #") and first == named(from_the_third)

    def changed(question: cf.Question, tokens: cf.PromptTokens) -> Iterable[int]:
        return [0] if question is QUESTIONS[4] else from_the_third(question, tokens)

    changed.__name__ = "from_the_third"
    assert named(changed) != first, "one question's positions differ, and the name must too"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_checkpoint_of_another_choice_is_refused(streamed: bool, tmp_path: Path) -> None:
    model = families.build("llama")
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "run.partial"

    def score(rule: Any) -> cf.ScoreTable:
        given = {**OPTIONS, "checkpoint": path, "checkpoint_seconds": 0.0, "positions": rule}
        if streamed:
            return cf.attribute_streamed(tmp_path / "model", TOKENIZER, QUESTIONS, stream_tokens=30, **given)
        return cf.attribute(model, TOKENIZER, QUESTIONS, **given)

    whole = score("content")
    kept = path.read_bytes()
    for rule, there in (("last", '"content" there and "last" here'), ("all", '"content" there and "all" here')):
        with pytest.raises(cf.CulnigError, match=f"another run.*options: positions {there}"):
            score(rule)
    with pytest.raises(cf.CulnigError, match='positions "content" there and "from_the_third #'):
        score(from_the_third)
    assert path.read_bytes() == kept
    assert np.array_equal(score("content").totals, whole.totals), "the finished run's own choice continues"


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(chat_template=CHAT_TEMPLATE),
        byte_level(bos=True, chat_template=BOS_TEMPLATE),
        byte_level(bos=True, eos=True, chat_template=CHAT_TEMPLATE.replace("<|im_start|>", "From ")),
    ],
    ids=["plain", "bos in the template", "bos added, closing cut"],
)
def test_content_is_the_messages_own_text(tokenizer: Any) -> None:
    messages = ["Which one?\nA. apple", 'café "B" 10', "x"]
    questions = [cf.Question(str(i), "g", render(tokenizer, text), "A") for i, text in enumerate(messages)]
    encoded = encode_questions(tokenizer, questions)
    chosen = choose_positions("content", tokenizer, encoded)
    assert chosen.marks is not None
    for text, ids, marks in zip(messages, encoded.token_ids, chosen.marks, strict=True):
        assert tokenizer.decode(np.array(ids)[marks]) == text
        assert not marks[0] and not marks[-1]


def test_content_on_the_embedded_model() -> None:
    tokenizer = load_tokenizer(cf.models.embedded_folder("model"))
    text = "Which letter stands before fidazi?\n\nA. fidazi\nB. lukiru"
    encoded = encode_questions(tokenizer, [cf.Question("q", "g", render(tokenizer, text), "A")])
    (marks,) = choose_positions("content", tokenizer, encoded).marks or ()
    # Its words are tokens, so that their spaces are not.
    assert tokenizer.decode(np.array(encoded.token_ids[0])[marks]).replace(" ", "") == "".join(text.split())


def test_a_rule_sees_the_characters_of_its_tokens() -> None:
    tokenizer = byte_level(bos=True)
    prompt = "Country: café\nAnswer:"
    encoded = encode_questions(tokenizer, [cf.Question("q", "g", prompt, "A")])
    seen: list[cf.PromptTokens] = []

    def country(question: cf.Question, tokens: cf.PromptTokens) -> np.ndarray:
        seen.append(tokens)
        return tokens.within(question.prompt.index("café"), question.prompt.index("\n"))

    (marks,) = choose_positions(country, tokenizer, encoded).marks or ()
    (tokens,) = seen
    assert tokenizer.decode(np.array(tokens.ids)[marks]) == "café"
    assert tokens.offsets[0] == (0, 0), "an added BOS stands for no character"
    assert tokens.offsets[-1][1] == len(prompt)
    assert not tokens.within(0, len(prompt))[0] and tokens.within(0, len(prompt))[1:].all()
    assert not tokens.within(3, 3).any()


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("first", "unknown positions 'first'.*all, last, content"),
        (3, "unknown positions 3"),
        (lambda q, t: [] if q.id == "q2" else [0], "no token of question 'q2'"),
        (lambda q, t: [False] * len(t.ids), "no token of question 'q0'"),
        (lambda q, t: [True], r"question 'q0' are \[1\] bools; its prompt has 7 tokens"),
        (lambda q, t: [7], "question 'q0' reach from 7 to 7; its prompt has tokens 0…6"),
        (lambda q, t: [-8], "reach from -8"),
        (lambda q, t: [0.5], "float64"),
        (lambda q, t: [[0]], "whole numbers"),
        (lambda q, t: "last", "of type str"),
        (lambda q, t: None, "of type NoneType"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(rule: Any, word: str) -> None:
    with pytest.raises(cf.CulnigError, match=word):
        choose_positions(rule, TOKENIZER, encode_questions(TOKENIZER, QUESTIONS))


def test_content_is_refused_where_it_cannot_be_told() -> None:
    ask = cf.Question("one", "g", "w8 w9", "A")
    bare, two_turns, no_end, shouting = make_tokenizer(), make_tokenizer(), make_tokenizer(), make_tokenizer()
    two_turns.chat_template = TOKENIZER.chat_template
    no_end.chat_template = "w20 {{ messages[0]['content'] }}"
    shouting.chat_template = "w20 {{ messages[0]['content'] | upper }} w21"
    turns = cf.Question("two", "g", render(TOKENIZER, f"w8{render(TOKENIZER, '', '')[7:]} w9 w22", ""), "A")
    for tokenizer, question, word in (
        (bare, ask, "no chat template"),
        (two_turns, ask, "question 'one' is not one user message"),
        (two_turns, turns, "question 'two' has several turns"),
        (no_end, ask, "between two fixed texts"),
        (shouting, ask, "between two fixed texts"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            choose_positions("content", tokenizer, encode_questions(tokenizer, [question]))


def test_tokens_without_characters_are_refused_only_when_asked_for() -> None:
    tokenizer = metaspace()
    questions = encode_questions(tokenizer, [cf.Question("q", "g", "the answer", "A")])

    class Slow:
        is_fast = False

    assert choose_positions("last", Slow(), questions).rule == "last"
    assert choose_positions(lambda q, t: [0], Slow(), questions).marks is not None
    with pytest.raises(cf.CulnigError, match="Slow does not say which characters"):
        choose_positions(lambda q, t: t.within(0, 2), Slow(), questions)


@pytest.mark.parametrize(("options", "word"), [({"padding": "zero"}, "padding"), ({"path": "fused"}, "position mask")])
def test_what_positions_do_not_go_with(options: dict[str, Any], word: str, tmp_path: Path) -> None:
    model = families.build("llama")
    model.save_pretrained(tmp_path)
    for run in (lambda **o: cf.attribute(model, **o), lambda **o: cf.attribute_streamed(tmp_path, **o)):
        with pytest.raises(cf.CulnigError, match=word):
            run(tokenizer=TOKENIZER, questions=QUESTIONS, positions="last", progress=False, **options)


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["resident", "streamed"])
def test_from_the_command_line(stream: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = families.build("llama")
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    lines = ["id,group,prompt,answer", *(f"{q.id},{q.group},{q.prompt},{q.answer}" for q in MESSAGES)]
    (tmp_path / "q.csv").write_text("\n".join(lines), encoding="utf-8")
    command = ["score", tmp_path / "model", "--task", "plain", "--data", tmp_path / "q.csv", "--split", "all"]
    command += ["--quiet", "--device", "cpu", "--batch-tokens", 30, "--out", tmp_path / "out.safetensors", *stream]
    assert invoke(*command, "--positions", "content") == 0
    table = cf.ScoreTable.load(tmp_path / "out.safetensors")
    questions = load_task("plain", tmp_path / "q.csv").questions("all", TOKENIZER)
    want = cf.attribute(model, TOKENIZER, questions, positions="content", batch_tokens=30, progress=False)
    assert table.metadata["positions"] == "content"
    assert_close(table.totals, want.totals)
    assert invoke(*command, "--overwrite", "--positions", "middle") == 1
    assert "unknown positions 'middle'" in capsys.readouterr().err
    assert invoke(*command, "--overwrite", "--positions", "last", "--as-authors") == 1
