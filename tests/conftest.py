"""Tiny real models, processors and pairs, made on the spot; nothing is downloaded."""

import copy
import random
import signal

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch.distributed.device_mesh import init_device_mesh

from puma_trl.mini import build_model, build_processor

from .browser import browser, chromium  # noqa: F401, fixtures
from .chat_server import api  # noqa: F401, a fixture
from .hub_server import server  # noqa: F401, a fixture


# A shell ignores interrupts for what it runs in the background, and what that starts would ignore them too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {"hidden_size": 64, "num_hidden_layers": 2, "vision_embed_dim": 32, "vision_depth": 2, "num_heads": 4}
PAIR_FEATURES = Features(
    {
        "row_id": Value("string"),
        "image_url": List(Image(decode=False)),
        "instruction": Value("string"),
        "output": Value("string"),
        "image_url_2": List(Image(decode=False)),
        "instruction_2": Value("string"),
        "output_2": Value("string"),
        "num_answer_tokens": Value("int64"),  # by which checked rows are known
    }
)


@pytest.fixture(autouse=True)
def few_threads():
    """The tests share two cores, and tiny matrices gain nothing from threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def built_processor():
    return build_processor("qwen2_vl")


@pytest.fixture
def processor(built_processor):
    """One for each test, as settings of a run change it: sizes of pictures, the pad token, the template."""
    return copy.deepcopy(built_processor)


@pytest.fixture
def tiny_model(processor):
    """Returns a function that makes a tiny Qwen2-VL; the same seed gives the same weights."""

    def make(seed=0, family_name="qwen2_vl", **sizes):
        return build_model(family_name, processor, seed=seed, **(TINY | sizes))

    return make


@pytest.fixture
def mesh():
    """The devices of one process, to divide a model over."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Returns a function that makes pair rows as `load_data` returns them, with pictures of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")

    def picture(rng, name):
        size = (28 * rng.randint(1, 3), 28 * rng.randint(1, 3))
        PILImage.new("RGB", size, tuple(rng.randrange(256) for _ in range(3))).save(folder / name)
        return {"bytes": None, "path": str(folder / name)}

    def make(num_rows=8, seed=0, text_rich_images=lambda index: False, vision_rich_images=lambda index: 1):
        rng = random.Random(seed)
        rows = []
        for index in range(num_rows):
            answer = "so " * rng.randint(0, 4) + f"the angle is {rng.randrange(180)}"
            sides = {}
            for suffix, count in (("", text_rich_images(index)), ("_2", vision_rich_images(index))):
                name = f"{seed}-{index}{suffix}"
                sides[f"image_url{suffix}"] = [picture(rng, f"{name}-{k}.png") for k in range(int(count))]
                sides[f"instruction{suffix}"] = f"Angles {rng.randrange(99)} and {rng.randrange(99)}?" + suffix
                sides[f"output{suffix}"] = answer
            rows.append({"row_id": f"pairs.jsonl:{index}", **sides, "num_answer_tokens": len(answer)})
        return Dataset.from_list(rows, features=PAIR_FEATURES)

    return make
