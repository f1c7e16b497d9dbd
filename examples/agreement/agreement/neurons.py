"""Scores, selection and proof, all through the public names of culnig_fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from agreement.language import VERB_FORMS, Sentences

import culnig_fast as cf


def preference(logits: torch.Tensor, plural: torch.Tensor) -> torch.Tensor:
    """How much more probable right verb forms are than wrong ones, log odds [n]."""
    forms = torch.stack([logits[:, verbs].logsumexp(-1) for verbs in VERB_FORMS], dim=1)
    rows = torch.arange(len(logits))
    return forms[rows, plural] - forms[rows, 1 - plural]


def score(model: Any, data: Sentences) -> tuple[torch.Tensor, cf.NeuronLayout]:
    """Each neuron's part in the preference: float64 [2, neurons], a row for each number of the subject."""
    with cf.Attributor(model, n_groups=2, reduction="sum") as attributor:
        logits = attributor.forward(data.input_ids, data.lengths)
        attributor.backward(preference(logits, data.plural), group=data.plural)
    return attributor.totals, attributor.layout


def select(totals: torch.Tensor, layout: cf.NeuronLayout, count: int) -> cf.NeuronSet:
    """The neurons that help most with the number that they help less with: those of agreement, not of one form."""
    best = totals.min(dim=0).values.topk(count)
    return cf.NeuronSet.from_flat(layout, best.indices, best.values, {"chosen_for": "agreement"})


def foretold(model: Any, data: Sentences, totals: torch.Tensor, neurons: cf.NeuronSet, layout: cf.NeuronLayout) -> Any:
    """How well the neurons' scores foretell what silencing each by itself costs: rank correlation and the like."""
    ablator = cf.ModuleAblator(model, cf.ModuleNeurons.of_decoder(model, neurons), progress=False)
    ablator.add(lambda m: preference(last_logits(m, data), data.plural))
    return cf.agreement(totals.sum(0)[neurons.flat(layout)].numpy(), ablator.effects[0], top=len(neurons) // 4)


def last_logits(model: Any, data: Sentences) -> torch.Tensor:
    """Where the verb comes, [n, words]."""
    return model(input_ids=data.input_ids).logits[torch.arange(len(data.lengths)), data.lengths - 1]


@torch.no_grad()
def answers(model: Any, data: Sentences) -> tuple[np.ndarray, np.ndarray]:
    """bool [n] each: whether the verb would agree, and whether a verb of any number or a preposition comes at all."""
    logits = last_logits(model, data)
    word = logits.argmax(-1)
    continues = torch.isin(word, VERB_FORMS) | ((word >= 3) & (word < 6))
    return (preference(logits, data.plural) > 0).numpy(), continues.numpy()


def report(
    model: Any, data: Sentences, chosen: cf.NeuronSet, layout: cf.NeuronLayout, draws: int = 10
) -> dict[str, Any]:
    """Agreement with all neurons, without the chosen ones, and without as many random ones."""
    agree, _ = answers(model, data)
    with cf.suppress(model, chosen):
        without, sentence = answers(model, data)
    random = []
    for seed in range(draws):
        with cf.suppress(model, cf.select_random(layout, len(chosen), seed=seed)):
            random.append(answers(model, data)[0])
    test = cf.paired_bootstrap(without, np.mean(random, axis=0), resamples=2000)
    return {
        "agreement": float(agree.mean()),
        "without": float(without.mean()),
        "without_random": float(np.mean(random)),
        "p_value": test.p_less,
        "still_a_sentence": float(sentence.mean()),
    }
