"""Every figure in the order in which a reader should see them; each is drawn from the csv of its name alone.

A run makes the csv files that it has the data for; the comment above a figure says by which function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from culnig_fast.analysis.plots import (
    instances,
    kin,
    kinship,
    kinship_ranks,
    layers,
    layers_countries,
    overlap,
    parts,
    scores,
    stability_neurons,
    stability_resamples,
    stability_thresholds,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
        name: stem of its csv and of the figure's files.
        title: a heading.
        caption: what is drawn, for below the figure.
        draw: makes it of the csv's frame; CulnigError for a frame of another analysis or without rows.
        describe: says in one to three sentences what it shows, for those who do not see it.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[pd.DataFrame], Figure]
    describe: Callable[[pd.DataFrame], str]


_ALL = (
    # analysis.parts.parts_lost
    Plot(
        "parts",
        "MLP against attention",
        "Points lost on each task when the MLP neurons of the culture-general set, its attention neurons, both, or as "
        "many random neurons as both are suppressed. Lines: paired-bootstrap intervals over the questions, 95 % unless "
        "the run was told otherwise.",
        parts.draw,
        parts.describe,
    ),
    # analysis.layers.neurons_by_layer({"general": …}, layout, random)
    Plot(
        "layers",
        "Where the culture-general neurons lie",
        "Culture-general neurons in each layer, module by module, beside random sets of the same size.",
        layers.draw,
        layers.describe,
    ),
    # analysis.layers.neurons_by_layer({"general": …, "China": …, …}, layout)
    Plot(
        "layers-countries",
        "Where each country's neurons lie",
        "Share of a set's neurons in each layer, MLP above and attention below; the cells of a set add up to 100 % "
        "over both.",
        layers_countries.draw,
        layers_countries.describe,
    ),
    # analysis.scores.score_histogram
    Plot(
        "scores",
        "Scores of all neurons",
        "All neurons of a pool by their score (culture questions less control), in bins that widen away from 0. Right "
        "of the dashed line are the candidates; hatched are those that the CountryRC filter left, the culture-general "
        "neurons.",
        scores.draw,
        scores.describe,
    ),
    # analysis.overlap.overlaps
    Plot(
        "overlap",
        "Overlap of the countries' neurons",
        "Jaccard overlap of every two sets (below the diagonal) and what independent sets of these sizes would have "
        "(above). Bold: more shared than independent sets that keep their numbers of MLP and attention neurons, "
        "p < 0.05 after Holm's adjustment over the pairs. On the diagonal: neurons of the set.",
        overlap.draw,
        overlap.describe,
    ),
    # analysis.kinship.drops
    Plot(
        "kinship",
        "What each country loses",
        "Points that each country's questions lose (columns) when the neurons of one country are suppressed (rows). "
        "Outlined: the country's own questions.",
        kinship.draw,
        kinship.describe,
    ),
    # analysis.kinship.average_ranks
    Plot(
        "kinship-ranks",
        "Kinship of countries",
        "How high two countries rank among all when the other's neurons are suppressed, averaged over both directions "
        "(1: loses most); outlined: rank of the country's own questions. The tree joins countries by average linkage "
        "of these ranks.",
        kinship_ranks.draw,
        kinship_ranks.describe,
    ),
    # analysis.kin.kin_ranks; only where kin are known
    Plot(
        "kin",
        "Are known kin recovered?",
        "Rank of each known kin under the suppression of the country's neurons (suppressed → kin), by bare drops and "
        "by drops without each set's and each country's mean effect; dashed: the mean rank of chance.",
        kin.draw,
        kin.describe,
    ),
    # analysis.instances.positive_shares
    Plot(
        "instances",
        "On how many samples a neuron helps",
        "Chosen neurons by the share of samples on which their score is positive. The paper reports 29 % on average "
        "for the top neurons of its models.",
        instances.draw,
        instances.describe,
    ),
    # the same of scores summed over positions
    Plot(
        "instances-sum",
        "On how many samples a neuron helps, over all positions",
        "As before, of scores that are summed over the positions: the first-order effect of zeroing the neuron "
        "everywhere. A maximum over many positions is hardly ever below 0, a sum may well be.",
        instances.draw,
        instances.describe,
    ),
    # analysis.stability.resample_overlaps
    Plot(
        "stability-resamples",
        "Would other questions choose the same set?",
        "Overlap of the culture-general set of each bootstrap resample of the questions with the set of all questions "
        "and with those of the other resamples; dashed: random sets of as many MLP and attention neurons.",
        stability_resamples.draw,
        stability_resamples.describe,
    ),
    # analysis.stability.selection_frequency
    Plot(
        "stability-neurons",
        "How surely each neuron is chosen",
        "Neurons by the share of bootstrap resamples of the questions in which they are chosen.",
        stability_neurons.draw,
        stability_neurons.describe,
    ),
    # analysis.stability.threshold_overlaps
    Plot(
        "stability-thresholds",
        "Would other thresholds choose the same set?",
        "Overlap of the culture-general sets at every two settings of the thresholds.",
        stability_thresholds.draw,
        stability_thresholds.describe,
    ),
)

PLOTS: dict[str, Plot] = {plot.name: plot for plot in _ALL}
"""Name → figure."""
