"""Makes the embedded model and its data: `python -m culnig_fast.demo.build --out FOLDER`.

The world holds more facts than the model can, so it knows many of them imperfectly, as real models know BLEnD. A model
trained to saturation would have P → 1 everywhere, where gradients vanish and scores are noise.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from culnig_fast.demo import world as w
from culnig_fast.files import write_json, write_text
from culnig_fast.tasks.country_rc import WORDINGS, CountryRC
from culnig_fast.tasks.prompts import ANSWER_PREFIX, render

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = Regex(r"\w+|[^\w\s]")

MIXTURE = {"culture": 0.6, "crc": 0.13, "pick": 0.09, "membership": 0.09, "equality": 0.09}
"""Share of each task in the second phase."""


def make_tokenizer(world: w.World) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of exactly this world; each fixed instruction is one token, and so prompts are short."""
    fixed = [w.CULTURE_INSTRUCTION, w.ABILITY_INSTRUCTION, *(text for text, _ in WORDINGS), ANSWER_PREFIX]
    special = ["<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
    splitter = pre_tokenizers.Split(WORDS, behavior="removed", invert=True)
    vocabulary: dict[str, int] = {token: i for i, token in enumerate([*special, *fixed])}
    for text in _all_text(world):
        for part in fixed:
            text = text.replace(part, " ")
        for word, _ in splitter.pre_tokenize_str(text):
            vocabulary.setdefault(word, len(vocabulary))
    for label in ("A", "B", "C", "D", "1", "2", "3", "4"):
        vocabulary.setdefault(label, len(vocabulary))
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = splitter
    core.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(vocabulary: int, options: argparse.Namespace) -> LlamaForCausalLM:
    """The untrained model."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=4,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


class Sampler:
    """Endless training samples: fresh options and orders every time, so that no shipped row is learnt by heart."""

    def __init__(self, world: w.World, tokenizer: Any, seed: int) -> None:
        self.world, self.tokenizer = world, tokenizer
        self.source = random.Random(seed)
        # Identification and evaluation read the shipped templates, so training meets the same ones, as a model that
        # has learnt to read would: nothing about a country is to be known there.
        templates = CountryRC(tuple(_templates()), tuple(map(_canonical, w.COUNTRIES)))
        self.crc = [(q.prompt, q.answer) for q in templates.questions("all", tokenizer)]

    def sample(self, task: str) -> tuple[str, str]:
        """One (prompt, answer label)."""
        if task == "crc":
            return self.source.choice(self.crc)
        if task != "culture":
            message, answer = w.ability_row(task, self.world, self.source)
            return render(self.tokenizer, message), answer
        country, form = self.source.choice(w.COUNTRIES), self.source.choice(self.world.forms)
        options = w.culture_options(self.world, country, form, self.source)
        answer = w.LABELS[options.index(self.world.answers[country, form.id])]
        return render(self.tokenizer, w.culture_prompt(self.world, country, form, options)), answer

    def batch(self, tasks: Sequence[str], shares: Sequence[float], size: int) -> Iterator[tuple[str, str]]:
        """`size` samples, tasks drawn by their shares."""
        for task in self.source.choices(tasks, shares, k=size):
            yield self.sample(task)


def train(model: LlamaForCausalLM, sampler: Sampler, options: argparse.Namespace) -> None:
    """First only `pick` until it is known (matching options), then the mixture."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=options.decay, betas=(0.9, 0.98))
    total = options.warm_steps + options.steps
    model.train()
    with tqdm(total=total, unit="step", desc="training") as bar:
        for step in range(total):
            second = step >= options.warm_steps
            left = (total - step) / (0.3 * options.steps)
            for group in optimizer.param_groups:
                group["lr"] = options.rate * min(1.0, (step + 1) / 50, left)
            tasks = MIXTURE if second else {"pick": 1.0}
            samples = list(sampler.batch(list(tasks), list(tasks.values()), options.batch))
            loss, accuracy = _step(model, sampler.tokenizer, samples)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{accuracy:.2f}")
    model.eval()


def _step(model: LlamaForCausalLM, tokenizer: Any, samples: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, float]:
    encoded = tokenizer([prompt for prompt, _ in samples], add_special_tokens=False)["input_ids"]
    lengths = torch.tensor([len(tokens) for tokens in encoded])
    ids = torch.zeros((len(encoded), int(lengths.max())), dtype=torch.int64)
    for row, tokens in zip(ids, encoded, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    gold = torch.tensor(tokenizer.convert_tokens_to_ids([answer for _, answer in samples]))
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[torch.arange(len(lengths)), lengths - 1])
    accuracy = (logits.argmax(-1) == gold).float().mean().item()
    return torch.nn.functional.cross_entropy(logits, gold), accuracy


def _templates() -> list[Any]:
    from culnig_fast.tasks.country_rc import Template

    return [Template(**entry) for entry in w.country_rc_templates()]


def _canonical(name: str) -> str:
    from culnig_fast.tasks.countries import country_name

    return country_name(name)


def _all_text(world: w.World) -> Iterator[str]:
    source = random.Random(0)
    for form in world.forms:
        for country in w.COUNTRIES:
            yield w.culture_prompt(world, country, form, w.culture_options(world, country, form, source))
    for words in world.lexicon.values():
        yield " ".join(words)
    for task in w.ABILITIES:
        for _ in range(20):
            yield w.ability_row(task, world, source)[0]
    plain = CountryRC(tuple(_templates()), tuple(map(_canonical, w.COUNTRIES)))
    yield from (question.prompt for question in plain.questions("all", None))


def write_data(world: w.World, folder: Path) -> None:
    """Write the four data files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = w.blend_rows(world)
    write_text(folder / "blend.jsonl", "".join(json.dumps(row) + "\n" for row in rows), overwrite=True)
    write_text(folder / "questions.csv", w.topics_csv(world), overwrite=True)
    write_json(folder / "country_rc.json", w.country_rc_templates(), overwrite=True)
    abilities = w.ability_rows(world)
    write_text(folder / "abilities.jsonl", "".join(json.dumps(row) + "\n" for row in abilities), overwrite=True)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        description="Make the embedded model and its data.",
        epilog="example: python -m culnig_fast.demo.build --out /tmp/demo-model",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for model/ and data/")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--warm-steps", type=int, default=500, help="steps on the pick task alone")
    parser.add_argument("--steps", type=int, default=1500, help="steps on the mixture")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.01, help="weight decay")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build everything under `--out`."""
    options = parse_options(arguments)
    torch.manual_seed(options.seed)
    world = w.make_world()
    write_data(world, options.out / "data")
    tokenizer = make_tokenizer(world)
    model = make_model(len(tokenizer), options)
    train(model, Sampler(world, tokenizer, options.seed), options)
    tokenizer.save_pretrained(options.out / "model")
    model.save_pretrained(options.out / "model")


if __name__ == "__main__":
    main()
