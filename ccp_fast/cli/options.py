"""Options that would have no effect are refused: whoever gave one meant something by it."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from ccp_fast.cli.moved import REFUSED
from ccp_fast.training.errors import UserError

Given = Mapping[str, str]  # name of a parameter -> its option as it is written

# Options of a comparison, each with one of a single run that has a name much like it.
OF_COMPARISONS = {"losses": "--loss", "columns": None, "seeds": "--seed", "jobs": None}
# Options that a comparison does not take, and why.
NOT_OF_COMPARISONS = {
    "resume": "which goes on by itself",
    "method": "which takes --columns",
    "seed": "which takes --seeds",
}


def given(context: typer.Context) -> Given:
    """The options that stand on the command line."""
    options = {p.name: max(p.opts, key=len) for p in context.command.params if p.name is not None}
    return {name: option for name, option in options.items() if _is_given(context, name)}


def refuse_before_a_command(options: Given, command: str) -> None:
    """Those of training, in front of another command."""
    for option in options.values():
        raise UserError(f"{option}: expected behind {command!r}, or not with it")


def refuse_without_effect(options: Given, *, finds_its_run: bool) -> None:
    """What goes with nothing else that is given; `finds_its_run`: --resume auto, which takes settings."""
    if "report" in options:
        for name, option in options.items():
            if name not in ("report", "quiet"):
                raise UserError(f"{option}: expected without --report, which shows a finished run as it is")
    elif "resume" in options and not finds_its_run:
        if options.keys() - {"resume", "quiet", "settings", "data_root"}:
            raise UserError(REFUSED)
    elif "compare_" in options:
        for name, reason in NOT_OF_COMPARISONS.items():
            if name in options:
                raise UserError(f"--{name}: expected without --compare, {reason}")
        if "losses" in options and "loss" in options:
            raise UserError("--loss: expected without --losses")
    else:
        for name, alike in OF_COMPARISONS.items():
            if name in options:
                hint = f"; did you mean {alike}?" if alike else ""
                raise UserError(f"--{name}: expected beside --compare{hint}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
