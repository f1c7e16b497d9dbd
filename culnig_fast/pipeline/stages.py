"""What a run consists of: every stage with its inputs, its outputs and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from culnig_fast.pipeline import conditions as under
from culnig_fast.pipeline import identification as found
from culnig_fast.pipeline.digests import code_digest, digest
from culnig_fast.pipeline.manifest import Manifest
from culnig_fast.pipeline.workbench import Workbench


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: in the manifest; its first part is its kind.
        needs: names of the stages whose outputs it reads.
        outputs: the files it writes.
        inputs: named digests of everything else that its outputs depend on.
        make: writes the outputs; given the path for unfinished work of exactly these inputs.
        size: (label, split) of the questions that it goes through, or None.
    """

    name: str
    needs: tuple[str, ...]
    outputs: tuple[Path, ...]
    inputs: Callable[[], dict[str, str]]
    make: Callable[[Path], None]
    size: tuple[str, str] | None = None

    @property
    def kind(self) -> str:
        """scores, activations, neurons, results, tables, instances, analysis, figures, facts or published."""
        return self.name.split("/")[0]


def plan(bench: Workbench, compare: bool = False) -> list[Stage]:
    """All stages in the order in which they run.

    Args:
        bench: of the run.
        compare: also put the published figures beside the run's.
    """
    out = bench.config.out
    stages = [_scores(bench, out, name) for name in found.tables(bench.config)]
    if bench.config.analyses.resamples:
        stages += [_scores(bench, out, name, bench.config.analyses.resamples) for name in found.tables(bench.config)]
    if found.counted(bench.config):
        stages.append(_activations(bench, out))
    stages += [_neurons(bench, out, name) for name in found.sets(bench.config)]
    results = [
        _results(bench, out, label, condition)
        for label in bench.evaluated()
        for condition in under.conditions_of(bench, label)
    ]
    stages += results
    stages.append(_tables(bench, out, results))
    stages += _looked_at(bench, out, results)
    stages.append(_facts(bench, out))
    if compare:
        stages.append(_published(bench, out))
    return stages


def inputs_of(stage: Stage, manifest: Manifest) -> dict[str, str]:
    """A stage's own inputs and the outputs that it reads; its needs are done."""
    return {
        **stage.inputs(),
        **({"needs": digest([manifest.output(name) for name in stage.needs])} if stage.needs else {}),
    }


def _common(bench: Workbench, label: str, split: str, code: str, options: Mapping[str, Any]) -> dict[str, str]:
    import torch
    import transformers

    return {
        "model": bench.model_digest,
        "questions": bench.questions_digest(label, split),
        "options": digest({**options, "batch_tokens": bench.config.batch_tokens, "unusable": bench.config.on_unusable}),
        "code": code,
        "libraries": digest([torch.__version__, transformers.__version__]),
    }


def _scores(bench: Workbench, out: Path, table: str, resamples: int = 0) -> Stage:
    label, split = found.tables(bench.config)[table]
    name = f"resampled-{table}" if resamples else table
    path = out / "scores" / f"{name}.safetensors"
    code = code_digest("culnig_fast.attribution")
    options: dict[str, Any] = {"sites": bench.config.sites, "split": split, "scoring": asdict(bench.config.scoring)}
    if resamples:
        options["resamples"] = [resamples, bench.config.analyses.seed]
    return Stage(
        name=f"scores/{name}",
        needs=(),
        outputs=(path,),
        inputs=lambda: _common(bench, label, split, code, options),
        make=lambda partial: found.score(bench, label, split, path, partial, resamples),
        size=(label, split),
    )


def _activations(bench: Workbench, out: Path) -> Stage:
    label, split = bench.config.culture, "neur"
    path = out / "scores" / "activations.safetensors"
    code = code_digest("culnig_fast.baselines.activations")
    return Stage(
        name="activations",
        needs=(),
        outputs=(path,),
        inputs=lambda: _common(bench, label, split, code, {"sites": bench.config.sites}),
        make=lambda partial: found.count(bench, label, split, path),
        size=(label, split),
    )


def _neurons(bench: Workbench, out: Path, name: str) -> Stage:
    path = out / "neurons" / f"{name}.json"
    choice = found.choice(bench, out, name)

    def inputs() -> dict[str, str]:
        model = {"model": bench.model_digest} if choice.reads_model else {}
        return {"options": digest(choice.options), "code": code_digest(*choice.modules), **model}

    return Stage(
        name=f"neurons/{name}",
        needs=choice.needs,
        outputs=(path,),
        inputs=inputs,
        make=lambda partial: choice.choose().save(path, overwrite=True),
    )


