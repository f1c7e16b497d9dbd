"""Makes the embedded model and its data: `python -m culnig_fast.demo.build --out FOLDER`.

The world holds more facts than the model gets to learn, so it knows many of them imperfectly, as real models
know BLEnD. A model trained to saturation would have P → 1 everywhere, where gradients vanish and scores are
noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from culnig_fast.demo import world as w
from culnig_fast.demo.training import Sampler, Schedule, train
from culnig_fast.errors import CulnigError
from culnig_fast.files import write_json, write_text
from culnig_fast.tasks.country_rc import WORDINGS, CountryRC
from culnig_fast.tasks.prompts import ANSWER_PREFIX

DATA_FILES = ("blend.jsonl", "questions.csv", "country_rc.json", "abilities.jsonl", "membership_long.jsonl")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = r"\b[A-D1-4]\.(?= )|Answer:|\w+|[^\w\s]"
"""One token: an option's label with its full stop, the word that ends a message, any other word or sign."""

SPECIAL = ("<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>")
LABELS = ("A", "B", "C", "D", "1", "2", "3", "4")


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of `texts`; fixed instructions are one token each, so prompts are short."""
    instructions = (
        w.CULTURE_INSTRUCTION,
        w.ABILITY_INSTRUCTION,
        *(wording.instruction for wording in WORDINGS),
    )
    fixed = (*instructions, ANSWER_PREFIX)
    splitter = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *fixed))}
    for text in texts:
        bare = text
        for part in fixed:
            bare = bare.replace(part, " ")
        for word, _ in splitter.pre_tokenize_str(bare):
            vocabulary.setdefault(word, len(vocabulary))
    for label in LABELS:
        vocabulary.setdefault(label, len(vocabulary))
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = splitter
    core.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[2:]),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(vocabulary: int, layers: int, hidden: int, intermediate: int, kv_heads: int) -> Any:
    """The untrained model."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        # With the usual 0.02 so small a model needs several times the steps to begin to match words.
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    return LlamaForCausalLM(config)


def write_data(world: w.World, folder: Path, overwrite: bool = False) -> None:
    """Write the data files (`DATA_FILES`); CulnigError when one exists and `overwrite` is false."""
    folder.mkdir(parents=True, exist_ok=True)
    blend, questions, country_rc, abilities, membership = (folder / name for name in DATA_FILES)
    write_text(blend, _lines(w.blend_rows(world)), overwrite)
    write_text(questions, w.topics_csv(world), overwrite)
    write_json(country_rc, w.country_rc_templates(), overwrite)
    write_text(abilities, _lines(w.ability_rows(world)), overwrite)
    # Another seed than the abilities': no model was trained on these rows or chosen by them.
    write_text(membership, _lines(w.ability_rows(world, seed=5, tasks=(w.LONG_MEMBERSHIP,))), overwrite)


def build(options: argparse.Namespace) -> None:
    """Write `data/` and `model/` under `options.out`.

    Raises:
        CulnigError: one of them exists already.
    """
    out: Path = options.out
    if (out / "model").exists():
        raise CulnigError(f"{out / 'model'} exists already; choose another --out")
    torch.manual_seed(options.seed)
    world = w.make_world()
    write_data(world, out / "data")
    templates = CountryRC.load(out / "data" / "country_rc.json", w.COUNTRIES)
    tokenizer = make_tokenizer(_all_text(out / "data"))
    model = make_model(len(tokenizer), options.layers, options.hidden, options.intermediate, options.kv_heads)
    schedule = Schedule(
        warm_steps=options.warm_steps,
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        decay=options.decay,
        sparsity=options.sparsity,
        dissent=options.dissent,
    )

    def keep(step: int) -> None:
        if options.every and step > options.warm_steps and step % options.every == 0:
            _save(model, tokenizer, out / f"step-{step}")

    train(model, tokenizer, Sampler(world, templates, tokenizer, options.seed, options.dissent), schedule, keep)
    _save(model, tokenizer, out / "model")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command-line options; the defaults made the shipped model."""
    parser = argparse.ArgumentParser(
        description="Make the embedded model and its data.",
        epilog="example: python -m culnig_fast.demo.build --out /tmp/demo-model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for model/ and data/")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size")
    parser.add_argument("--intermediate", type=int, default=512, help="MLP neurons a layer")
    parser.add_argument("--kv-heads", type=int, default=2, help="key and value heads, for 4 query heads")
    parser.add_argument("--warm-steps", type=int, default=350, help="steps on the abilities alone")
    parser.add_argument("--steps", type=int, default=1000, help="steps on all tasks")
    parser.add_argument("--batch", type=int, default=128, help="samples a step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.01, help="weight decay")
    parser.add_argument("--sparsity", type=float, default=3e-4, help="weight of the mean absolute MLP activation")
    parser.add_argument("--dissent", type=float, default=0.1, help="share of culture samples with another answer")
    parser.add_argument("--every", type=int, default=0, help="also keep the model every so many steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the training samples")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build everything under `--out`."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    try:
        build(options)
    except CulnigError as error:
        raise SystemExit(f"error: {error}") from error


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _lines(rows: Iterable[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _all_text(folder: Path) -> Iterator[str]:
    for name in ("blend.jsonl", "abilities.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["prompt"]
    templates = CountryRC.load(folder / "country_rc.json", w.COUNTRIES)
    yield from (question.prompt for question in templates.questions("all", None))


if __name__ == "__main__":
    main()
