"""What is served on which gRPC port."""

from __future__ import annotations

from collections.abc import Mapping

from tserve.grpc.inference import inference_service
from tserve.grpc.server import Listener, serve
from tserve.services.use_cases import UseCases
from tserve.settings import Settings

__all__ = ["make_listeners", "serve"]


def make_listeners(settings: Settings, use_cases: UseCases) -> Mapping[str, Listener]:
    """By the name that endpoints.json gives them."""
    return {
        "grpc_inference": Listener(
            settings.grpc_inference,
            [inference_service(use_cases.inference, use_cases.health)],
            most_bytes=settings.max_request_size,
            max_age_ms=settings.grpc_inference_max_connection_age_ms,
            max_age_grace_ms=settings.grpc_inference_max_connection_age_grace_ms,
        ),
        "grpc_management": Listener(
            settings.grpc_management,
            [],
            most_bytes=settings.max_request_size,
            max_age_ms=settings.grpc_management_max_connection_age_ms,
            max_age_grace_ms=settings.grpc_management_max_connection_age_grace_ms,
        ),
    }
