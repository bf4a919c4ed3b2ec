"""A local server with the response formats of vLLM and of llama.cpp."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


class EndpointServer(ThreadingHTTPServer):
    """The probability of Yes grows with the prompt; a third of the prompts is refused once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.is_broken = False
        self.forbidden: str | None = None  # a sentence that gets status 400
        self.content: Any = None  # the body of every response, if not None: JSON or bytes
        self.status, self.headers = 200, dict[str, str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: EndpointServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization")
        self.server.received.append({"path": self.path, "key": key, **body})
        text = body.get("prompt") or body["messages"][-1]["content"]
        if self.server.content is not None:
            return self.answer(self.server.status, self.server.content)
        if self.server.is_broken or (self.server.forbidden or "\0") in text:
            return self.answer(400, {"error": "no such model"})
        if len(text) % 3 == 0 and text not in self.server.refused:
            self.server.refused.add(text)
            return self.answer(429, {"error": "too many"})
        share = 0.2 + 0.6 * (len(text) % 100) / 100
        probabilities = {" Yes": share, " No": 0.9 - share, "no": 0.05, "!": 0.01}
        logs = {token: float(np.log(value)) for token, value in probabilities.items()}
        if self.path.endswith("/chat/completions"):
            top = [{"token": token, "logprob": value} for token, value in logs.items()]
            choice: dict[str, Any] = {
                "message": {"content": "Yes, they do."},
                "logprobs": {"content": [{"top_logprobs": top}]},
            }
        else:
            choice = {"text": " maybe", "logprobs": {"top_logprobs": [logs]}}
        return self.answer(200, {"choices": [choice]})

    def answer(self, status: int, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
