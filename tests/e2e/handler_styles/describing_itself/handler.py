"""A class without BaseHandler that finds out by itself whether it is asked to describe, or to explain."""

import json


class SelfDescribed:
    def initialize(self, context):
        self.name = context.model_name

    def _is_describe(self):
        return bool(self.context) and self.context.get_request_header(0, "describe") == "True"

    def _is_explain(self):
        return bool(self.context) and self.context.get_request_header(0, "explain") == "True"

    def handle(self, data, context):
        self.context = context
        if self._is_describe():
            return [json.dumps({"name": self.name, "rows": data})]
        if self._is_explain():
            return ["because"] * len(data)
        return ["an answer"] * len(data)
