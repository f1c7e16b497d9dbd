"""Tables and sets as pandas frames and Arrow tables: every value where it belongs, and back."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet
import pytest

import culnig_fast as cf

LAYOUT = cf.NeuronLayout(
    [
        cf.NeuronSite("mlp.gate_proj", 1, 3),
        cf.NeuronSite("self_attn.k_proj", 0, 2),
        cf.NeuronSite("mlp.gate_proj", 0, 4),
    ]
)
NEURONS = cf.NeuronSet(
    ("mlp.gate_proj", "self_attn.k_proj", "mlp.act"),
    np.array([1, 0, 7]),
    np.array([2, 1, 2**40]),
    np.array([0.1, 1 / 3, -2e-300]),
    {"method": "general", "thresholds": [0.01, 0.002], "who": "für"},
)


def table(*groups: str) -> cf.ScoreTable:
    rng = np.random.default_rng(0)
    n = len(groups)
    return cf.ScoreTable(
        rng.normal(size=(n, LAYOUT.size)), groups, np.arange(1, n + 1), rng.random(n), ("q",), LAYOUT, {"model": "tiny"}
    )


@pytest.mark.parametrize("as_arrow", [False, True])
def test_each_score_stands_beside_its_neurons_name(as_arrow: bool) -> None:
    scores = table("Iran", "South Korea")
    frame = scores.to_arrow().to_pandas() if as_arrow else scores.to_pandas()
    assert list(frame.columns) == ["module_name", "layer_idx", "neuron_idx", "Iran", "South Korea"]
    assert len(frame) == LAYOUT.size
    assert frame["module_name"].dtype == "category"
    for row in frame.to_dict("records"):
        flat = LAYOUT.flat(row["module_name"], row["layer_idx"], row["neuron_idx"])
        assert [row["Iran"], row["South Korea"]] == scores.totals[:, flat].tolist()


def test_facts_go_along() -> None:
    scores = table("Iran", "South Korea")
    want = {
        "counts": {"South Korea": 2},
        "probability": {"South Korea": scores.probability[1]},
        "metadata": {"model": "tiny"},
    }
    frame, arrow = scores.to_pandas(groups=["South Korea"]), scores.to_arrow(groups=["South Korea"])
    assert frame.attrs == want
    assert json.loads(arrow.schema.metadata[b"culnig_fast"]) == want
    assert arrow.column_names == list(frame.columns) == ["module_name", "layer_idx", "neuron_idx", "South Korea"]


def test_groups_are_named_when_wrong() -> None:
    with pytest.raises(cf.CulnigError, match="Iran"):
        table("Iran").to_pandas(groups=["Spain"])
    with pytest.raises(cf.CulnigError, match="layer_idx"):
        table("layer_idx").to_arrow()
    assert "Iran" in table("layer_idx", "Iran").to_pandas(groups=["Iran"])


@pytest.mark.parametrize("neurons", [NEURONS, cf.NeuronSet.empty()], ids=["three", "none"])
def test_sets_come_back(neurons: cf.NeuronSet) -> None:
    frame = neurons.to_pandas()
    back = cf.NeuronSet.from_pandas(frame)
    assert back == neurons
    assert back.info == neurons.info
    assert cf.NeuronSet.from_pandas(frame, {"mine": 1}).info == {"mine": 1}
    arrow = neurons.to_arrow()
    assert json.loads(arrow.schema.metadata[b"culnig_fast"]) == {"info": neurons.info}
    file = io.BytesIO()
    pyarrow.parquet.write_table(arrow, file)
    file.seek(0)
    assert cf.NeuronSet.from_pandas(pyarrow.parquet.read_table(file).to_pandas(), neurons.info) == neurons


def test_a_filtered_table_is_a_set() -> None:
    frame = table("Iran").to_pandas().rename(columns={"Iran": "attribute_score"})
    best = cf.NeuronSet.from_pandas(frame[frame.layer_idx == 0].nlargest(3, "attribute_score"))
    assert len(best) == 3
    assert set(best.layer_idx) == {0}
    assert list(best.scores) == sorted(best.scores, reverse=True)
    random = cf.NeuronSet.from_pandas(frame.drop(columns="attribute_score"))
    assert not random.scores.any()


def test_frames_that_hold_no_set_are_refused() -> None:
    good: dict[str, Any] = {"module_name": ["mlp.act"] * 2, "layer_idx": [0, 1], "neuron_idx": [3, 3]}
    for change, word in (
        ({"layer_idx": [0.5, 1]}, "row 0 of layer_idx is 0.5"),
        ({"neuron_idx": [3, None]}, "row 1 of neuron_idx"),
        ({"neuron_idx": ["a", "b"]}, "neuron_idx holds something else"),
        ({"module_name": ["mlp.act", "mlp.down"]}, "mlp.down"),
        ({"layer_idx": [0, -1]}, "negative"),
        ({"layer_idx": [0, 0]}, "mlp.act"),
        ({"attribute_score": [1.0, np.inf]}, "row 1 of attribute_score"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            cf.NeuronSet.from_pandas(pandas.DataFrame({**good, **change}))
    with pytest.raises(cf.CulnigError, match="no column layer_idx, neuron_idx"):
        cf.NeuronSet.from_pandas(pandas.DataFrame({"module_name": []}))
