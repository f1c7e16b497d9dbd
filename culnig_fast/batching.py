"""Right-padded batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from culnig_fast.errors import CulnigError

_DEFAULT_TOKENS = {"cpu": 2048}
_DEFAULT_TOKENS_ELSEWHERE = 16384


def default_batch_tokens(device: torch.device) -> int:
    """Padded tokens a batch: on a CPU more than 2,048 only costs memory; a GPU needs more than that to be busy."""
    return _DEFAULT_TOKENS.get(device.type, _DEFAULT_TOKENS_ELSEWHERE)


@dataclass(frozen=True)
class Batch:
    """Samples run together.

    Attributes:
        input_ids: int64 [batch, T], right-padded.
        lengths: int64 [batch], real tokens of each sample; T is the longest.
        index: int64 [batch], position of each sample among those given.
        positions: bool [batch, T], the tokens that count; None means all real ones.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    index: torch.Tensor
    positions: torch.Tensor | None = None


def plan_batches(lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None) -> list[np.ndarray]:
    """Partition samples into batches; every sample is in exactly one.

    With `batch_size` None, samples are sorted by length, longest first (so that the largest batch comes first and
    memory runs out early or never), ties in the order given, and a batch holds as many as fit rows × longest ≤
    `batch_tokens`, at least one. With a `batch_size`, batches are that many consecutive samples in the order given,
    as programs without a token budget form them.

    Returns:
        int64 index arrays.

    Raises:
        CulnigError: a budget or size below 1.
    """
    if batch_tokens < 1 or (batch_size is not None and batch_size < 1):
        raise CulnigError("a batch needs room for at least one token and one sample; raise batch_tokens or batch_size")
    if batch_size is not None:
        return [np.arange(i, min(i + batch_size, len(lengths))) for i in range(0, len(lengths), batch_size)]
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def make_batch(
    token_ids: Sequence[Sequence[int]],
    index: np.ndarray,
    device: torch.device,
    width: int | None = None,
    marks: Sequence[np.ndarray] | None = None,
) -> Batch:
    """Pad the chosen samples to one tensor on `device`, to the longest of them or to `width`.

    `marks`, bool [tokens] of each sample, become the batch's positions.

    A pad repeats the sample's last token: nothing after the last real token reaches it in a causal model, and no
    library takes a real token for padding that somebody forgot to mask.
    """
    chosen = [token_ids[i] for i in index]
    lengths = np.array([len(tokens) for tokens in chosen], dtype=np.int64)
    padded = np.empty((len(chosen), width or int(lengths.max())), dtype=np.int64)
    for row, tokens in zip(padded, chosen, strict=True):
        row[: len(tokens)] = tokens
        row[len(tokens) :] = tokens[-1]
    arrays = [padded, lengths, np.asarray(index, dtype=np.int64)]
    if marks is not None:
        positions = np.zeros(padded.shape, dtype=bool)
        for row, i in zip(positions, index, strict=True):
            row[: len(marks[i])] = marks[i]
        arrays.append(positions)
    return Batch(*(_sent(array, device) for array in arrays))


def padding_waste(lengths: Sequence[int], batches: Sequence[np.ndarray]) -> float:
    """Share of the batches' positions that are padding, 0 to 1."""
    sizes = np.asarray(lengths, dtype=np.int64)
    positions = sum(len(index) * int(sizes[index].max()) for index in batches)
    return 1.0 - float(sizes.sum()) / positions if positions else 0.0


def _sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device; to a GPU from pinned memory, so that the host goes on while it travels."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
