"""Batches of random tokens, as a length-sorted question set gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

PADDING_WASTE = 0.03
"""Share of a row that may be padding: what token-budget batches of length-sorted questions leave."""


@dataclass(frozen=True)
class Batch:
    """Samples run together, all tensors on the device.

    Attributes:
        input_ids: int64 [S, T], right-padded.
        lengths: int64 [S].
        answers: int64 [S], gold token of each sample.
        groups: int64 [S].
        n_groups: number of groups.
        tokens: real tokens, padding not counted.
        longest: T.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    answers: torch.Tensor
    groups: torch.Tensor
    n_groups: int
    tokens: int
    longest: int

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the samples as a batch of their own, padded as before."""
        lengths = self.lengths[start:stop]
        return Batch(
            self.input_ids[start:stop],
            lengths,
            self.answers[start:stop],
            self.groups[start:stop],
            self.n_groups,
            int(lengths.sum()),
            self.longest,
        )

    def singles(self) -> Iterator[Batch]:
        """Every sample by itself, without padding."""
        for row, length in enumerate(self.lengths.tolist()):
            one = self.rows(row, row + 1)
            yield Batch(one.input_ids[:, :length], one.lengths, one.answers, one.groups, self.n_groups, length, length)


def make_batch(
    samples: int,
    length: int,
    vocabulary: int,
    device: torch.device,
    *,
    shortest: int | None = None,
    n_groups: int = 16,
    seed: int = 0,
) -> Batch:
    """Random samples of `shortest`…`length` tokens (within `PADDING_WASTE` of it when None), one full."""
    generator = torch.Generator().manual_seed(seed)
    if shortest is None:
        shortest = length - int(length * PADDING_WASTE)
    lengths = torch.randint(shortest, length + 1, (samples,), generator=generator)
    lengths[0] = length
    input_ids = torch.randint(0, vocabulary, (samples, length), generator=generator)
    input_ids[torch.arange(length) >= lengths[:, None]] = 0
    return Batch(
        input_ids.to(device),
        lengths.to(device),
        torch.randint(0, vocabulary, (samples,), generator=generator).to(device),
        torch.randint(0, n_groups, (samples,), generator=generator).to(device),
        n_groups,
        int(lengths.sum()),
        length,
    )
