"""`tserve start`: run the server in the foreground.  TorchServe's options keep their names (spec/server.md 1)."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tserve import logs
from tserve.errors import BadConfiguration
from tserve.settings import Options, Settings, load_settings

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

logger = logging.getLogger("tserve.cli")

_WITHOUT_EFFECT = {  # warned about when given
    "--workflow-store": "folder of workflow archives; no effect yet",
    "--log-config": "log4j2 file; no effect, the log goes to standard error",
}


def add(commands: Commands) -> None:
    """Register the sub-command."""
    parser = commands.add_parser("start", help="start the server", description="Start the server in the foreground.")
    parser.set_defaults(run=run)
    option = parser.add_argument
    option("--model-store", metavar="DIR", help="folder of the archives (default ./model_store)")
    option("--models", nargs="+", metavar="ARCHIVE", help="what to have at start: all, or A [B=C ...]")
    option("--state-dir", metavar="DIR", help="folder of the server's state (default ./.tserve)")
    option("--ts-config", metavar="FILE", help="properties file; the variable TS_CONFIG_FILE beats it")
    option("--key-file", metavar="FILE", help="where the keys of the token check are written")
    option("--disable-token-auth", "--dt", action="store_true", help="token check off")
    option("--enable-model-api", action="store_true", help="register and unregister, if the file turns them off")
    # Accepted so that upstream's command lines work as they are; docs/command.md says why each has nothing to do.
    option("--no-config-snapshots", "--ncs", action="store_true", help="no effect: state is not kept in snapshots")
    option("--foreground", action="store_true", help="no effect: the server always stays in the foreground")
    option("--plugins-path", "--ppath", metavar="PATH", help="Java plug-ins; no effect")
    option("--cpp-log-config", metavar="PATH", help="logging of the C++ backend; no effect")
    for flag, help_text in _WITHOUT_EFFECT.items():
        option(flag, metavar="PATH", help=help_text)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code.  Raises StartError when the server cannot start."""
    settings = prepare(args)
    # Nothing becomes garbage while modules load: collecting costs a tenth of the start.  The server turns it on again.
    gc.disable()
    from tserve import server  # late: it pulls in the whole machine

    return server.run(settings)


def prepare(args: argparse.Namespace) -> Settings:
    """Everything before the server: platform, settings, log.  Raises BadConfiguration."""
    refuse_foreign_platform(sys.platform)
    settings = load_settings(options_of(args), os.environ, Path.cwd())
    logs.configure()
    for warning in settings.warnings:
        logger.warning("%s", warning)
    return settings


def options_of(args: argparse.Namespace) -> Options:
    """What load_settings needs of the command line."""
    given = {f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value is not None}
    return Options(
        ts_config=args.ts_config,
        model_store=args.model_store,
        state_dir=args.state_dir,
        key_file=args.key_file,
        models=None if args.models is None else tuple(args.models),
        disable_token_auth=args.disable_token_auth,
        enable_model_api=args.enable_model_api,
        without_effect=tuple(flag for flag in _WITHOUT_EFFECT if flag in given),
    )


def refuse_foreign_platform(system: str) -> None:
    """tserve stands on Linux's epoll, pidfd and parent-death signal (DESIGN.md section 11).

    Raises BadConfiguration elsewhere, and where the kernel or a sandbox refuses pidfds.
    """
    if system != "linux":
        raise BadConfiguration(f"tserve runs on Linux only; this system is {system}")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        raise BadConfiguration(f"tserve needs pidfds (Linux 5.3); this system refuses them: {error}") from error
