"""The best neurons by any score table, in as large a set as another: a fair opponent for it."""

from __future__ import annotations

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES, MLP_MODULES
from culnig_fast.scores import ScoreTable, check_same_layout
from culnig_fast.selection import ranking
from culnig_fast.selection.ranking import NotANumberError, Source


def select_like(
    table: ScoreTable, like: NeuronSet, *, control: ScoreTable | None = None, method: str = "score"
) -> NeuronSet:
    """As many neurons as `like` holds of each pool (MLP, attention), the best of that pool by `table`.

    A pool is made of the modules that `like` has neurons of. Scores are means over samples, less the control set's
    where one is given; equal scores keep flat order.

    Raises:
        CulnigError: tables of different neurons, a module that was not scored, or a pool too small.
    """
    tables = [("neur", table)] + ([] if control is None else [("control", control)])
    check_same_layout(tables)
    flat, scores, sizes = [], [], {}
    for pool, modules in (("mlp", MLP_MODULES), ("attention", ATTENTION_MODULES)):
        present = [name for name in modules if name in like.module_names]
        if not present:
            continue
        count = len(like.where(present))
        indices = table.layout.indices(present)
        if count > len(indices):
            raise CulnigError(f"{count} neurons were asked for from a pool of {len(indices)}; choose a smaller set")
        sites = [table.layout.slice(s.module_name, s.layer_idx) for s in table.layout.sites if s.module_name in present]
        ranges = np.array([[site.start, site.stop] for site in sites], dtype=np.int64)
        subtrahend = None if control is None else Source("control", control.totals, control.n_samples)
        try:
            best, values = ranking.rank(Source("neur", table.totals, table.n_samples), subtrahend, ranges, count)
        except NotANumberError as error:
            raise CulnigError(f"the {error.source} score of a neuron is NaN; score again in float32") from None
        flat.append(best)
        scores.append(values)
        sizes[pool] = {"modules": present, "neurons": count}
    info = {"selection": method, "like": sizes, "source": table.metadata}
    if not flat:
        return NeuronSet((), np.zeros(0), np.zeros(0), np.zeros(0), info)
    joined, values = np.concatenate(flat), np.concatenate(scores)
    order = np.lexsort((joined, -values))
    return NeuronSet.from_flat(table.layout, joined[order], values[order], info)
