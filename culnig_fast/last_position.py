"""Logits of each sample's last real token, without a [batch, T, vocabulary] tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from culnig_fast.attention import without_cudnn
from culnig_fast.errors import CulnigError
from culnig_fast.one_sequence import one_sequence_a_row
from culnig_fast.uncompiled import uncompiled


class LastPosition:
    """Makes a causal model's own head run on one position a sample.

    A hook before the output embedding gathers the last real position of each right-padded row, so whatever the model
    does to its logits (soft-cap, scale) is done to [batch, 1, vocabulary]. No attention mask is built: in a causal
    model nothing that follows the last real token reaches it.

    Args:
        model: the Hugging Face model.
        head: its output embedding.
    """

    def __init__(self, model: Any, head: nn.Module) -> None:
        self.model = model
        self._lengths: torch.Tensor | None = None
        self._tokens = 0
        self._handle = head.register_forward_pre_hook(self._gather)

    def logits(self, input_ids: torch.Tensor, lengths: torch.Tensor, **further: torch.Tensor) -> torch.Tensor:
        """Run the model.

        Args:
            input_ids: int64 [batch, T], right-padded.
            lengths: int64 [batch], each in 1…T.
            further: inputs that the model asks for beside these, position_ids not among them.

        Returns:
            [batch, vocabulary] logits of the last real position, in float32 (float64 in a float64 model): softmax
            and its gradient in bf16 are 20 % off at P = 0.99 and 0 from P = 0.999.

        Raises:
            CulnigError: the head gets another number of positions than the model was given.
        """
        self._lengths, self._tokens = lengths, input_ids.shape[1]
        try:
            with one_sequence_a_row(), without_cudnn(), uncompiled():
                logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False, **further).logits
        finally:
            self._lengths = None
        logits = logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def _gather(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._lengths is None:
            return None
        hidden = args[0]
        if hidden.shape[1] == 1:  # one token a sample, or the last layer was cut to its last position
            return None
        if hidden.shape[1] != self._tokens:
            raise CulnigError(
                f"{type(self.model).__name__} hands {hidden.shape[1]} positions to its head for {self._tokens} tokens, "
                "so the last token's cannot be told; give the model without what adds or drops tokens (the virtual "
                "tokens of prompt tuning)"
            )
        last = (self._lengths.to(hidden.device) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return (hidden.gather(1, last), *args[1:])


def check_causal(model: Any, head: LastPosition) -> None:
    """Raise CulnigError when what a model answers depends on tokens that follow, and so on padding.

    Args:
        model: in evaluation mode.
        head: its last position.
    """
    embedding = model.get_input_embeddings().weight
    input_ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=embedding.device) % len(embedding)
    with torch.no_grad():
        one, other = head.logits(input_ids, torch.tensor([2, 2], device=embedding.device)).double()
    # Rows of one batch round alike but for the last bits of some products.
    if float((one - other).abs().max()) > (1e-5 + 8 * torch.finfo(embedding.dtype).eps) * float(one.abs().max()):
        raise CulnigError(
            f"{type(model).__name__} also reads the tokens that follow (it is not causal), so an answer would depend "
            "on its padding; only decoders that read from left to right are supported"
        )


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout and the like off inside the block, and nothing compiled: what was compiled would run past our hooks.

    Every module's training flag is as it was afterwards.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with uncompiled():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside the block; each as it was afterwards.

    Raises:
        CulnigError: the model was made under torch.inference_mode(), and no gradient can pass its parameters.
    """
    made_so = next((name for name, parameter in model.named_parameters() if parameter.is_inference()), None)
    if made_so is not None:
        raise CulnigError(
            f"{made_so} of {type(model).__name__} was made under torch.inference_mode(), so no gradient can pass it; "
            "make or load the model outside that block (torch.no_grad() does no harm)"
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
