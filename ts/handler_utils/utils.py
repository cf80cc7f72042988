"""`send_intermediate_predict_response` and `import_class` (spec/inference.md sections 6 and 15)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from ts.utils.util import PredictionException


def import_class(class_name: str, module_prefix: str | None = None) -> Any:
    """What `module.Class` names; with a prefix, `Class` in that module or `module.Class` below it.

    Raises ImportError if there is no such module, no such class in it, or no module named at all.
    """
    path, _, name = class_name.rpartition(".")
    module_name = ".".join(part for part in (module_prefix, path) if part)
    if not module_name:
        raise ImportError(f"{class_name!r} names no module: write it as module.{class_name}, or give module_prefix.")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ImportError(f"There is no {name!r} in {module_name}.", name=module_name) from None


def send_intermediate_predict_response(
    ret: Sequence[Any], req_id_map: Mapping[int, str] | None, message: str, code: int, context: Any
) -> None:
    """Send a piece of the answer to each client; what the handler returns at the end is the last piece.

    `ret` has one item for each request of `req_id_map`, which is `context.request_ids` or, in a micro batch, a part of
    it; the other requests then get an empty piece.  Content type, headers and status are those set before the first
    piece.  Raises RuntimeError outside of a batch and for requests that are answered by now, ValueError if `ret` does
    not fit, and PredictionException, to end the batch, for a code that is not 200.
    """
    send = getattr(context, "_send_pieces", None)
    if send is None:
        raise RuntimeError("No piece of an answer can be sent: this context belongs to no worker with a batch in hand.")
    if code != 200:
        raise PredictionException(message, code)
    if isinstance(ret, (str, bytes, bytearray)):
        raise ValueError("The pieces must be a list with one item per request, not a single text.")
    send(_by_place(list(ret), req_id_map, getattr(context, "request_ids", None)))


def _by_place(pieces: list[Any], req_id_map: Mapping[int, str] | None, whole: Mapping[int, str] | None) -> list[Any]:
    """The pieces in the order of the batch.  Raises RuntimeError, ValueError."""
    if not req_id_map or not whole or req_id_map == whole:
        return pieces
    if not set(whole.values()).issuperset(req_id_map.values()):
        # A thread of an earlier batch: its pieces are not for those who wait now.
        raise RuntimeError("A piece of an answer is late, or for nobody: its request is not in the batch in hand.")
    if len(pieces) != len(req_id_map):
        raise ValueError(f"{len(pieces)} pieces for {len(req_id_map)} requests")
    by_id = dict(zip(req_id_map.values(), pieces, strict=True))
    return [by_id.get(request_id, "") for request_id in whole.values()]
