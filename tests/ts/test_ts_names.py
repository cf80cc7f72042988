"""Every name of `ts` that public handlers import: it is there, and does what they use it for.

The table follows spec/inference.md section 15.  A name that needs a package is used to its error where the package is
not installed.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.ts import names_of_handlers as handlers
from tests.ts import names_of_tools as tools
from tests.ts.names import Check

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

_ENVELOPES = "ts.torch_handler.request_envelope"
_INSTANCES = {"instances": [1, 2]}
NAMES: dict[str, Check] = {
    "ts.torch_handler.base_handler.BaseHandler": handlers.base_handler,
    "ts.torch_handler.image_classifier.ImageClassifier": handlers.image_classifier,
    "ts.context.Context": tools.context_class,
    "ts.handler_utils.timer.timed": tools.timed,
    "ts.handler_utils.micro_batching.MicroBatching": tools.micro_batching,
    "ts.handler_utils.utils.import_class": tools.import_class,
    "ts.handler_utils.utils.send_intermediate_predict_response": tools.send_intermediate,
    "ts.metrics.dimension.Dimension": tools.dimension,
    "ts.utils.util.map_class_to_label": tools.class_labels,
    "ts.utils.util.CLEANUP_REGEX": tools.cleanup,
    "ts.utils.util.check_valid_pt2_backend": tools.pt2_backend,
    "ts.utils.util.list_classes_from_module": tools.classes_of,
    "ts.utils.util.load_label_mapping": tools.label_mapping,
    "ts.protocol.otf_message_handler.send_intermediate_predict_response": tools.old_send_intermediate,
    "ts.torch_handler.object_detector.ObjectDetector": handlers.object_detector,
    "ts.torch_handler.dali_handler.DALIHandler": handlers.dali_handler,
    "ts.torch_handler.distributed.base_pippy_handler.BasePippyHandler": handlers.pippy_handler,
    "ts.torch_handler.distributed.base_deepspeed_handler.BaseDeepSpeedHandler": handlers.deepspeed_handler,
    "ts.handler_utils.distributed.deepspeed.get_ds_engine": tools.ds_engine,
    "ts.handler_utils.distributed.pt_pippy.get_pipeline_driver": tools.pipeline_driver,
    "ts.handler_utils.hf_batch_streamer.TextIteratorStreamerBatch": tools.batch_streamer,
    "ts.metrics.metric.Metric": tools.metric,
    "ts.metrics.metric_type_enum.MetricTypes": tools.metric_types,
    "ts.metrics.process_memory_metric.check_process_mem_usage": tools.memory_usage,
    "ts.torch_handler.unit_tests.test_utils.mock_context.MockContext": handlers.mock_context,
    "ts.utils.util.PredictionException": tools.prediction_exception,
    "ts.handler_utils.distributed.pt_pippy.initialize_rpc_workers": tools.rpc_workers,
    "ts.launcher.start": tools.launcher_start,
    "ts.launcher.stop": tools.launcher_stop,
    "ts.launcher.register_model": tools.launcher_register,
    "ts.launcher.register_model_with_params": tools.launcher_register_with,
    "ts.version.__version__": tools.version,
    "ts.__version__": tools.version,
    "ts.utils.util.get_yaml_config": tools.yaml_config,
    "ts.utils.util.PT2Backend": tools.backends,
    "ts.utils.util.deprecated": tools.deprecated,
    "ts.service.Service": tools.service,
    "ts.service.PredictionException": tools.prediction_exception,
    "ts.service.emit_metrics": tools.emit_metrics,
    "ts.handler_utils.text_utils.get_tokenizer": tools.tokenizer,
    "ts.handler_utils.text_utils.ngrams_iterator": tools.ngrams,
    "ts.torch_handler.vision_handler.VisionHandler": handlers.vision_handler,
    "ts.torch_handler.text_handler.TextHandler": handlers.text_handler,
    "ts.torch_handler.image_segmenter.ImageSegmenter": handlers.image_segmenter,
    "ts.torch_handler.text_classifier.TextClassifier": handlers.text_classifier,
    "ts.torch_handler.contractions.CONTRACTION_MAP": handlers.contraction_map,
    f"{_ENVELOPES}.base.BaseEnvelope": handlers.base_envelope,
    f"{_ENVELOPES}.body": handlers.envelope([{"body": 1}, {"data": 2}], [1, 2], [3, 4], [3, 4]),
    f"{_ENVELOPES}.json": handlers.envelope([{"body": _INSTANCES}], [1, 2], [3, 4], [{"predictions": [3, 4]}]),
    f"{_ENVELOPES}.kserve": handlers.envelope([{"body": _INSTANCES}], [1, 2], [3, 4], [{"predictions": [3, 4]}]),
    f"{_ENVELOPES}.kservev2": handlers.kserve_v2,
    "ts.metrics.unit.Units": tools.units,
    "ts.metrics.metrics_store.MetricsStore": tools.metrics_store,
    "ts.metrics.caching_metric.CachingMetric": tools.caching_metric,
}


@pytest.mark.parametrize("name", NAMES)
def test_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    module, _, member = name.rpartition(".")
    found = importlib.import_module(name) if module == _ENVELOPES else getattr(importlib.import_module(module), member)
    NAMES[name](found, tmp_path)


def test_both_prediction_exceptions_are_one() -> None:
    """The worker knows it by its class."""
    import ts.service
    import ts.utils.util

    assert ts.service.PredictionException is ts.utils.util.PredictionException
