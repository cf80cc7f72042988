"""From a request's body to a handler's inputs (spec/inference.md section 2)."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from tserve.domain.wire import Input
from tserve.errors import BadRequest
from tserve.http.params import Query

NAMES_BYTES = 32 << 10  # of all input names of a request: they travel in a frame's bounded head
MOST_PARTS = 1000  # of a form; reading as many as a body can hold would take the loop for seconds


def read_inputs(content_type: str, body: bytes) -> tuple[Input, ...]:
    """Inputs by name, the last of repeated ones; a body of no form type is the one input `body`.

    Raises BadRequest for a form of more than `MOST_PARTS` parts, or with more than `NAMES_BYTES` of names.
    """
    kind, options = parse_options_header(content_type)
    if kind.lower() == "multipart/form-data" and options.get("boundary"):
        inputs = _multipart(options["boundary"].encode("latin-1", "replace"), body)
    elif kind.lower() == "application/x-www-form-urlencoded":
        inputs = _form(body)
    else:
        return (Input("body", content_type.partition(";")[0].strip(), body),)
    if sum(len(part.name) + len(part.content_type) for part in inputs) > NAMES_BYTES:
        raise BadRequest(
            f"The names in the form in the request body take more than {NAMES_BYTES} bytes.",
            cause={"field": "body", "allowed": f"names of at most {NAMES_BYTES} bytes in all"},
        )
    return tuple({part.name: part for part in inputs}.values())


def query_inputs(query: Query) -> tuple[Input, ...]:
    """The pairs of a query as inputs, on the routes that take them."""
    return tuple(Input(name, "", value.encode()) for name, value in query.pairs().items())


def _form(body: bytes) -> list[Input]:
    """A part without `=` is no input: that is what plain `curl -d text` sends."""
    if body.count(b"&") >= MOST_PARTS:
        raise _too_many_parts()
    inputs = []
    for part in body.split(b"&"):
        name, separator, value = part.replace(b"+", b" ").partition(b"=")
        if separator:
            inputs.append(Input(unquote_to_bytes(name).decode("utf-8", "replace"), "", unquote_to_bytes(value)))
    return inputs


def _multipart(boundary: bytes, body: bytes) -> list[Input]:
    """The parts up to where the body stops making sense; the recorded server does not refuse such bodies."""
    decoder = MultipartDecoder(boundary, max_form_memory_size=None, max_parts=MOST_PARTS)
    inputs: list[Input] = []
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        event: Event = decoder.next_event()
        while not isinstance(event, (Epilogue, NeedData)):
            if isinstance(event, (Field, File)):
                # Only a part with a file name keeps its type; a plain field is bytes whatever it says.
                kind = event.headers.get("content-type", "application/octet-stream") if isinstance(event, File) else ""
                inputs.append(Input(event.name or "", kind.partition(";")[0].strip(), b""))
            elif isinstance(event, Data):
                last = inputs[-1]
                inputs[-1] = Input(last.name, last.content_type, last.value + event.data)
            event = decoder.next_event()
    except RequestEntityTooLarge:
        raise _too_many_parts() from None
    except ValueError:
        pass
    return inputs


def _too_many_parts() -> BadRequest:
    return BadRequest(
        f"The form in the request body has more than {MOST_PARTS} parts.",
        cause={"field": "body", "allowed": f"a form of at most {MOST_PARTS} parts, or a body of another content type"},
    )
