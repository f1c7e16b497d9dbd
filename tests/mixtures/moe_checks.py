"""What the tests of mixtures share: questions, attribution over every site, the error of a table."""

from __future__ import annotations

from typing import Any

import moe_oracle
import numpy as np
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(9, groups=2, longest=6)
EVERY = (*moe_oracle.ATTENTION, *moe_oracle.SHARED, *moe_oracle.EXPERTS)
TOKENS = torch.tensor([[9, 12, 30, 5, 22], [8, 40, 41, 8, 8]])


def samples_of(questions: list[Any]) -> list[tuple[list[int], int, int]]:
    groups = list(dict.fromkeys(q.group for q in questions))
    encode = TOKENIZER.convert_tokens_to_ids
    return [(TOKENIZER(q.prompt)["input_ids"], encode(q.answer), groups.index(q.group)) for q in questions]


def sites_of(model: Any) -> list[str]:
    return [name for name in EVERY if "shared" not in name or hasattr(model.model.layers[0].mlp, "shared_expert")]


def attributed(model: Any, questions: Any = QUESTIONS, **options: Any) -> Any:
    options = {"sites": sites_of(model), "batch_tokens": 20, "progress": False, **options}
    return cf.attribute(model, TOKENIZER, questions, **options)


def worst(got: np.ndarray, want: np.ndarray, layout: Any) -> float:
    """The largest error of a site as a share of its largest score."""
    errors = []
    for site in layout.sites:
        where = layout.slice(site.module_name, site.layer_idx)
        scale = np.abs(want[:, where]).max()
        assert scale > 0, f"nothing is scored at {site}"
        errors.append(np.abs(got[:, where] - want[:, where]).max() / scale)
    return float(max(errors))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def some_neurons(model: Any, count: int = 60) -> cf.NeuronSet:
    layout = cf.discover(model).layout(sites_of(model))
    return cf.NeuronSet.from_flat(layout, np.random.default_rng(0).choice(layout.size, count, replace=False))
