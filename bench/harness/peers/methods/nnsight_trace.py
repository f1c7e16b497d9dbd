"""nnsight: a trace that reads each module's output, and a backward trace that reduces each gradient as it comes."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch
from harness.peers.sharing import with_shared_weights

NAME = "nnsight"
SUMMARY = "nnsight: a trace of the decoder, its products reduced inside a backward trace"
LIBRARY = "nnsight"
NOTE = ""


def ready(model: Any) -> Any:
    """The model as nnsight wraps one that is loaded already."""
    from nnsight import NNsight
    from nnsight.intervention import backward

    if hasattr(backward, "install"):
        backward.install()  # where it was imported before, torch's own `Tensor.backward` may be back in place
    return NNsight(with_shared_weights(model))


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    import nnsight

    model.requires_grad_(False)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    envoys = [model.get(f"model.layers.{i}.{name}") for i in range(len(model.model.layers)) for name in names]
    embedded = model.get_input_embeddings()(batch.input_ids).requires_grad_()
    rows = torch.arange(len(batch), device=embedded.device)
    padded = (torch.arange(batch.longest, device=embedded.device) >= batch.lengths[:, None])[:, :, None]
    with model.model.trace(inputs_embeds=embedded, use_cache=False):
        best = nnsight.save([])
        acts = [envoy.output for envoy in envoys]
        hidden = model.model.output.last_hidden_state
        logits = model.lm_head(hidden[rows, batch.lengths - 1]).float()
        log_p = logits.log_softmax(-1)[rows, batch.answers].save()
        with log_p.sum().backward():
            for act in reversed(acts):
                product = act.detach().float() * act.grad.float()
                best.append(product.masked_fill_(padded, -torch.inf).amax(1))
    weight = (2 * log_p.detach().double()).exp()
    return torch.cat([weight @ x.double() for x in reversed(best)])
