"""Signatures of archives: ed25519 over the digest, so that the size of an archive does not matter.

One is a line `ed25519:<key id>:<64 bytes in base64url>`; a `.sig` file holds one or more.  A key's id is the start of
the sha-256 of its 32 bytes.  Trusted keys are the `*.pub` files of a folder, PEM as openssl writes them.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from tserve.archive.refusal import NotVouchedFor

ENDING = ".sig"
_LINE = re.compile(r"ed25519:([0-9a-f]{16}):([A-Za-z0-9_-]{86})")
_MOST_BYTES = 16 << 10  # of a key, or of a file of signatures
_MOST_LINES = 16

Trusted = Mapping[str, Ed25519PublicKey]  # by id


class BadKey(Exception):
    """A trusted key cannot be read; the text says which and why."""


def signed_bytes(digest: str) -> bytes:
    """What is signed for an archive with this sha-256; the words keep it from being taken for anything else."""
    return f"tserve archive 1\nsha256:{digest}\n".encode()


def key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def signature_line(key: Ed25519PrivateKey, digest: str) -> str:
    signature = base64.urlsafe_b64encode(key.sign(signed_bytes(digest))).rstrip(b"=").decode()
    return f"ed25519:{key_id(key.public_key())}:{signature}"


def read_trusted(folder: Path) -> Trusted:
    """Raises BadKey: a folder that is not what it should be trusts nobody."""
    found = {}
    try:
        for path in sorted(folder.glob("*.pub")):
            with path.open("rb") as file:
                key = load_pem_public_key(file.read(_MOST_BYTES))
            if not isinstance(key, Ed25519PublicKey):
                raise BadKey(f"{path} is no ed25519 key")
            found[key_id(key)] = key
    except OSError as error:
        raise BadKey(f"the trusted keys cannot be read: {error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey(f"{path} is no public key in PEM: {error}") from error
    return found


def lines_of(text: str) -> list[str]:
    """The signatures of a text.  Raises NotVouchedFor for one that holds anything else."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or len(lines) > _MOST_LINES or not all(map(_LINE.fullmatch, lines)):
        raise NotVouchedFor(
            "bad_signature", "a signature is a line ed25519:KEY:SIGNATURE, as tserve archive sign has it"
        )
    return lines


def lines_beside(paths: Iterable[Path]) -> list[str]:
    """Those of the first of these files that is there.  Raises NotVouchedFor."""
    from tserve.archive.content import opened

    for path in paths:
        try:
            with opened(path) as file:
                return lines_of(file.read(_MOST_BYTES).decode("latin-1"))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NotVouchedFor("bad_signature", f"{path.name} cannot be read: {error.strerror}") from error
    return []


def verified(digest: str, lines: Iterable[str], trusted: Trusted) -> str | None:
    """The first signature that a trusted key made for this digest; None where no trusted key is named.

    Raises NotVouchedFor when a trusted key is named and none of its signatures is one.
    """
    wrong = None
    for line in lines:
        found = _LINE.fullmatch(line)
        key = trusted.get(found[1]) if found else None
        if found is None or key is None:
            continue
        try:
            key.verify(base64.urlsafe_b64decode(found[2] + "=="), signed_bytes(digest))
        except InvalidSignature:
            wrong = found[1]
        else:
            return line
    if wrong is not None:
        raise NotVouchedFor("bad_signature", f"the signature of key {wrong} is not for sha256:{digest}", actual=digest)
    return None
