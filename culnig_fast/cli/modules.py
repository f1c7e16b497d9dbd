"""`modules`: where the chosen neurons are dense, as module names for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import Json, Overwrite, Sites, Trust, load_model_and_tokenizer, report
from culnig_fast.errors import CulnigError
from culnig_fast.files import check_output


@app.command(
    epilog="Example: culnig-fast modules demo --neurons general.json --share 0.47 --which top --out modules.csv "
    "--yaml top.yaml"
)
def modules(
    model: Annotated[
        str, typer.Argument(help="Model as elsewhere, or a score table (.safetensors) for densities alone.")
    ],
    neurons: Annotated[Path, typer.Option(help="Neuron set.")],
    which: Annotated[str, typer.Option(help="top: densest first; bottom: least dense first; all.")] = "top",
    share: Annotated[float, typer.Option(help="Most of the model's parameters that is chosen.")] = 0.1,
    per: Annotated[str, typer.Option(help="Density per 'neurons' that could be chosen, or per 'parameters'.")] = (
        "neurons"
    ),
    site: Sites = None,
    out: Annotated[Optional[Path], typer.Option(help="The ranking, a row a module (.csv).")] = None,
    yaml: Annotated[
        Optional[Path], typer.Option(help="Names in the published training program's form (.yaml).")
    ] = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Rank modules by density of a set's neurons, and choose some by a share of the parameters.

    A module is one layer's MLP (gate, up, down) or attention (q, k, v, o). Its density counts the gate, q, k and v
    neurons that could have been chosen (--site names others). Modules are taken in rank order up to the share; the
    first that does not fit ends it. The names printed are whole, for PEFT's target_modules.
    """
    for path, ending in ((out, ".csv"), (yaml, ".yaml")):
        if path is not None:
            check_output(path, overwrite)
            if path.suffix != ending:
                raise CulnigError(f"{path} must end in {ending}")
    from culnig_fast.neuron_sets import NeuronSet

    chosen = NeuronSet.load(neurons)
    if Path(model).suffix == ".safetensors":
        if yaml is not None:
            raise CulnigError("a score table holds no module names; give the model to write --yaml")
        table, choice = _of_table(model, chosen, site, per), None
    else:
        choice = _of_model(model, chosen, which, share, site, per, trust_remote_code)
        table = choice.table
    if out is not None:
        _write_csv(out, table, overwrite)
    if yaml is not None and choice is not None:
        from culnig_fast.analysis.modules import to_yaml
        from culnig_fast.files import write_text

        write_text(yaml, to_yaml(choice, model), overwrite)
    report(as_json, _summary(table, choice), _text(table, choice))


def _of_table(path: str, chosen: Any, site: list[str] | None, per: str) -> Any:
    from culnig_fast.analysis.modules import rank_modules
    from culnig_fast.scores import ScoreTable

    return rank_modules(chosen, ScoreTable.load(path).layout, scored=site, per=per)


def _of_model(model: str, chosen: Any, which: str, share: float, site: list[str] | None, per: str, trust: bool) -> Any:
    from culnig_fast.analysis.modules import pick_modules

    loaded, _ = load_model_and_tokenizer(model, "auto", "cpu", trust)
    return pick_modules(loaded, chosen, which, share, scored=site, per=per)  # type: ignore[arg-type]


def _write_csv(path: Path, table: Any, overwrite: bool) -> None:
    from culnig_fast.files import atomic_write

    with atomic_write(path, overwrite) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _summary(table: Any, choice: Any) -> dict[str, Any]:
    rows = [
        {key: None if value is table["parameters"].dtype.na_value else value for key, value in row.items()}
        for row in table.astype(object).to_dict("records")
    ]
    if choice is None:
        return {"modules": rows}
    return {
        "modules": rows,
        "which": choice.which,
        "share": choice.share,
        "parameters": choice.parameters,
        "total_parameters": choice.total,
        "target_modules": choice.names,
    }


def _text(table: Any, choice: Any) -> str:
    lines = [f"{'rank':>4s} {'module':14s} {'neurons':>8s} {'of':>9s} {'density':>10s} {'parameters':>15s}"]
    for row in table.itertuples(index=False):
        parameters = "" if choice is None else f"{row.parameters:,}"
        mark = " *" if choice is not None and row.chosen else ""
        lines.append(
            f"{row.rank:4d} {f'{row.kind} {row.layer_idx}':14s} {row.neurons:8,} {row.size:9,} {row.density:10.3g} "
            f"{parameters:>15s}{mark}".rstrip()
        )
    if choice is not None:
        share = 100 * choice.parameters / choice.total
        lines.append(
            f"* {choice.which}: {len(choice.modules)} modules, {choice.parameters:,} of {choice.total:,} "
            f"parameters ({share:.2f} %)"
        )
        lines += [f"  {name}" for name in choice.names]
    return "\n".join(lines)
