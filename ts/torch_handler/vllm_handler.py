"""The place of TorchServe's stock handler of that name, for language models run by vLLM."""

from __future__ import annotations

from typing import Any

from ts.torch_handler._elsewhere import not_driven
from ts.torch_handler.base_handler import BaseHandler


class VLLMHandler(BaseHandler):
    """Refuses to be initialised, with what to do."""

    def initialize(self, context: Any) -> None:
        """Raises ImportError, which says what to do."""
        instead = "Write a handler that starts vLLM's engine in `initialize` and streams what it generates."
        raise not_driven(type(self).__name__, "vLLM", "vllm", instead)