def _results(bench: Workbench, out: Path, label: str, condition: under.Condition) -> Stage:
    path = out / "results" / condition.name / f"{label}.jsonl"
    split = bench.evaluated()[label]
    code = code_digest("culnig_fast.evaluation", "culnig_fast.generation", "culnig_fast.masking")
    options = {"factor": condition.factor, "split": split, "max_new_tokens": bench.config.max_new_tokens}
    needs = () if condition.neurons is None else (f"neurons/{condition.neurons}",)
    return Stage(
        name=f"results/{condition.name}/{label}",
        needs=needs,
        outputs=(path,),
        inputs=lambda: _common(bench, label, split, code, options),
        make=lambda partial: under.evaluate_under(bench, out, label, condition, path),
        size=(label, split),
    )


def _tables(bench: Workbench, out: Path, results: list[Stage]) -> Stage:
    from culnig_fast.pipeline import reporting

    return Stage(
        name="tables",
        needs=tuple(stage.name for stage in results),
        outputs=reporting.table_paths(bench, out),
        inputs=lambda: reporting.inputs(bench, out),
        make=lambda partial: reporting.write_tables(bench, out),
    )


def _looked_at(bench: Workbench, out: Path, results: list[Stage]) -> list[Stage]:
    """Single samples, analyses and, where matplotlib is installed, figures."""
    import importlib.util

    import pandas as pd

    from culnig_fast.pipeline import analyses, recording

    config = bench.config
    sets = ("neurons/general", *(f"neurons/{found.specific(country)}" for country in config.countries))
    code = code_digest("culnig_fast.instances")
    stages = [
        Stage(
            name="instances",
            needs=sets,
            outputs=tuple(recording.instance_path(out, reduction) for reduction in recording.reductions(config)),
            inputs=lambda: _common(
                bench,
                config.culture,
                "neur",
                code,
                {
                    "shown": config.analyses.shown,
                    "reductions": recording.reductions(config),
                    "positions": config.scoring.positions,
                },
            ),
            make=lambda partial: recording.record(bench, out),
            size=(config.culture, "neur"),
        ),
        Stage(
            name="analysis",
            needs=(
                *(f"scores/{name}" for name in found.tables(config)),
                *(f"scores/resampled-{name}" for name in found.tables(config) if config.analyses.resamples),
                *(f"neurons/{name}" for name in found.sets(config)),
                *(stage.name for stage in results),
                "tables",
                "instances",
            ),
            outputs=analyses.paths(bench, out),
            inputs=lambda: {
                "options": digest([asdict(config.analyses), asdict(config.bootstrap), asdict(config.thresholds)]),
                "code": code_digest("culnig_fast.pipeline.analyses"),
                "libraries": digest([pd.__version__]),
            },
            make=lambda partial: analyses.write(bench, out),
        ),
    ]
    if config.analyses.figures and importlib.util.find_spec("matplotlib") is not None:
        import matplotlib

        stages.append(
            Stage(
                name="figures",
                needs=("analysis",),
                outputs=analyses.figure_paths(bench, out),
                inputs=lambda: {
                    "code": code_digest("culnig_fast.analysis.catalogue", "culnig_fast.analysis.style"),
                    "libraries": digest([matplotlib.__version__]),
                },
                make=lambda partial: analyses.write_figures(bench, out),
            )
        )
    return stages


def _facts(bench: Workbench, out: Path) -> Stage:
    from culnig_fast.pipeline import facts

    return Stage(
        name="facts",
        needs=(
            *(f"scores/{name}" for name in found.tables(bench.config)),
            *(f"neurons/{n}" for n in found.sets(bench.config)),
        ),
        outputs=(out / facts.NAME,),
        inputs=lambda: {"facts": digest(facts.known(bench))},
        make=lambda partial: facts.write(bench, out),
    )


def _published(bench: Workbench, out: Path) -> Stage:
    from culnig_fast.pipeline import reporting

    return Stage(
        name="published",
        needs=("tables",),
        outputs=reporting.published_paths(out),
        inputs=lambda: reporting.published_inputs(bench),
        make=lambda partial: reporting.write_published(bench, out),
    )
