"""The place of TorchServe's stock handler of that name, for language models run by TensorRT-LLM."""

from __future__ import annotations

from typing import Any

from ts.torch_handler._elsewhere import not_driven
from ts.torch_handler.base_handler import BaseHandler


class TRTLLMHandler(BaseHandler):
    """Refuses to be initialised, with what to do."""

    def initialize(self, context: Any) -> None:
        """Raises ImportError, which says what to do."""
        instead = "Write a handler that loads the engine in `initialize` and streams what it generates."
        raise not_driven(type(self).__name__, "TensorRT-LLM", "tensorrt-llm", instead)
