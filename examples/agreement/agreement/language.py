"""A language of a few dozen words in which verbs agree with their subject, whatever nouns stand between."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

NOUNS = ["dog", "cat", "girl", "boy", "cook", "king", "bird", "aunt"]
VERBS = ["see", "know", "like", "hear", "find", "call"]
PREPOSITIONS = ["near", "behind", "beside"]

WORDS = ["<pad>", "<s>", "the", *PREPOSITIONS]
WORDS += [noun + ending for ending in ("", "s") for noun in NOUNS]
WORDS += [verb + ending for ending in ("s", "") for verb in VERBS]
INDEX = {word: i for i, word in enumerate(WORDS)}
VERB_FORMS = torch.tensor([[INDEX[verb + ending] for verb in VERBS] for ending in ("s", "")])
"""int64 [2, verbs]: the singular forms and the plural ones."""


@dataclass(frozen=True)
class Sentences:
    """Beginnings of sentences, up to where the verb comes.

    Attributes:
        input_ids: int64 [n, T], right-padded.
        lengths: int64 [n].
        plural: int64 [n], whether the subject is plural.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    plural: torch.Tensor


def sentences(count: int, seed: int) -> Sentences:
    """Subjects with none to two further nouns behind them, each singular or plural by itself."""
    source = random.Random(seed)
    rows, numbers = [], []
    for _ in range(count):
        plural = source.random() < 0.5
        row = ["<s>", "the", source.choice(NOUNS) + "s" * plural]
        for _ in range(source.randrange(3)):
            row += [source.choice(PREPOSITIONS), "the", source.choice(NOUNS) + "s" * (source.random() < 0.5)]
        rows.append([INDEX[word] for word in row])
        numbers.append(int(plural))
    longest = max(map(len, rows))
    padded = [row + [INDEX["<pad>"]] * (longest - len(row)) for row in rows]
    return Sentences(torch.tensor(padded), torch.tensor([len(row) for row in rows]), torch.tensor(numbers))
