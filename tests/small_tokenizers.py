"""Small tokenizers of the kinds that real models have, for tests of prompts and answers."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""A template that writes no BOS and thinks unless told not to, as Qwen3's does."""

BOS_TEMPLATE = "{{ bos_token }}" + CHAT_TEMPLATE
"""The same with a BOS of its own, as Llama 3's and Gemma's have."""

_TEXTS = ["A. apple\nB. bread\nAnswer:", 'Which one? {"answer_choice":"', "café 10 times", "1 2 3 4 C D"]


def byte_level(bos: bool = False, eos: bool = False, chat_template: str | None = None) -> Any:
    """Byte-level BPE with every byte in its vocabulary; `bos`, `eos`: put around text by a post-processor."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        _TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            min_frequency=2,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    _post_process(core, "<|bos|>" if bos else None, "<|eos|>" if eos else None)
    # <|im_start|> and <|im_end|> are marked special in the vocabulary, but are not among the named ones.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|bos|>", eos_token="<|eos|>")
    tokenizer.chat_template = chat_template
    return tokenizer


def metaspace(labels: tuple[str, ...] = ("A", "B", "C", "D"), bos: bool = True) -> Any:
    """Words as SentencePiece writes them: `▁A` and `A` are two entries, and text begins with `▁`."""
    words = ["<unk>", "<s>", "</s>", *labels, *(f"▁{label}" for label in labels), "▁the", "▁answer"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    _post_process(core, "<s>" if bos else None, None)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _post_process(core: Tokenizer, bos: str | None, eos: str | None) -> None:
    added = [token for token in (bos, eos) if token is not None]
    if not added:
        return
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos + ' ' if bos else ''}$A{' ' + eos if eos else ''}",
        special_tokens=[(token, core.token_to_id(token)) for token in added],
    )
