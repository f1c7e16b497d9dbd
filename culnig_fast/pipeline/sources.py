"""What the analyses of a run read, each file once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.pipeline.identification import kinship, load_set, load_table, specific
from culnig_fast.pipeline.reporting import task_points
from culnig_fast.pipeline.workbench import Workbench

if TYPE_CHECKING:
    import pandas as pd

    from culnig_fast.scores import ScoreTable


class Sources:
    """What the analyses read of a run, each file once.

    Args:
        bench: of the run.
        out: its folder.
    """

    def __init__(self, bench: Workbench, out: Path) -> None:
        self.bench, self.out, self.config = bench, out, bench.config
        self.points = functools.cache(lambda label: task_points(bench, out, label))
        self.neurons = functools.cache(lambda name: load_set(out, name))
        self.table = functools.cache(lambda name: load_table(out, name))

    def tables(self, prefix: str = "") -> tuple[ScoreTable, ScoreTable, ScoreTable]:
        """Identification, control and CountryRC."""
        return self.table(f"{prefix}neur"), self.table(f"{prefix}control"), self.table(f"{prefix}crc")

    def countries(self) -> dict[str, NeuronSet]:
        """Each country's specific set."""
        return {country: self.neurons(specific(country)) for country in self.config.countries}

    def chosen(self) -> dict[str, NeuronSet]:
        """The general set and each country's, by the names that people read."""
        return {"general": self.neurons("general"), **self.countries()}

    @functools.cached_property
    def kinship(self) -> pd.DataFrame:
        """Drops under the sets that kinship is drawn from."""
        return self.drops({country: kinship(self.config, country) for country in self.config.countries})

    @functools.cached_property
    def resampled(self) -> dict[str, NeuronSet]:
        """The general set of each resample of the questions."""
        from culnig_fast.analysis.stability import select_resamples
        from culnig_fast.selection.rules import select_general

        limits = self.config.thresholds

        def select(neur: ScoreTable, control: ScoreTable | None, surface: ScoreTable | None) -> NeuronSet:
            return select_general(
                neur,
                control,
                surface,
                mlp_share=limits.mlp_share,
                attention_share=limits.attention_share,
                surface_share=limits.surface_share,
            )

        return select_resamples(*self.tables("resampled-"), select=select)

    def drops(self, names: dict[str, str]) -> pd.DataFrame:
        """What each country's set of that name takes from every country, by the task's points."""
        from culnig_fast.analysis.kinship import drops

        return drops(self.points(self.config.culture), names)
