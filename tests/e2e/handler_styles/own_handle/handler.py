"""`handle` itself overridden: every request of a batch gets a status, headers and a content type of its own."""

import csv
import io

from ts.torch_handler.base_handler import BaseHandler


class TableHandler(BaseHandler):
    def initialize(self, context):
        self.manifest = context.manifest
        self.initialized = True

    def handle(self, data, context):
        self.context = context
        answers = []
        for idx, row in enumerate(data):
            wanted = context.get_request_header(idx, "Accept")
            try:
                numbers = [float(number) for number in row["body"]["numbers"]]
            except (KeyError, TypeError, ValueError) as error:
                context.set_response_status(code=422, phrase="Cannot be read", idx=idx)
                context.set_response_header(idx, "X-Reason", type(error).__name__)
                answers.append(f"no numbers in {row['body']}")
                continue
            context.set_response_header(idx, "X-Rows", str(len(data)))
            if wanted == "text/csv":
                context.set_response_content_type(idx, "text/csv")
                table = io.StringIO()
                csv.writer(table).writerows([number, number * 2] for number in numbers)
                answers.append(table.getvalue())
            elif wanted == "application/octet-stream":
                context.set_response_content_type(idx, "application/octet-stream")
                answers.append(bytes(int(number) for number in numbers))
            else:
                context.set_response_content_type(idx, "application/json")
                answers.append({"doubled": [number * 2 for number in numbers]})
        return answers
