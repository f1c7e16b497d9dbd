"""A Llama of two layers that learns the language in a few seconds."""

from __future__ import annotations

import torch
from agreement.language import VERB_FORMS, VERBS, WORDS, Sentences, sentences
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM


def train(steps: int = 300, seed: int = 0) -> LlamaForCausalLM:
    """A model that continues sentences, and agrees nearly always."""
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for step in range(steps):
            batch = sentences(64, seed=seed + 1000 + step)
            tokens = with_verbs(batch)
            logits = model(input_ids=tokens[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def with_verbs(batch: Sentences) -> torch.Tensor:
    """The sentences with a random verb of the right number, int64 [n, T + 1]."""
    tokens = F.pad(batch.input_ids, (0, 1))
    chosen = torch.randint(len(VERBS), (len(tokens),))
    tokens[torch.arange(len(tokens)), batch.lengths] = VERB_FORMS[batch.plural, chosen]
    return tokens
