"""`convert`: score tables to and from the published program's score files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import Json, Overwrite, report
from culnig_fast.errors import CulnigError
from culnig_fast.files import check_output


@app.command(epilog="Example: culnig-fast convert blend_max_scores.json neur.safetensors")
def convert(
    source: Annotated[Path, typer.Argument(help="Score table (.safetensors) or score file (.json, .json.gz).")],
    out: Annotated[Path, typer.Argument(help="The other kind, to be written.")],
    dataset: Annotated[
        Optional[str], typer.Option(help="To .json: name of the dataset in the file, e.g. blend or blendcontrol.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert scores between our safetensors and the published program's JSON, as streams.

    Read are its own files, with neuron_scores, total_probabilities_per_country and dataset_ids;
    {module: {layer: {column: score}}}, where a score may be {group: score}; and lists of records with module_name,
    layer_idx, neuron_idx and attribute_score or scores. Neuron sets need no conversion: both programs read top_neurons.
    """
    check_output(out, overwrite)
    to_table, from_table = out.suffix == ".safetensors", source.suffix == ".safetensors"
    if to_table == from_table:
        raise CulnigError(f"one of {source} and {out} must end in .safetensors, the other in .json or .json.gz")
    from culnig_fast.interop.score_files import read_score_file, write_score_file
    from culnig_fast.scores import ScoreTable

    if to_table:
        if dataset is not None:
            raise CulnigError("--dataset names the dataset in a .json that is written; leave it out here")
        table = read_score_file(source)
        table.save(out, overwrite)
    else:
        table = ScoreTable.load(source)
        write_score_file(table, out, dataset=dataset, overwrite=overwrite)
    summary = {
        "out": str(out),
        "neurons": table.layout.size,
        "groups": list(table.groups),
        "samples": table.n_samples,
    }
    report(
        as_json, summary, f"{out}: {table.layout.size:,} neurons, {len(table.groups)} groups, N = {table.n_samples:,}"
    )
