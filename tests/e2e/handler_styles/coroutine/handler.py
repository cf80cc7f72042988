"""A coroutine `handle`, many requests at once; the rest of the path says which of its services is meant."""

import asyncio

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler


class Router(BaseHandler):
    def initialize(self, ctx):
        self.arrived = 0
        self.all_here = asyncio.Event()
        self.initialized = True

    async def handle(self, data, context):
        url_path = context.get_request_header(0, "url_path")
        if url_path == "v1/models":
            return [{"data": [{"id": context.model_name}]}]
        wanted = data[0]["body"]["together"]
        self.arrived += 1
        if self.arrived == wanted:
            self.all_here.set()
        await self.all_here.wait()
        context.set_response_content_type(0, "text/event-stream")
        for n in range(data[0]["body"]["pieces"]):
            send_intermediate_predict_response([f"data: {n}\n\n"], context.request_ids, "Result", 200, context)
            await asyncio.sleep(0)
        return ["data: [DONE]\n\n"]
