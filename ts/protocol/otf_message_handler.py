"""The old place of `send_intermediate_predict_response`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ts.handler_utils import utils
from ts.utils.util import deprecated


@deprecated("0.10.0", "ts.handler_utils.utils.send_intermediate_predict_response")
def send_intermediate_predict_response(
    ret: Sequence[Any], req_id_map: Mapping[int, str] | None, message: str, code: int, context: Any
) -> None:
    """The same as the function of this name in `ts.handler_utils.utils`."""
    utils.send_intermediate_predict_response(ret, req_id_map, message, code, context)
