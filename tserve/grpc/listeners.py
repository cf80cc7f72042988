"""What is served on which gRPC port."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tserve.grpc.admission import admission
from tserve.grpc.health import health_service
from tserve.grpc.inference import inference_service
from tserve.grpc.management import management_service
from tserve.grpc.methods import Service
from tserve.grpc.open_inference import open_inference_services
from tserve.grpc.reflection import reflection_services
from tserve.grpc.server import MOST_CONNECTIONS, Listener, serve
from tserve.net.tls import Tls
from tserve.services.authorization import Authorization
from tserve.services.use_cases import UseCases
from tserve.settings import Settings

__all__ = ["make_listeners", "serve"]


def make_listeners(
    settings: Settings,
    use_cases: UseCases,
    authorization: Authorization,
    *,
    tls: Tls | None = None,
    most_connections: int = MOST_CONNECTIONS,
) -> Mapping[str, Listener]:
    """By the name that endpoints.json gives them."""
    admit = admission(authorization)
    return {
        "grpc_inference": Listener(
            settings.grpc_inference,
            _with_standard(_inference_services(settings, use_cases), use_cases.open_inference.server_is_ready),
            most_bytes=settings.max_request_size,
            tls=tls,
            most_connections=most_connections,
            admit=admit,
            max_age_ms=settings.grpc_inference_max_connection_age_ms,
            max_age_grace_ms=settings.grpc_inference_max_connection_age_grace_ms,
        ),
        "grpc_management": Listener(
            settings.grpc_management,
            _with_standard([management_service(use_cases, model_api=settings.enable_model_api)], lambda: True),
            most_bytes=settings.max_request_size,
            tls=tls,
            admit=admit,
            max_age_ms=settings.grpc_management_max_connection_age_ms,
            max_age_grace_ms=settings.grpc_management_max_connection_age_grace_ms,
        ),
    }


def _inference_services(settings: Settings, use_cases: UseCases) -> list[Service]:
    names = (
        settings.ts_header_key_sequence_id,
        settings.ts_header_key_sequence_start,
        settings.ts_header_key_sequence_end,
    )
    services = [inference_service(use_cases.inference, use_cases.health, sequence_names=names)]
    if settings.ts_open_inference_protocol:
        services += open_inference_services(use_cases.open_inference, use_cases.inference)
    return services


def _with_standard(services: list[Service], serves: Callable[[], bool]) -> list[Service]:
    """And those services that every gRPC server has."""
    names = [service.name for service in services]
    health = health_service(dict.fromkeys(["", *names], serves))
    return [*services, health, *reflection_services([*names, health.name])]
