"""Certificates: read from PEM files or a PKCS #12 keystore, checked, and read again when the operator says so."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from tserve.errors import BadConfiguration
from tserve.settings_values import Certificates


class Tls:
    """`context` is what the next connection is to be served with."""

    def __init__(self, certificates: Certificates, *, protocols: Sequence[str]) -> None:
        """`protocols` are offered by ALPN, the best first.  Raises BadConfiguration."""
        self._certificates = certificates
        self._protocols = list(protocols)
        self.context = self._read()

    def reload(self) -> None:
        """Connections from now on get what the files have now.  Raises BadConfiguration, and changes nothing then."""
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(self._protocols)
        held = self._certificates
        if held.keystore is not None:
            _load_keystore(context, held.keystore, held.password)
        else:
            assert held.certificate is not None
            assert held.key is not None
            _load_pair(context, held.certificate, held.key)
        if held.client_ca is not None:
            try:
                context.load_verify_locations(held.client_ca)
            except (OSError, ssl.SSLError) as e:
                raise BadConfiguration(f"tls_client_ca={held.client_ca}: no certificates can be read: {e}") from e
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def no_password() -> str:
        raise BadConfiguration(f"private_key_file={key}: it is encrypted; allowed is a PEM file without a password")

    try:
        context.load_cert_chain(certificate, key, no_password)
    except (OSError, ssl.SSLError) as e:
        said = f"certificate_file={certificate}, private_key_file={key}: {_reason(e)}"
        raise BadConfiguration(f"{said}; allowed are PEM files that belong together") from e


def _load_keystore(context: ssl.SSLContext, keystore: Path, password: str) -> None:
    from cryptography.hazmat.primitives import serialization  # late: few have a keystore
    from cryptography.hazmat.primitives.serialization import pkcs12

    try:
        key, certificate, chain = pkcs12.load_key_and_certificates(keystore.read_bytes(), password.encode())
    except (OSError, ValueError) as e:
        said = f"keystore={keystore}: {_reason(e)}"
        raise BadConfiguration(f"{said}; allowed is a PKCS #12 file that keystore_pass opens") from e
    if key is None or certificate is None:
        raise BadConfiguration(f"keystore={keystore}: it has no key with a certificate")
    pem = serialization.Encoding.PEM
    parts = [
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        *(each.public_bytes(pem) for each in (certificate, *chain)),
    ]
    # OpenSSL reads files only: one in memory, which nobody else sees.
    with os.fdopen(os.memfd_create("keystore", os.MFD_CLOEXEC), "wb") as file:
        file.write(b"".join(parts))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
