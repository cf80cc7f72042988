"""What the configuration and a registration ask of an archive before it is unpacked (docs/integrity.md)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tserve.archive.refusal import NotVouchedFor
from tserve.archive.sources import Remote, Source
from tserve.archive.vouching import Demand
from tserve.domain.versions import Archive
from tserve.errors import BadConfiguration, IntegrityFailed


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client says of the archive that it registers: its sha-256 in hex, and lines with signatures."""

    sha256: str | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class Integrity:
    """The policy.  `pinned` are the digests that the configuration names, any of which a claim may leave unsaid."""

    digest_required: bool = False
    signature_required: bool = False
    trusted_keys: Path | None = None
    pinned: Collection[str] = ()

    def check(self) -> None:
        """That the keys can be used.  Raises BadConfiguration."""
        if self.trusted_keys is None:
            if self.signature_required:
                raise BadConfiguration("signature_required=true: trusted_keys must name the folder of the keys")
            return
        from tserve.archive.signatures import BadKey, read_trusted

        try:
            read_trusted(self.trusted_keys)
        except BadKey as error:
            raise BadConfiguration(f"trusted_keys={self.trusted_keys}: {error}") from error

    def consider(self, url: str, claim: Claim) -> None:
        """Refuse what cannot end well, before anything is fetched.  Raises IntegrityFailed."""
        if self.digest_required and claim.sha256 is None and not self.pinned:
            raise no_digest(url)
        if claim.signature is not None and self.trusted_keys is None:
            detail = "signature was given, and the server has no trusted_keys to check it with"
            raise IntegrityFailed(url, cause={"reason": "untrusted_key", "detail": detail})

    def check_signature(self, url: str, archive: Archive) -> None:
        """That a trusted key vouches for an archive that is kept.  Reads the keys.  Raises IntegrityFailed."""
        lines = [] if archive.signature is None else [archive.signature]
        asked = {"signature": "\n".join(lines), "trusted_keys": str(self.trusted_keys), "must_be_signed": True}
        try:
            Demand(asked).check(archive.digest)
        except NotVouchedFor as error:
            raise IntegrityFailed(url, cause={"reason": error.reason, "detail": error.detail, **error.facts}) from error

    def demand(self, claim: Claim, store: Path, named: Source | Remote) -> dict[str, object]:
        """For the intake process (tserve.archive.vouching.Demand)."""
        digests = [claim.sha256] if claim.sha256 else sorted(self.pinned) if self.digest_required else None
        return {
            "digests": digests,
            "signature": claim.signature,
            "beside": [str(path) for path in _beside(named, store)],
            "trusted_keys": None if self.trusted_keys is None else str(self.trusted_keys),
            "must_be_signed": self.signature_required,
            "private": isinstance(named, Remote),
        }


def no_digest(url: str) -> IntegrityFailed:
    detail = "digest_required is on, and neither sha256 nor an entry of models says what the archive should be"
    return IntegrityFailed(url, cause={"reason": "digest_required", "field": "sha256", "detail": detail})


def _beside(named: Source | Remote, store: Path) -> list[Path]:
    """Where signatures of a source may lie: beside it, and under its file's name at the top of the store."""
    if isinstance(named, Remote):
        return [store / f"{named.name}.sig"]
    path = Path(named.path)
    return [path.with_name(f"{path.name}.sig"), store / f"{Path(named.url).name}.sig"]
