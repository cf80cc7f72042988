"""What user handlers import: `ts.context`, `ts.torch_handler`, `ts.handler_utils`, `ts.metrics`, `ts.utils.util`.

Importing `ts` stays cheap (no torch) and knows nothing of tserve.  `__version__` is the version of the contract
that handlers were written for, not tserve's own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ts.version import __version__

__all__ = ["__version__"]


class _MissingModules:
    """The last finder Python asks: it says which `ts` module does not exist, and lists those that do.

    A handler written for a larger `ts` then fails with a sentence its author can act on.  Other names are left alone.
    """

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        if fullname.startswith(f"{__name__}."):
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: tserve does not provide it. "
                f"The modules of `ts` in this release are {', '.join(_modules())}.",
                name=fullname,
            )


def _modules() -> list[str]:
    """Dotted names of modules and packages, read from the files: importing them could import torch."""
    root = Path(__file__).parent
    files = (file.relative_to(root.parent).with_suffix("") for file in root.rglob("*.py"))
    names = (file.parent if file.name == "__init__" else file for file in files)
    return sorted(".".join(name.parts) for name in names if name.parts[1:] and not name.name.startswith("_"))


sys.meta_path.append(_MissingModules())
