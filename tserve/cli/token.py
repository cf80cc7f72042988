"""`tserve token`: make, list and revoke named tokens, whether a server runs on the state folder or not."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tserve.domain.access import Scope
from tserve.domain.times import shown_time
from tserve.domain.tokens import NAME, NamedToken, new_token
from tserve.errors import TokenRefused
from tserve.settings import Options, state_dir

if TYPE_CHECKING:
    from tserve.store.tokens import TokenBook

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LAST: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_EFFECT: Final = "A running server knows within a second."


def add(commands: Commands) -> None:
    """Register the sub-command and its own."""
    parser = commands.add_parser("token", help="named tokens", description="Make, list and revoke named tokens.")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = actions.add_parser("create", help="make one", description="Make a token; its text is shown this once.")
    create.add_argument("name", metavar="NAME", type=_name, help="what to call it")
    create.add_argument(
        "--scope", action="extend", type=_scopes, required=True, metavar="SCOPE[,SCOPE]", help=", ".join(Scope)
    )
    create.add_argument(
        "--expires", type=_expiry, metavar="WHEN", help="30d, 12h, 90m, or a time such as 2030-01-31T12:00Z"
    )
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="show all", description="Show all tokens, without their texts.")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="end one", description="End a token for good.")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(run=_revoke)
    for action in (create, listing, revoke):
        action.add_argument("--state-dir", metavar="DIR", help="folder of the server's state, as for tserve start")
        action.add_argument("--ts-config", metavar="FILE", help="properties file, as for tserve start")


def _create(args: argparse.Namespace) -> int:
    now = time.time()
    if args.expires is not None and args.expires <= now:
        raise TokenRefused("The token would have expired already.")
    text, token = new_token(args.name, frozenset(args.scope), now=now, expires_at=args.expires)
    _book(args, make=True).add(token)
    print(text)
    print(f"This is shown once and kept nowhere. {_EFFECT}", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace) -> int:
    tokens, now = _book(args).all(), time.time()
    if args.json:
        print(json.dumps([_shown(token, now) for token in tokens], indent=2))
        return 0
    rows = [("NAME", "SCOPES", "CREATED", "EXPIRES")]
    for token in tokens:
        expires = "never" if token.expires_at is None else shown_time(token.expires_at)
        expired = " (expired)" if token.is_expired(now) else ""
        rows.append((token.name, ",".join(sorted(token.scopes)), shown_time(token.created_at), expires + expired))
    print(_table(rows))
    return 0


def _revoke(args: argparse.Namespace) -> int:
    _book(args).remove(args.name)
    print(f"Revoked {args.name}. {_EFFECT}", file=sys.stderr)
    return 0


def _book(args: argparse.Namespace, *, make: bool = False) -> TokenBook:
    from tserve.store.tokens import TokenBook  # late: it brings SQLAlchemy

    options = Options(state_dir=args.state_dir, ts_config=args.ts_config)
    return TokenBook(state_dir(options, os.environ, Path.cwd()), make=make)


def _shown(token: NamedToken, now: float) -> dict[str, object]:
    return {
        "name": token.name,
        "scopes": sorted(token.scopes),
        "created": shown_time(token.created_at),
        "expires": None if token.expires_at is None else shown_time(token.expires_at),
        "expired": token.is_expired(now),
    }


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _name(text: str) -> str:
    if NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r}: up to 64 letters, digits, dots, dashes and underscores")
    return text


def _scopes(text: str) -> list[Scope]:
    try:
        return [Scope(word.strip()) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: scopes are {', '.join(Scope)}") from None


def _expiry(text: str) -> float:
    """Epoch seconds; a time without a zone is UTC."""
    span = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if span is not None:
        return min(_LAST, time.time() + int(span[1]) * _SECONDS[span[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: neither a span such as 30d nor a time of ISO 8601") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
