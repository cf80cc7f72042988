"""Lines as workers send them, and what a page for Prometheus says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tserve.metrics.exposition import text_of
from tserve.metrics.recorder import Metrics


def line(
    name: str,
    value: object,
    *,
    unit: str = "ms",
    kind: str = "GAUGE",
    labels: str = "ModelName:m,Level:Model",
    ids: str = "id",
) -> str:
    return f"{name}.{unit}:{value}|#{labels}|#type:{kind}|#hostname:vm,1700000000,{ids}"


def shown(metrics: Metrics, *names: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By the name of the line: label values, in the family's order, to value."""
    families = metrics.page(names)
    orders = {f"{f.name}{suffix}": (*f.labels, "le") for f in families for suffix in ("", "_bucket", "_count", "_sum")}
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for sample in samples_of(text_of(families).decode()):
        values = tuple(sample.labels[name] for name in orders[sample.name] if name in sample.labels)
        found.setdefault(sample.name, {})[values] = sample.value
    return found


def samples_of(page: str) -> list[Sample]:
    """The lines of a page under the names that they have there: told its type, the client renames a counter's."""
    list(text_string_to_metric_families(page))  # it can be read with types, too
    untyped = "\n".join(line for line in page.split("\n") if not line.startswith("# TYPE "))
    return [sample for family in text_string_to_metric_families(untyped) for sample in family.samples]
