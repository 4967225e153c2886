"""What stands for vLLM in the tests: a server, and the class that runs it in the same process; both sample by rule."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import SimpleNamespace

from PIL import Image


# The fields of sampling that vLLM 0.31 has in `SamplingParams` and in the request of `/v1/completions` alike. The
# latter takes unknown fields without a word and does nothing with them.
OF_SAMPLING = frozenset(
    "allowed_token_ids bad_words frequency_penalty ignore_eos include_stop_str_in_output logit_bias logprob_token_ids "
    "logprobs max_tokens min_p min_tokens n presence_penalty prompt_logprobs repetition_detection repetition_penalty "
    "routed_experts_prompt_start seed skip_special_tokens spaces_between_special_tokens stop stop_token_ids "
    "stream_interval structured_outputs temperature thinking_token_budget top_k top_p watermarking".split()
)
OF_COMPLETIONS = OF_SAMPLING | {"model", "prompt", "return_token_ids", "return_tokens_as_token_ids"}
MAX_BIASED = 1024  # in its newer runner; the older one has no limit
ROUTES_WITHOUT_ANSWER = (
    *("/start_weight_update", "/update_weights", "/finish_weight_update"),
    *("/reset_prefix_cache", "/reset_encoder_cache"),
)
PATCH = 28  # pixels of one token's edge, of Qwen2-VL


def num_tokens(image):
    """As many tokens as the processor of Qwen2-VL makes of a picture within its bounds."""
    return (image.width // PATCH) * (image.height // PATCH)


def answer_to(ids, end):
    """An answer that depends on the prompt: one word or two, and the end."""
    return [20 + sum(ids) % 50, *([30] if len(ids) % 2 else []), end]


def sampling_params(**kwargs):
    """Stands for `SamplingParams`, which refuses what it does not know and what is out of bounds."""
    assert kwargs.keys() <= OF_SAMPLING, sorted(kwargs.keys() - OF_SAMPLING)
    assert 0 <= kwargs["temperature"] <= 2 and 0 < kwargs["top_p"] <= 1 and 0 <= kwargs["min_p"] <= 1
    assert kwargs["top_k"] >= -1 and 0 <= kwargs.get("min_tokens", 0) <= kwargs["max_tokens"]
    assert len(kwargs["logit_bias"]) <= MAX_BIASED and min(kwargs["logit_bias"].values()) >= -100
    assert all(isinstance(number, int) for number in [*kwargs["logit_bias"], *kwargs["stop_token_ids"]])
    return kwargs


def check_request(given):
    """Sees that the sampling that a request asks for, whose keys of ids are texts in JSON, is vLLM's."""
    sampling_params(**given | {"logit_bias": {int(number): bias for number, bias in given["logit_bias"].items()}})


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
            "/inference/v1/generate": self._generate,
            "/v1/chat/completions/render": self._render,
        }
        answers |= dict.fromkeys(ROUTES_WITHOUT_ANSWER, lambda asked: {})
        self._send(answers[self.path](asked))

    def _choice(self, ids):
        return {"token_ids": self.server.answer(ids), "prompt_token_ids": ids, "logprobs": None}

    def _generate(self, asked):
        params = dict(asked["sampling_params"])
        assert params.pop("output_kind") == 2  # the last output alone
        check_request(params)
        return {"choices": [self._choice(asked["token_ids"])]}

    def _complete(self, asked):
        assert asked.keys() <= OF_COMPLETIONS, sorted(asked.keys() - OF_COMPLETIONS)
        check_request({name: value for name, value in asked.items() if name in OF_SAMPLING})
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
            self.llm_engine = SimpleNamespace(
                model_executor=executor, reset_encoder_cache=lambda: asked.append(("reset_encoder", None))
            )

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
