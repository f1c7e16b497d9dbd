"""How much of a run one page holds; what is beyond is left out, and the page says so."""

from __future__ import annotations

NEURON_ROWS = 20_000
"""Rows of the neuron tables together: about 50 bytes each."""

SAMPLED_NEURONS = 200
"""Neurons whose top and bottom samples are embedded."""

QUESTION_BYTES = 800_000
"""Of all questions shown under neurons together, as the page holds them."""

FIGURE_BYTES = 800_000
"""Of one figure's file."""

FIGURES_BYTES = 2_000_000
"""Of all figures together, as the page holds them."""

CSV_BYTES = 750_000
"""Of all csv files together, before they are encoded (which adds a third)."""

PREVIEW_ROWS = 40
"""Rows of a figure's csv that are shown beneath it."""


def shares(sizes: list[int], limit: int) -> list[int]:
    """Shares of `limit` of lists of the given sizes: everything where it fits, else small ones whole, large ones alike.

    The sum is at most `limit`; no list gets more than it has, and one that is cut has at least as much as any other.
    """
    granted = [0] * len(sizes)
    left = limit
    waiting = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    while waiting:
        first = waiting.pop(0)
        granted[first] = min(sizes[first], left // (len(waiting) + 1))
        left -= granted[first]
    return granted
