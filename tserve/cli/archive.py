"""`tserve archive`: the digest of an archive, keys to sign with, and signatures (docs/integrity.md)."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tserve.errors import CannotSign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Register the sub-command and its own."""
    parser = commands.add_parser("archive", help="digests and signatures", description="Vouch for archives.")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    digest = actions.add_parser("digest", help="the sha-256 of archives, files or folders")
    digest.set_defaults(run=_digest)
    keygen = actions.add_parser("keygen", help="make a pair of keys, NAME.key and NAME.pub")
    keygen.add_argument("name", metavar="NAME", type=Path)
    keygen.set_defaults(run=_keygen)
    sign = actions.add_parser("sign", help="write ARCHIVE.sig beside archives")
    sign.add_argument("--key", metavar="FILE", type=Path, required=True, help="private key, PEM without a password")
    sign.set_defaults(run=_sign)
    for action in (digest, sign):
        action.add_argument("archives", metavar="ARCHIVE", type=Path, nargs="+")


def _digest(args: argparse.Namespace) -> int:
    for path in args.archives:
        print(f"{_digest_of(path)}  {path}")
    return 0


def _keygen(args: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from tserve.archive.signatures import key_id

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    _write(Path(f"{args.name}.key"), private, mode=0o600)
    _write(Path(f"{args.name}.pub"), public, mode=0o644)
    print(key_id(key.public_key()))
    return 0


def _sign(args: argparse.Namespace) -> int:
    from tserve.archive.signatures import ENDING, signature_line

    key = _private_key(args.key)
    for path in args.archives:
        line = signature_line(key, _digest_of(path))
        signature = path.with_name(path.name + ENDING)
        try:
            signature.write_text(f"{line}\n")
        except OSError as error:
            raise CannotSign(f"{signature} cannot be written: {error.strerror}") from error
        print(f"{signature}: {line}", file=sys.stderr)
    return 0


def _digest_of(path: Path) -> str:
    from tserve.archive.folder import digest_of_folder
    from tserve.archive.refusal import Refused

    try:
        if path.is_dir():
            return digest_of_folder(path.resolve())
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CannotSign(f"{path} cannot be read: {error.strerror}") from error
    except Refused as error:
        raise CannotSign(f"{path}: {error.detail}") from error


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise CannotSign(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CannotSign(f"{path} is no private key in PEM without a password: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CannotSign(f"{path} is no ed25519 key")
    return key


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """A file that is there already stays: it may be the only one of its kind."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except OSError as error:
        raise CannotSign(f"{path} cannot be written: {error.strerror}") from error
