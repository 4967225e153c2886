"""An OpenAI-compatible server on this machine that answers as a test wants."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


SECRET = "sk-very-secret"


class Api(ThreadingHTTPServer):
    """Calls `answer(request body, number of the request)` → (status, text) for every chat completion."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.bodies, self.under_way, self.most_under_way = answer, [], 0, 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            number = len(self.server.bodies)
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        status, text = self.server.answer(body, number)
        with self.server.lock:
            self.server.under_way -= 1
        if status == 200 and not text.startswith("RAW"):
            message = {"role": "assistant", "content": text}
            text = json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [{"index": 0, "message": message}],
                }
            )
        data = text.removeprefix("RAW").encode(errors="surrogateescape")
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client has given up waiting

    def log_message(self, *args):
        pass


@pytest.fixture
def api(monkeypatch):
    """Returns a function that starts a server with the given answers."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    running = []

    def start(answer):
        api = Api(answer)
        threading.Thread(target=api.serve_forever, args=(0.02,), daemon=True).start()
        running.append(api)
        return api

    yield start
    for api in running:
        api.shutdown()
        api.server_close()
