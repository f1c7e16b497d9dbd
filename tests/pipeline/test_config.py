"""A config is read whole or refused in one sentence that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_run import config, write

from culnig_fast.errors import CulnigError
from culnig_fast.pipeline.reading import load_config, presets
from culnig_fast.tables.published import published_models

PAPER_MODELS = {
    "gemma-3-12b-it",
    "gemma-3-27b-it",
    "Qwen3-14B",
    "Llama-3.1-8B-Instruct",
    "phi-4",
    "Falcon3-10B-Instruct",
}


def test_values_and_defaults(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    read = config(tmp_path, tasks={"blend": "demo", "country_rc": None, "own": {"task": "plain", "data": "rows.csv"}})
    assert read.out == tmp_path / "out"
    assert [task.label for task in read.tasks] == ["blend", "country_rc", "own"]
    assert read.task("own").data == str(tmp_path / "rows.csv")
    assert read.task("country_rc").data is None
    assert read.countries == ("Iran", "USA")
    assert read.seeds == (0, 1)
    assert read.thresholds.min_z == 0.5
    assert (read.scoring.reduction, read.scoring.positions) == ("max", "all")
    assert config(tmp_path, seeds=[7, 3]).seeds == (7, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": 3}, "run.yaml: sedes is no key of a run; did you mean seeds?"),
        ({"seeds": "many"}, "run.yaml: seeds is 'many'; give how many, or a list of whole numbers"),
        ({"seeds": 0}, "run.yaml: seeds is 0"),
        ({"seeds": True}, "run.yaml: seeds is True"),
        ({"thresholds": {"mlp_share": 2}}, r"run.yaml: thresholds.mlp_share is 2; give a number in 0…1"),
        ({"thresholds": {"mlp_shares": 0.1}}, "thresholds.mlp_shares is no key of a run; did you mean mlp_share?"),
        ({"thresholds": [1]}, r"run.yaml: thresholds is \[1\]; give keys and values"),
        ({"scoring": {"reduction": "median"}}, "run.yaml: scoring.reduction is 'median'; choose from max, sum"),
        ({"scoring": {"positions": "first"}}, "run.yaml: scoring.positions is 'first'; choose from all, last, content"),
        ({"scoring": {"reductions": "sum"}}, "scoring.reductions is no key of a run; did you mean reduction?"),
        ({"out": None}, "run.yaml: out is missing"),
        ({"out": 3}, "run.yaml: out is 3; give text"),
        ({"model": None}, "run.yaml: model is missing"),
        ({"model": {"dtype": "float32"}}, "run.yaml: model.name is missing"),
        ({"model": {"name": "demo", "dtype": "int8"}}, "run.yaml: model.dtype is 'int8'; choose from auto"),
        ({"model": "./nowhere"}, "run.yaml: model.name: there is no folder ./nowhere"),
        ({"tasks": {}}, "run.yaml: tasks is empty"),
        ({"tasks": {"bland": "demo"}}, "run.yaml: tasks.bland is no benchmark; choose from"),
        ({"tasks": {"blend": "rows.jsonl"}}, "run.yaml: tasks.blend.data: there is no file .*rows.jsonl"),
        ({"tasks": {"blend": {"data": "demo", "topics": "t.csv"}}}, "tasks.blend.topics: there is no file .*t.csv"),
        ({"tasks": {"blend": {"data": "demo", "topic": "t.csv"}}}, "tasks.blend.topic is no key of a run; did you"),
        ({"tasks": {"blend": {"limit": 0}}}, "tasks.blend.limit is 0; give a whole number, 1 or more"),
        ({"tasks": {"pick": {"split": "neur"}}}, "tasks.pick.split is 'neur'; choose from test"),
        ({"tasks": {"pick": "demo", "country_rc": "demo"}}, "run.yaml: culture is 'blend', which is none of the tasks"),
        ({"culture": "pick"}, "run.yaml: culture is 'pick', whose benchmark has no split 'control'"),
        ({"countries": ["Atlantis"]}, "run.yaml: countries: unknown country 'Atlantis'"),
        ({"sites": ["mlp.gate"]}, "run.yaml: sites: 'mlp.gate' is not a neuron module"),
        ({"baselines": ["lape", "luck"]}, "run.yaml: baselines has 'luck'; choose from lape, cape"),
        ({"on_unusable": "ignore"}, "run.yaml: on_unusable is 'ignore'; choose from skip, error"),
        ({"bootstrap": {"resamples": 1.5}}, "run.yaml: bootstrap.resamples is 1.5; give a whole number"),
        ({"preset": "paper-2"}, "run.yaml: preset is 'paper-2'; choose from"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CulnigError, match=message) as caught:
        config(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(CulnigError, match="no config .*none.yaml .*give a yaml file or one of the presets"):
        load_config(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    with pytest.raises(CulnigError, match="broken.yaml is not a yaml file"):
        load_config(broken)
    broken.write_text("- 1")
    with pytest.raises(CulnigError, match="holds no keys and values"):
        load_config(broken)
    broken.write_text("model: !!python/object/apply:os.system ['true']")
    with pytest.raises(CulnigError, match="is not a yaml file"):
        load_config(broken)


def test_presets_can_be_read_and_built_on(tmp_path: Path) -> None:
    assert {*presets()} == {*PAPER_MODELS, "paper", "demo"}
    for name in PAPER_MODELS:
        preset = load_config(name, out=tmp_path / "out")
        assert preset.model.name.endswith(f"/{name}")
        assert preset.out == tmp_path / "out"
        assert len(preset.seeds) == 10
        assert preset.published == (name if name in published_models() else None)
    own = write(
        tmp_path, preset="phi-4", tasks={"worldvaluesbench": False, "blend": "demo"}, seeds=None, countries=None
    )
    read = load_config(own, device="cuda:1")
    labels = [task.label for task in read.tasks]
    assert "worldvaluesbench" not in labels
    assert "mrpc" in labels
    assert read.task("blend").data == "demo"
    assert (read.model.name, read.model.dtype, read.model.device) == ("demo", "bfloat16", "cuda:1")
    assert len(read.countries) == 8
