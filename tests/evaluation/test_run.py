"""A whole `run` of each benchmark with a tiny model: one process, two, stopped and resumed, through a real server."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from puma_trl.errors import EvaluationError, ModelError
from puma_trl.evaluation.__main__ import main
from puma_trl.evaluation.benchmarks import BENCHMARKS
from puma_trl.evaluation.local_model import Generator, Prompt, load_for_generation
from puma_trl.mini import build_model, build_processor

from ..conftest import TINY
from .helpers import make_items, read_rows, verse_item, write_data


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny model whose greedy replies differ from prompt to prompt."""
    folder, processor = tmp_path_factory.mktemp("model"), build_processor("qwen2_vl")
    model = build_model("qwen2_vl", processor, seed=3, **TINY)
    with torch.no_grad():  # no special tokens in the replies: a server reads those as the parts of a message
        model.lm_head.weight[processor.tokenizer.all_special_ids] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def options(benchmark, model, data, output, *more):
    files = ["--model", str(model), "--data", str(data), "--output_dir", str(output)]
    return ["run", "--benchmark", benchmark, *files, "--max_new_tokens", "12", "--batch_size", "3", *more]


def result(output):
    """Returns what two equal runs have in common: everything but the order in which replies came."""
    responses = {str(row["id"]): row["response"] for row in read_rows(output / "responses.jsonl")}
    return json.loads((output / "metrics.json").read_text()), responses, read_rows(output / "scored.jsonl")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_run_from_generation_to_report(benchmark, model_folder, tmp_path):
    data = write_data(tmp_path / "data", benchmark)
    assert main(options(benchmark, model_folder, data, tmp_path / "out")) == 0
    metrics, responses, scored = result(tmp_path / "out")
    items = make_items(benchmark)
    assert metrics["answered"] == metrics["items"] == len(responses) == len(scored) == len(items)
    assert len(set(responses.values())) > 1
    assert metrics["prompt"] == "official"
    assert metrics["settings"]["max_new_tokens"] == 12 and metrics["settings"]["temperature"] == 0.0
    report = (tmp_path / "out" / "report.md").read_text()
    assert ("not the official protocol" in report) is (benchmark != "wemath")
    assert Image.open(tmp_path / "out" / "report.png").width > 100


def test_stopped_run_is_resumed_and_asks_nothing_twice(model_folder, tmp_path, monkeypatch):
    data = write_data(tmp_path / "data", "wemath")
    assert main(options("wemath", model_folder, data, tmp_path / "whole")) == 0
    asked = []
    answer = Generator.answer

    def stop_after_two_batches(self, prompts):
        if len(asked) == 6:
            raise KeyboardInterrupt
        asked.extend(prompt.text for prompt in prompts)
        return answer(self, prompts)

    monkeypatch.setattr(Generator, "answer", stop_after_two_batches)
    with pytest.raises(KeyboardInterrupt):
        main(options("wemath", model_folder, data, tmp_path / "stopped"))
    responses = tmp_path / "stopped" / "responses.jsonl"
    assert len(read_rows(responses)) == 6
    with open(responses, "a") as file:
        file.write('{"id": 99, "resp')  # a torn last line

    def count(self, prompts):
        asked.extend(prompt.text for prompt in prompts)
        return answer(self, prompts)

    monkeypatch.setattr(Generator, "answer", count)
    assert main(options("wemath", model_folder, data, tmp_path / "stopped")) == 0
    assert len(asked) == len(set(asked)) == len(make_items("wemath"))
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    # a finished run asks nothing more
    assert main(options("wemath", model_folder, data, tmp_path / "stopped")) == 0
    assert len(asked) == len(make_items("wemath"))


