"""The program `tserve`: picks the sub-command and turns a refused start into a message and an exit code.

A sub-command is a module with `add(commands)`, which registers its parser and sets `run` to a function of the
parsed arguments that returns the exit code.  docs/command.md lists options and codes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from tserve import __version__
from tserve.cli import archive, start, token
from tserve.errors import StartError

COMMANDS = (start, token, archive)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tserve", description="A restart-safe model server for PyTorch.")
    parser.add_argument("-v", "--version", action="version", version=f"tserve {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command; a StartError is told on standard error and becomes its exit code.

    Anything else is a bug: it leaves with its traceback, and Python exits with 1.
    """
    try:
        return command()
    except StartError as error:
        print(f"tserve: {error}", file=sys.stderr)
        return error.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.  Usage errors, --help and --version leave through SystemExit, as argparse has it."""
    args = build_parser().parse_args(argv)
    return exit_code_of(lambda: int(args.run(args)))
