"""Who may call what: one table for every route and every gRPC method of every port (docs/security.md).

HTTP routes stand under the id of their operation, gRPC methods under `service/method`.  What is not in the table is
refused, and a test holds the table to what the ports serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Scope(StrEnum):
    """What a token is good for.  `token` is to renew the keys of the key file."""

    INFERENCE = "inference"
    MANAGEMENT = "management"
    METRICS = "metrics"
    TOKEN = "token"


@dataclass(frozen=True, slots=True)
class Rule:
    """Any one of `scopes` will do; `anyone` needs no token, `anyone_bare` none without a query string."""

    scopes: frozenset[Scope]
    anyone: bool = False
    anyone_bare: bool = False


def _rule(*scopes: Scope) -> Rule:
    return Rule(frozenset(scopes))


_PORTS: Final = (Scope.INFERENCE, Scope.MANAGEMENT, Scope.METRICS)
OPEN: Final = Rule(frozenset(), anyone=True)
PROBE: Final = Rule(frozenset(_PORTS), anyone_bare=True)
ANY_PORT: Final = _rule(*_PORTS)
INFERENCE: Final = _rule(Scope.INFERENCE)
MANAGEMENT: Final = _rule(Scope.MANAGEMENT)
METRICS: Final = _rule(Scope.METRICS)
TOKEN: Final = _rule(Scope.TOKEN)

_PREDICTING = (
    *("predictions", "version_predictions", "explanations", "version_explanations", "kservePredict", "kserveExplain"),
    *("infer", "explain", "invocations", "invokeModel", "legacyPredict", "version_legacyPredict"),
)
_HTTP: Mapping[str, Rule] = {
    # every port
    "apiDescription": OPEN,
    "oldApiDescription": OPEN,
    "openapi": OPEN,
    "docs": OPEN,
    "live": OPEN,
    "ready": PROBE,
    "modelReady": ANY_PORT,
    "version_modelReady": ANY_PORT,
    # management
    "listModels": MANAGEMENT,
    "registerModel": MANAGEMENT,
    "describeModel": MANAGEMENT,
    "version_describeModel": MANAGEMENT,
    "setAutoScale": MANAGEMENT,
    "version_setAutoScale": MANAGEMENT,
    "unregisterModel": MANAGEMENT,
    "version_unregisterModel": MANAGEMENT,
    "setDefault": MANAGEMENT,
    "modelApiDescription": MANAGEMENT,
    "version_modelApiDescription": MANAGEMENT,
    "listWorkflows": MANAGEMENT,
    "registrations": MANAGEMENT,
    "events": MANAGEMENT,
    "version_events": MANAGEMENT,
    "retryModel": MANAGEMENT,
    "version_retryModel": MANAGEMENT,
    "kserveReady": MANAGEMENT,
    "renewKey": TOKEN,
    # inference
    "ping": INFERENCE,
    "serverMetadata": INFERENCE,
    "serverLive": INFERENCE,
    "serverReady": INFERENCE,
    "modelMetadata": INFERENCE,
    "openInferenceModelReady": INFERENCE,
    "modelVersions": INFERENCE,
    **dict.fromkeys(_PREDICTING, INFERENCE),
    **dict.fromkeys([f"{operation}Description" for operation in _PREDICTING], INFERENCE),
    # metrics
    "metrics": METRICS,
}
_OPEN_INFERENCE = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
_GRPC: Mapping[str, Mapping[str, Rule]] = {
    "org.pytorch.serve.grpc.management.ManagementAPIsService": dict.fromkeys(
        ["DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel"], MANAGEMENT
    ),
    "org.pytorch.serve.grpc.inference.InferenceAPIsService": dict.fromkeys(
        ["Ping", "Predictions", "StreamPredictions", "StreamPredictions2"], INFERENCE
    ),
    "org.pytorch.serve.grpc.openinference.GRPCInferenceService": dict.fromkeys(_OPEN_INFERENCE, INFERENCE),
    "inference.GRPCInferenceService": dict.fromkeys(_OPEN_INFERENCE, INFERENCE),
    # Orchestrators' probes send no metadata; a call that is kept open is not for strangers.
    "grpc.health.v1.Health": {"Check": OPEN, "Watch": ANY_PORT},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": ANY_PORT},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": ANY_PORT},
}
RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {**_HTTP, **{f"{service}/{name}": rule for service, each in _GRPC.items() for name, rule in each.items()}}
)


def rule_of_nothing(roles: Iterable[str]) -> Rule:
    """For what a port does not have: strangers are not told which that is (recorded: a token first, then 404)."""
    return _rule(*(Scope(role) for role in roles))
