"""Named tokens in the database: rows for the server, and a book for `tserve token`, which is another process.

Functions take a Session whose transaction the caller owns; none commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import tserve
from tserve.domain.access import Scope
from tserve.domain.tokens import NamedToken
from tserve.errors import SchemaTooNew, StateUnusable, TokenRefused
from tserve.store.engine import open_engine
from tserve.store.tables import TokenRow
from tserve.store.upgrade import DATABASE, HEAD, open_state, read_revision


def load(session: Session) -> list[NamedToken]:
    """All of them, in order of their names."""
    return [_token(row) for row in session.scalars(select(TokenRow).order_by(TokenRow.name))]


def add(session: Session, token: NamedToken) -> None:
    """Raises TokenRefused when the name is taken."""
    if session.scalar(select(TokenRow.id).where(TokenRow.name == token.name)) is not None:
        raise TokenRefused(f"There is a token {token.name} already. Revoke it first, or take another name.")
    session.add(
        TokenRow(
            id=token.id,
            name=token.name,
            scopes=" ".join(sorted(token.scopes)),
            digest=token.digest.hex(),
            created_at=token.created_at,
            expires_at=token.expires_at,
        )
    )


def remove(session: Session, name: str) -> None:
    """Raises TokenRefused when there is none of that name."""
    if session.scalars(delete(TokenRow).where(TokenRow.name == name).returning(TokenRow.id)).first() is None:
        raise TokenRefused(f"There is no token {name}.")


def _token(row: TokenRow) -> NamedToken:
    """A scope of a later release is no scope here."""
    scopes = frozenset(scope for scope in Scope if scope.value in row.scopes.split())
    return NamedToken(row.id, row.name, scopes, bytes.fromhex(row.digest), row.created_at, row.expires_at)


class TokenBook:
    """The tokens of one state folder, whether a server runs on it or not."""

    def __init__(self, state_dir: Path, *, make: bool = False) -> None:
        """`make` makes the state if there is none; an older one is upgraded, as a start of the server would.

        Raises SchemaTooNew, StateLocked, StateUnusable, TokenRefused.
        """
        if not make and not (state_dir / DATABASE).is_file():
            raise TokenRefused(f"There is no state in {state_dir}.")
        self._database = _database_of(state_dir)

    def all(self) -> list[NamedToken]:
        with self._transaction() as session:
            return load(session)

    def add(self, token: NamedToken) -> None:
        """Raises TokenRefused."""
        with self._transaction() as session:
            add(session, token)

    def remove(self, name: str) -> None:
        """Raises TokenRefused."""
        with self._transaction() as session:
            remove(session, name)

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        engine = open_engine(self._database)
        try:
            with Session(engine) as session, session.begin():
                yield session
        except DBAPIError as error:
            raise StateUnusable(f"The state file {self._database} could not be used: {error.orig}.") from error
        finally:
            engine.dispose()


def _database_of(state_dir: Path) -> Path:
    """Only what has no database yet, or that of an older release, needs the lock that a server holds."""
    database = state_dir / DATABASE
    revision = read_revision(database) if database.is_file() else None
    if revision == HEAD:
        return database
    if revision is not None and revision > HEAD:
        raise SchemaTooNew(f"The state in {state_dir} is that of a later release than {tserve.__version__}.")
    with open_state(state_dir):
        return database
