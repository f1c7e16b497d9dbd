"""Every reader of files, with a small whole file of its kind to start from."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.faults.made import (
    MODULES,
    activation_table,
    expert_activation_table,
    instance_table,
    layout,
    module_scores,
    neuron_set,
    score_table,
)


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: what it reads.
        write: makes whole files in a folder.
        read: reads them; returns, or raises CulnigError.
        share: how many of the examples it gets, against the others' 1; less where a read is slow.
        fixed: names of files that are not damaged.
    """

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    share: float = 1.0
    fixed: tuple[str, ...] = ()


def _load_module_scores(path: Path) -> Any:
    from culnig_fast.modules.scores import ModuleScores

    table = ModuleScores.load(path)
    return repr(table), table.by_path(), table.top(2), table.merge(table).to_pandas()


def _load_module_neurons(path: Path) -> Any:
    from culnig_fast.modules.neurons import ModuleNeurons

    read = ModuleNeurons.load(path)
    return read.flat(module_scores().layout), read.to_pandas(), hash(read)


def _write_checkpoint(folder: Path) -> None:
    from culnig_fast.running.checkpoint import Checkpoint, Progress

    Checkpoint(folder / "x.safetensors", {"model": "m"}).save(Progress(score_table().totals, np.ones(4), 2048, None, 0))


def _read_checkpoint(folder: Path) -> Any:
    from culnig_fast.running.checkpoint import Checkpoint

    return Checkpoint(folder / "x.safetensors", {"model": "m"}).load()


def _write_evaluation(folder: Path) -> None:
    from culnig_fast.evaluation import Evaluation

    words = ("a", "b", "c")
    Evaluation(words, words, words, words, np.array([True, False, True]), np.array([0.5, 0.25, 1.0])).save(
        folder / "x.jsonl", overwrite=True
    )


def _read_evaluation(folder: Path) -> Any:
    from culnig_fast.evaluation import Evaluation, compare

    read = Evaluation.load(folder / "x.jsonl")
    assert 0 <= read.accuracy <= 1
    read.by_group()
    return compare(read, read)


def _read_set(folder: Path) -> Any:
    from culnig_fast.neuron_sets import NeuronSet

    read = NeuronSet.load(folder / "x.json")
    return read.flat(layout()), read.per_layer(2), read.where(["mlp.gate_proj"])


CONFIG = {
    "preset": "paper",
    "model": {"name": "demo", "dtype": "float32", "device": "cpu"},
    "out": "here",
    "tasks": {
        "blend": {"data": "demo", "limit": 2},
        "country_rc": "demo",
        "mine": {"task": "plain", "data": "mine.csv", "evaluate": True, "split": "all"},
        "worldvaluesbench": False, "culturalbench": False, "normad": False, "commonsenseqa": False, "qnli": False,
        "mrpc": False,
    },
    "culture": "blend",
    "surface": "country_rc",
    "sites": ["mlp.gate_proj"],
    "scoring": {"reduction": "sum", "positions": "content"},
    "thresholds": {"mlp_share": 0.01, "min_z": 0.5},
    "countries": ["China", "Spain"],
    "seeds": [0, 1],
    "baselines": ["lape", "cape"],
    "languages": {"English": ["UK", "USA"]},
    "batch_tokens": 100,
    "bootstrap": {"resamples": 100, "seed": 1, "confidence": 0.9},
}  # fmt: skip


def _write_config(folder: Path) -> None:
    (folder / "x.yaml").write_text(json.dumps(CONFIG, indent=1))
    (folder / "mine.csv").write_text("id,group,prompt,answer\n1,a,b,A\n")


def _read_config(folder: Path) -> Any:
    from culnig_fast.pipeline.conditions import conditions
    from culnig_fast.pipeline.identification import sets
    from culnig_fast.pipeline.reading import load_config

    config = load_config(folder / "x.yaml")
    return conditions(config), sets(config)


def _write_manifest(folder: Path) -> None:
    from culnig_fast.pipeline.manifest import Manifest

    (folder / "results").mkdir(exist_ok=True)
    output = folder / "results" / "out.txt"
    output.write_text("x")
    (folder / "manifest.json").unlink(missing_ok=True)
    value = {"format": "culnig_fast.run/1", "stages": {}}
    (folder / "manifest.json").write_text(json.dumps(value))
    manifest = Manifest(folder)
    manifest.note("scores", {"model": "a", "code": "b"}, [output])


def _read_manifest(folder: Path) -> Any:
    from culnig_fast.pipeline.manifest import Manifest

    manifest = Manifest(folder)
    why = manifest.why("scores", {"model": "a", "code": "b"})
    return why, manifest.output("scores") if why is None else None


