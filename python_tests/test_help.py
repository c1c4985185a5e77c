"""The help of every command says all that its source does, in sentences."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("typer", reason="commands need the extra [train]")

from typer import Typer
from typer.main import get_command
from typer.testing import CliRunner

MODULES = (
    "ccp_fast.bench.command",
    "ccp_fast.cli.data_command",
    "ccp_fast.cli.report_command",
    "ccp_fast.cli.train_command",
)


def commands() -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    for module in MODULES:
        app = importlib.import_module(module).app
        whole = get_command(app)
        yield module, app, ()
        for name in sorted(getattr(whole, "commands", {})):
            yield f"{module} {name}", app, (name,)


COMMANDS = {name: (app, arguments) for name, app, arguments in commands()}


def squeezed(text: str) -> str:
    """Without what depends on where lines are broken."""
    return "".join(text.split())


def command_of(app: Typer, arguments: tuple[str, ...]) -> Any:
    command = get_command(app)
    for argument in arguments:
        command = command.commands[argument]
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_word(name: str) -> None:
    app, arguments = COMMANDS[name]
    command = command_of(app, arguments)
    shown = CliRunner().invoke(app, [*arguments, "--help"])
    assert shown.exit_code == 0
    assert squeezed(command.help) in squeezed(shown.stdout)
    for parameter in command.params:
        assert squeezed(parameter.help) in squeezed(shown.stdout), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_of_sentences(name: str) -> None:
    """That begin with what the option is; a list of commands cuts none off."""
    app, arguments = COMMANDS[name]
    command = command_of(app, arguments)
    for parameter in command.params:
        assert parameter.help.endswith("."), parameter.name
        assert not parameter.help.startswith(("Of ", "As of ")), parameter.name
    assert "..." not in CliRunner().invoke(app, [*arguments, "--help"]).stdout.partition("Commands:")[2]