def test_other_settings_do_not_mix(model_folder, tmp_path, capsys):
    data = write_data(tmp_path / "data", "mathverse", [verse_item(1)])
    assert main(options("mathverse", model_folder, data, tmp_path / "out")) == 0
    assert main(options("mathverse", model_folder, data, tmp_path / "out", "--prompt", "math_puma")) == 1
    error = capsys.readouterr().err
    assert "prompt 'official' -> 'math_puma'" in error and "responses.jsonl" in error


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_settings_that_are_refused_leave_nothing_behind(model_folder, tmp_path, capsys, name):
    data = write_data(tmp_path / "data", "mathverse", [verse_item(1)])
    assert main(options("mathverse", model_folder, data, tmp_path / "out", f"--{name}", "nan")) == 1
    assert f"`{name}` " in capsys.readouterr().err
    assert main(options("mathverse", model_folder, data, tmp_path / "out")) == 0
    (tmp_path / "out" / "responses.jsonl").write_text('{"response": "B"}\n')
    assert main(options("mathverse", model_folder, data, tmp_path / "out")) == 1
    assert "responses.jsonl, line 1: the row has no `id`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("picture", "item 2: images_version_1-4/image_2.png"),
        ("truncated", "item 2: unreadable image"),
        ("column", "query_wo"),
        ("model", "No image-text-to-text model"),
        ("batch_size", "batch_size"),
    ],
)
def test_bad_input_stops_before_the_first_reply(change, message, model_folder, tmp_path, capsys):
    items = [verse_item(1), verse_item(2)]
    more = []
    if change == "column":
        del items[1]["query_wo"]
    data = write_data(tmp_path / "data", "mathverse", items)
    picture = tmp_path / "data" / "images_version_1-4" / "image_2.png"
    if change == "picture":
        picture.unlink()
    elif change == "truncated":
        picture.write_bytes(picture.read_bytes()[:40])
    elif change == "model":
        model_folder = tmp_path
    elif change == "batch_size":
        more = ["--batch_size", "0"]
    assert main(options("mathverse", model_folder, data, tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err
    responses = tmp_path / "out" / "responses.jsonl"
    assert not responses.exists() or not responses.read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge", "math_verify"], "is for MathVerse"),
        (["--reference", "nowhere.json"], "There is no file nowhere.json"),
    ],
)
def test_options_of_the_last_steps_are_checked_first(more, message, tmp_path, capsys):
    data = write_data(tmp_path / "data", "wemath")
    assert main(options("wemath", "no model is loaded", data, tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def make_prompts(folder):
    prompts = []
    for index in range(7):
        Image.new("RGB", (28 + 28 * (index % 3), 28), (30 * index, 90, 200)).save(folder / f"{index}.png")
        images = [] if index % 3 == 2 else [str(folder / f"{index}.png")]
        prompts.append(Prompt("How long is it? " * (1 + 5 * (index % 4)) + str(index), images))
    return prompts


def test_pickled_weights_are_not_loaded(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "pickled")
    tensors = load_file(tmp_path / "pickled" / "model.safetensors")
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has only pickled weights"):
        load_for_generation(str(tmp_path / "pickled"))


def test_batches_give_the_answers_of_one_at_a_time(model_folder, tmp_path):
    prompts = make_prompts(tmp_path)
    model, processor = load_for_generation(str(model_folder))
    replies = {}
    for batch_size in (1, 4):
        generator = Generator(model, processor, batch_size, max_new_tokens=10)
        replies[batch_size] = sorted(
            (position, reply)
            for batch in generator.batches(prompts)
            for position, reply in zip(batch, generator.answer([prompts[each] for each in batch]), strict=True)
        )
    assert replies[1] == replies[4]
    assert [position for position, _ in replies[4]] == list(range(7))
    assert len({reply for _, reply in replies[4]}) > 3


def test_batches_are_sorted_and_do_not_mix_pictures_with_text(model_folder, tmp_path):
    prompts = make_prompts(tmp_path)
    generator = Generator(*load_for_generation(str(model_folder)), batch_size=2)
    batches = generator.batches(prompts)
    assert sorted(sum(batches, [])) == list(range(7))
    for batch in batches:
        assert len({bool(prompts[position].images) for position in batch}) == 1
    with_pictures = [position for batch in batches for position in batch if prompts[position].images]
    lengths = [len(prompts[position].text) for position in with_pictures]
    assert lengths == sorted(lengths, reverse=True)


def test_checkpoint_sampling_defaults_are_not_used(model_folder):
    model, processor = load_for_generation(str(model_folder))
    model.generation_config.update(do_sample=True, temperature=0.7, repetition_penalty=1.3, eos_token_id=[5])
    Generator(model, processor, max_new_tokens=3)
    config = model.generation_config
    assert not config.do_sample and config.repetition_penalty in (None, 1.0)
    assert config.eos_token_id == sorted([5, processor.tokenizer.eos_token_id])


@pytest.mark.parametrize(
    "values", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"max_new_tokens": 0}]
)
def test_generator_checks_its_options(values, model_folder):
    model, processor = load_for_generation(str(model_folder))
    with pytest.raises(EvaluationError, match=next(iter(values))):
        Generator(model, processor, **values)


