"""`lm-eval`: lm-evaluation-harness's own command line, with a model of ours known to it."""

from __future__ import annotations

import sys

import typer

from culnig_fast.cli.app import app
from culnig_fast.errors import CulnigError


@app.command(
    "lm-eval",
    # What follows is the harness's, its --help too.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: culnig-fast lm-eval run --model culnig --model_args pretrained=demo,neurons=general.json,factor=0 "
    "--include_path my_tasks --tasks my_task --device cpu",
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with --model culnig: a checkpoint with neurons suppressed.

    All arguments are the harness's (culnig-fast lm-eval run --help). In --model_args, pretrained is the checkpoint,
    neurons a set's file, and factor what its neurons are multiplied by (0 when left out); the rest is as for its hf.
    """
    if not context.args:
        raise CulnigError("say what the harness is to do; culnig-fast lm-eval run --help lists its options")
    from culnig_fast.interop.lm_eval import register

    register()
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["culnig-fast lm-eval", *context.args]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
