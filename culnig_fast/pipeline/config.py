"""What a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from culnig_fast.tasks.countries import TARGET_COUNTRIES

BASELINES = ("lape", "cape", "mean-activation", "weight-norm")

LANGUAGES: dict[str, tuple[str, ...]] = {
    "English": ("UK", "USA"),
    "Korean": ("North Korea", "South Korea"),
    "Spanish": ("Mexico", "Spain"),
}
"""Countries of BLEnD that share a language, for LAPE; every other country stands for a language of its own."""


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint, and how it is loaded."""

    name: str
    dtype: str = "auto"
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class TaskConfig:
    """One benchmark of a run.

    Attributes:
        label: what the run calls it: the column of the tables.
        task: one of `tasks()`; the label unless said otherwise.
        data: a file, a hub id, `demo` for the embedded model's, or None for the benchmark's own place.
        files: further files.
        split: which split is evaluated; None means `test`, or `all` where there is no test split.
        evaluate: whether it is a column of the tables (identification alone does not need it).
        limit: at most that many questions of each group, the first ones; None means all.
    """

    label: str
    task: str
    data: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    evaluate: bool = True
    limit: int | None = None


@dataclass(frozen=True)
class Thresholds:
    """Shares and bars of selection (CULNIG, sections 5 and 6)."""

    mlp_share: float = 0.01
    attention_share: float = 0.002
    surface_share: float = 0.01
    specific_share: float = 0.003
    specific_surface_share: float = 0.01
    min_z: float = 0.5


@dataclass(frozen=True)
class Scoring:
    """How a sample's scores are made of those of its tokens; see `attribution.attribute`.

    Attributes:
        reduction: over positions; the method takes the maximum.
        positions: which: `all`, `last` or `content`.
    """

    reduction: str = "max"
    positions: str = "all"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals and p-values are drawn."""

    resamples: int = 10_000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Analyses:
    """What is looked at beyond the tables.

    Attributes:
        resamples: bootstrap resamples of the questions that the general set is chosen anew for; each score table takes
            one more pass and 8 bytes a neuron and resample. 0 leaves stability out.
        seed: of the resamples.
        shown: at most that many neurons of a country's set are looked at sample by sample.
        samples: top and bottom samples of a neuron that are kept with their text.
        summed: also record the sum over positions of each sample: the maximum over many positions is nearly always
            above 0, while the sum, the first-order effect of zeroing the neuron, has both signs.
        kinship_share: also choose each country's neurons at this share, and draw kinship from these sets: the method's
            share may leave a handful of neurons in a small model. None draws it from the specific sets.
        figures: draw them; without matplotlib none are drawn.
        kin: groups of countries known to be kin, to be found again by the kinship analysis.
    """

    resamples: int = 0
    seed: int = 0
    shown: int = 200
    samples: int = 5
    summed: bool = False
    kinship_share: float | None = None
    figures: bool = True
    kin: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """A checked config; `reading.load_config` makes one.

    Attributes:
        out: the folder that everything is written under.
        culture, surface: labels of the tasks that identify neurons and that drop the superficial ones.
        countries: whose specific neurons are looked for.
        seeds: of the random sets.
        baselines: some of `BASELINES`.
        languages: which groups of the culture task LAPE takes together.
        published: which model's published figures belong to this run.
    """

    model: ModelConfig
    out: Path
    tasks: tuple[TaskConfig, ...]
    culture: str = "blend"
    surface: str = "country_rc"
    sites: tuple[str, ...] | None = None
    scoring: Scoring = field(default_factory=Scoring)
    thresholds: Thresholds = field(default_factory=Thresholds)
    countries: tuple[str, ...] = TARGET_COUNTRIES
    seeds: tuple[int, ...] = tuple(range(10))
    baselines: tuple[str, ...] = ()
    languages: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(LANGUAGES))
    batch_tokens: int | None = None
    on_unusable: str = "skip"
    max_new_tokens: int = 32
    checkpoint_seconds: float = 60.0
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    analyses: Analyses = field(default_factory=Analyses)
    published: str | None = None

    def task(self, label: str) -> TaskConfig:
        """The task of that label."""
        return next(task for task in self.tasks if task.label == label)
