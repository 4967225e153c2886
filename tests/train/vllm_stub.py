"""What stands for vLLM in the tests: a server, and the class that runs it in the same process; both sample by rule."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import SimpleNamespace

from PIL import Image


PATCH = 28  # pixels of one token's edge, of Qwen2-VL


def num_tokens(image):
    """As many tokens as the processor of Qwen2-VL makes of a picture within its bounds."""
    return (image.width // PATCH) * (image.height // PATCH)


def answer_to(ids, end):
    """An answer that depends on the prompt: one word or two, and the end."""
    return [20 + sum(ids) % 50, *([30] if len(ids) % 2 else []), end]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _send(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self._send({"/health": {}, "/v1/models": {"data": [{"id": "student"}]}}[path])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        with self.server.lock:
            self.server.asked.append((self.path, asked))
        answers = {
            "/v1/completions": self._complete,
            "/inference/v1/generate": lambda asked: {"choices": [self._choice(asked["token_ids"])]},
            "/v1/chat/completions/render": self._render,
        }
        self._send(answers.get(self.path, lambda asked: {})(asked))

    def _choice(self, ids):
        return {"token_ids": self.server.answer(ids), "prompt_token_ids": ids, "logprobs": None}

    def _complete(self, asked):
        return {"choices": [self._choice(ids) for ids in asked["prompt"]]}

    def _render(self, asked):
        urls = [part["image_url"]["url"] for message in asked["messages"] for part in message["content"]]
        images = [Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
        places = [{"offset": 0, "length": num_tokens(image)} for image in images]
        return {"features": {"mm_hashes": {"image": ["a"] * len(places)}, "mm_placeholders": {"image": places}}}


@contextmanager
def serve(answer):
    """Runs a server whose `asked` are the requests to it in their order; yields it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.answer, server.asked, server.lock = answer, [], threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_llm(answer, image_token_id, asked):
    """Returns a class for `vllm.LLM`, which puts a picture's tokens into its place in the prompt, as vLLM does."""

    class LLM:
        def __init__(self, **kwargs):
            asked.append(("init", kwargs))
            model = SimpleNamespace(load_weights=lambda pairs: asked.append(("weights", pairs)))
            runner = SimpleNamespace(model_runner=SimpleNamespace(model=model))
            executor = SimpleNamespace(driver_worker=runner)
            self.llm_engine = SimpleNamespace(model_executor=executor)

        def reset_prefix_cache(self):
            asked.append(("reset", None))

        def generate(self, prompts, sampling_params, use_tqdm):
            asked.append(("generate", (prompts, sampling_params)))
            return [self._reply(**prompt) for prompt in prompts]

        def _reply(self, prompt_token_ids, multi_modal_data=None):
            images = (multi_modal_data or {}).get("image", [])
            images = iter(images if isinstance(images, list) else [images])
            ids = []
            for token in prompt_token_ids:
                ids += [token] * (num_tokens(next(images)) if token == image_token_id else 1)
            reply = SimpleNamespace(token_ids=answer(ids), logprobs=None)
            return SimpleNamespace(prompt_token_ids=ids, outputs=[reply])

    return LLM