def _write_summary(folder: Path) -> None:
    from culnig_fast.tables.table import Cell, Table

    table = Table("main", "Main", ("blend",), (("original", None, (Cell(1.0, 0.5, 1.5),)),), ("note",))
    (folder / "tables").mkdir(exist_ok=True)
    text = json.dumps({"tables": [table.to_dict()], "tasks": {"blend": ["note"]}})
    (folder / "tables" / "tables.json").write_text(text)


def _read_summary(folder: Path) -> Any:
    from culnig_fast.pipeline.reporting import read_summary

    return {**read_summary(folder)}


def _score_files() -> dict[str, Any]:
    neurons = [(m, layer, c) for m in MODULES for layer in range(2) for c in range(2)]
    published = {
        "neuron_scores": {f"{m}_{layer}_{c}": {"China": 0.5 * c, "UK": 1.5} for m, layer, c in neurons},
        "total_probabilities_per_country": {"China": 3.5, "UK": 2.5},
        "dataset_ids": {"blend": ["a", "b", "c"]},
    }
    nested = {m: {str(layer): {str(c): 0.5 + c for c in range(2)} for layer in range(2)} for m in MODULES}
    records = [
        {"module_name": m, "layer_idx": layer, "neuron_idx": c, "scores": {"UK": 0.5}} for m, layer, c in neurons
    ]
    return {"published": published, "nested": nested, "records": records}


def _score_file(kind: str) -> Reader:
    name = "x.json.gz" if kind == "nested" else "x.json"

    def write(folder: Path) -> None:
        text = json.dumps(_score_files()[kind]).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)

    def read(folder: Path) -> Any:
        from culnig_fast.interop.score_files import read_score_file

        return read_score_file(folder / name)

    return Reader(f"score file, {kind}", write, read)


def _table_reader(
    name: str, table: Callable[[], Any], load: Callable[[Path], Any], file: str = "x.safetensors"
) -> Reader:
    return Reader(name, lambda folder: table().save(folder / file, overwrite=True), lambda folder: load(folder / file))


def _load_scores(path: Path) -> Any:
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection.rules import select_general

    table = ScoreTable.load(path)
    table.n_samples, repr(table), table.row(table.groups[0]) if table.groups else None
    return select_general(table, score_table(1), score_table(2))


def _load_instances(path: Path) -> Any:
    from culnig_fast.analysis.instances import instances_dict, positive_shares
    from culnig_fast.instances import InstanceTable

    table = InstanceTable.load(path)
    return positive_shares(table), instances_dict(table, {name: {"prompt": "?", "answer": "A"} for name in table.ids})


def _load_activations(path: Path) -> Any:
    from culnig_fast.baselines.activations import ActivationTable

    table = ActivationTable.load(path)
    return table.merged({"Both": table.groups[:2]}), table.scores(), table.probability()


def task_reader(
    name: str,
    task: str,
    files: Mapping[str, bytes],
    main: str | None,
    share: float = 1.0,
    fixed: tuple[str, ...] = (),
    **options: Any,
) -> Reader:
    """A benchmark's files; read up to its questions."""

    def write(folder: Path) -> None:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)

    def read(folder: Path) -> Any:
        from culnig_fast.tasks.base import tasks

        loaded = tasks()[task].load(folder if main is None else folder / main, **options)
        return [loaded.questions(split, None) for split in loaded.splits[:2] if split != "train"], loaded.notes()

    return Reader(name, write, read, share, fixed)


def file_readers() -> tuple[Reader, ...]:
    """Those of our own files and of the published program's."""
    return (
        _table_reader("score table", score_table, _load_scores),
        _table_reader("activation counters", activation_table, _load_activations),
        _table_reader("activation counters of experts", expert_activation_table, _load_activations),
        _table_reader("instances", instance_table, _load_instances),
        _table_reader("module scores", module_scores, _load_module_scores),
        _table_reader("module neurons", lambda: module_scores().top(3), _load_module_neurons, "x.json"),
        Reader("checkpoint", _write_checkpoint, _read_checkpoint),
        Reader("neuron set", lambda folder: neuron_set().save(folder / "x.json", overwrite=True), _read_set),
        Reader("results", _write_evaluation, _read_evaluation),
        Reader("run config", _write_config, _read_config, 0.5, ("mine.csv",)),
        Reader("manifest", _write_manifest, _read_manifest, 1.0, ("results/out.txt",)),
        Reader("tables.json", _write_summary, _read_summary, 0.5),
        *(_score_file(kind) for kind in _score_files()),
    )


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """A table with a header, quoted where need be."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    """An object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    """A Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
