"""Metrics of its own through `context.metrics`, from the steps of BaseHandler."""

import time

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.torch_handler.base_handler import BaseHandler


class MeasuringHandler(BaseHandler):
    def initialize(self, context):
        metrics = context.metrics
        self.loads = metrics.add_metric_to_cache(
            metric_name="ModelLoads", unit="count", dimension_names=["ModelName", "Level"]
        )
        self.loads.add_or_update(1, [context.model_name, "Model"])
        self.initialized = True

    def preprocess(self, data):
        metrics = self.context.metrics
        started = time.time()
        texts = [bytes(row["body"]).decode() for row in data]
        metrics.add_time("PreprocessTime", (time.time() - started) * 1000, None, "ms")
        metrics.add_counter("RequestRows", len(texts), idx=0, dimensions=[Dimension("Step", "preprocess")])
        for idx, text in enumerate(texts):
            metrics.add_size("RequestSize", len(text) / 1024, idx, "kB")
        metrics.add_percent("Filled", 50.0)
        metrics.add_metric("TextLength", len(texts[0]), "chars", metric_type=MetricTypes.HISTOGRAM)
        return texts

    def inference(self, data):
        try:
            return [int(text) for text in data]
        except ValueError:
            self.context.metrics.add_error("NotANumber", 1)
            return [None for _ in data]

    def postprocess(self, data):
        cache = self.context.metrics.cache
        seen = {kind.value: sorted(metrics) for kind, metrics in cache.items()}
        again = self.context.metrics.get_metric("RequestRows", MetricTypes.COUNTER).unit
        return [{"answer": answer, "metrics": seen, "unit": str(again)} for answer in data]