def test_sampling_follows_the_seed(model_folder, tmp_path):
    data = write_data(tmp_path / "data", "mathverse", [verse_item(1), verse_item(2)])
    replies = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        more = ["--temperature", "1.5", "--seed", seed]
        assert main(options("mathverse", model_folder, data, tmp_path / name, *more)) == 0
        replies.append(result(tmp_path / name)[1])
    assert replies[0] == replies[1] != replies[2]


# The command line, which says who answers and waits before every batch, so that there is time to kill it.
SCRIPT = """
import os, sys, time
from puma_trl.evaluation.__main__ import main
from puma_trl.evaluation.local_model import Generator

answer = Generator.answer

def answer_slowly(self, prompts):
    print(f"rank {os.environ.get('RANK', 0)} answers", flush=True)
    time.sleep(float(os.environ["PAUSE"]))
    return answer(self, prompts)

Generator.answer = answer_slowly
sys.exit(main())
"""


def launch(folder, *arguments, processes=1, pause=0.0):
    """Runs the command line in a process of its own, or under `accelerate launch` in several."""
    command = [sys.executable]
    if processes > 1:
        # `--cpu` would start one process
        command += [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
        ]
        command += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "PAUSE": str(pause)}
    return subprocess.Popen(
        [*command, str(script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(process, seconds=300):
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    return output


def kill_once_answered(process, folder, rows):
    """Kills the process and its children with SIGKILL as soon as that many rows are written."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if sum(path.read_bytes().count(b"\n") for path in folder.glob("responses*.jsonl")) >= rows:
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_run_is_resumed_with_identical_metrics(model_folder, tmp_path):
    data = write_data(tmp_path / "data", "mathvista")
    more = ["--batch_size", "1"]
    assert main(options("mathvista", model_folder, data, tmp_path / "whole", *more)) == 0
    arguments = options("mathvista", model_folder, data, tmp_path / "killed", *more)
    kill_once_answered(launch(tmp_path, *arguments, pause=1.0), tmp_path / "killed", 2)
    assert not (tmp_path / "killed" / "metrics.json").exists()
    wait(launch(tmp_path, *arguments))
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


@pytest.mark.distributed
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_two_processes_give_the_same_metrics(benchmark, model_folder, tmp_path):
    data = write_data(tmp_path / "data", benchmark)
    assert main(options(benchmark, model_folder, data, tmp_path / "one")) == 0
    output = wait(launch(tmp_path, *options(benchmark, model_folder, data, tmp_path / "two"), processes=2))
    assert all(f"rank {rank} answers" in output for rank in range(2))
    assert result(tmp_path / "two") == result(tmp_path / "one"), output
    assert not list((tmp_path / "two").glob("*.rank*"))


@pytest.mark.distributed
def test_two_killed_processes_are_resumed_by_one(model_folder, tmp_path):
    data = write_data(tmp_path / "data", "mathvista")
    more = ["--batch_size", "1"]
    assert main(options("mathvista", model_folder, data, tmp_path / "whole", *more)) == 0
    arguments = options("mathvista", model_folder, data, tmp_path / "killed", *more)
    kill_once_answered(launch(tmp_path, *arguments, processes=2, pause=1.0), tmp_path / "killed", 3)
    assert len(list((tmp_path / "killed").glob("*.rank*"))) == 2
    assert main(arguments) == 0
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("*.rank*"))


@pytest.fixture
def served(model_folder):
    """`transformers serve` with the tiny model on this machine; gives the address."""
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        pytest.skip("transformers serve needs fastapi and uvicorn (transformers[serving])")
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    script = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    place = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", script, "serve", str(model_folder), *place], env=environment)
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_run_through_transformers_serve(served, model_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # a server of one's own needs none
    data = write_data(tmp_path / "data", "mathverse")
    judge = ["--judge", "openai", "--llm", str(model_folder), "--llm_base_url", served, "--judge_max_tokens", "16"]
    server = ["--backend", "openai", "--base_url", served, "--concurrency", "2"]
    assert main(options("mathverse", model_folder, data, tmp_path / "served", *server, *judge)) == 3
    assert main(options("mathverse", model_folder, data, tmp_path / "local")) == 0
    metrics, responses, _ = result(tmp_path / "served")
    assert responses == result(tmp_path / "local")[1]
    assert metrics["extraction"] == "official" and metrics["settings"]["extraction_llm"] == str(model_folder)
    assert metrics["answered"] == len(make_items("mathverse"))
    # a tiny random judge says nothing that counts: every item is judged, every judgement fails, none is right
    settings = metrics["judge_settings"]
    assert settings["judged"] == settings["failed"] > 0 and metrics["correct"] == 0
