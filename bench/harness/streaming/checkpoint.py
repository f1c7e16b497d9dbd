"""A Llama-like checkpoint of random weights, written a layer at a time, with a word-level tokenizer and questions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from culnig_fast.questions import Question
from culnig_fast.streaming.skeleton import without_weights

LABELS = ("A", "B", "C", "D")


def write_checkpoint(folder: Path, hidden: int, layers: int, vocabulary: int) -> int:
    """Write it, four times as wide in the MLP; returns the bytes of its weights."""
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    with without_weights():
        model = transformers.AutoModelForCausalLM.from_config(config)
    shards: dict[str, list[str]] = {}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in shapes:
        shards.setdefault(name.split(".")[2] if ".layers." in name else name, []).append(name)
    generator = torch.Generator().manual_seed(0)
    weight_map, total = {}, 0
    for number, names in enumerate(shards.values(), start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            # Norms near 1, projections at a size that keeps hidden states at theirs.
            scale, shift = (0.1, 1.0) if len(shapes[name]) == 1 else (shapes[name][-1] ** -0.5, 0.0)
            tensors[name] = torch.empty(shapes[name]).normal_(generator=generator).mul_(scale).add_(shift)
            weight_map[name] = file
            total += tensors[name].nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    word_tokenizer(vocabulary).save_pretrained(folder)
    return total


def make_questions(tokens: int, length: int, vocabulary: int) -> list[Question]:
    """`tokens // length` prompts of `length` random words."""
    generator = torch.Generator().manual_seed(1)
    questions = []
    for number in range(tokens // length):
        words = torch.randint(len(LABELS), vocabulary, (length,), generator=generator).tolist()
        prompt = " ".join(f"w{word}" for word in words)
        questions.append(Question(f"q{number}", f"group {number % 4}", prompt, LABELS[number % len(LABELS)]))
    return questions


def word_tokenizer(vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """The labels and as many further words as `vocabulary` leaves."""
    words = [*LABELS, *(f"w{number}" for number in range(len(LABELS), vocabulary))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[-1]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token=words[-1])
