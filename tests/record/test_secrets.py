"""A run that is given secrets wherever a user may put them writes and prints none of them."""

import json
import logging
import os
import signal

import datasets
import pytest
import yaml
from PIL import Image

from puma_trl import redact, run
from puma_trl.entry import run_command
from puma_trl.record.hub import push

from ..hub_server import TOKEN


OTHER = "hf_" + "othertoken" * 3
SECRETS = (TOKEN, OTHER, "url-secret", "proxy-secret", "plain-secret", "key-secret", "db-secret", "kwargs-secret")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a command changes in its process, and a recipe in its environment, is put back."""
    monkeypatch.setattr(redact, "_seen", set())
    environment, factory = dict(os.environ), logging.getLogRecordFactory()
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    os.environ.clear()
    os.environ.update(environment)
    logging.setLogRecordFactory(factory)
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.fixture
def folder(tmp_path, tiny_model, processor, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    Image.new("RGB", (56, 56)).save(tmp_path / "0.png")
    row = {"instruction": "Is it?", "output": "It is.", "instruction_2": "What?", "output_2": "It is."}
    rows = [row | {"image_url_2": "0.png"}] * 4 + [row | {"output": "", "output_2": ""}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.fixture
def train(folder, tmp_path_factory):
    """Returns a function that runs the script as a command, with keys changed, and gives its exit code."""
    path = tmp_path_factory.mktemp("given") / "recipe.yaml"

    def train(*flags, **changes):
        recipe = {
            "model_name_or_path": str(folder / "base"),
            "dataset_name": str(folder / "pairs.jsonl"),
            "output_dir": str(folder / "out"),
            "bad_rows": "drop",
            "bf16": False,
            "dataset_num_proc": 1,
            "dtype": "float32",
            "gradient_checkpointing": False,
            "max_steps": 1,
            "report_to": "none",
            "save_steps": 1,
            "trainable_parts": "aligner",
            "use_cpu": True,
        }
        path.write_text(yaml.safe_dump(recipe | changes))
        with pytest.raises(SystemExit) as ended:
            run_command(run.main, [str(path), *flags])
        return ended.value.code

    return train


def leaks(folder, text, repositories=()):
    """Returns where each secret is found: in files, in what was printed, in what the Hub was given."""
    contents = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {
        f"{name}/{path}": value for name, files in dict(repositories).items() for path, value in files.items()
    }
    contents["printed"] = text.encode()
    found = [
        (secret, name) for name, content in contents.items() for secret in SECRETS if secret.encode() in bytes(content)
    ]
    return found


def test_a_run_with_secrets_everywhere(train, server, folder, capfd, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-secret")
    monkeypatch.setenv("ALL_PROXY_OF_MINE", "http://me:proxy-secret@proxy:3128")
    environment = {
        "MY_CREDENTIALS": "plain-secret",
        "WANDB_API_KEY": "key-secret",
        "no_proxy": "127.0.0.1",
        "https_proxy": "http://me:proxy-secret@127.0.0.1:1",
        "DATABASE": "me:db-secret@db.example.org",
        "WANDB_NOTES": f"uses {OTHER}",
        "WANDB_MODE": "offline",
    }
    assert (
        train(
            push_to_hub=True,
            hub_private_repo=True,
            run_name=f"with {OTHER}",
            env=environment,
            gradient_checkpointing_kwargs={
                "token": "kwargs-secret",
                "proxies": {"https": "http://me:proxy-secret@proxy"},
            },
            liger_kernel_config={"storage_options": {"password": "plain-secret", "url": "s3://me:url-secret@host/x"}},
        )
        == 0
    )
    captured = capfd.readouterr()
    out = folder / "out"
    assert (out / "checkpoint-1" / "training_args.bin").is_file() and os.environ["MY_CREDENTIALS"] == "plain-secret"
    repository = server.repositories["me/out"]
    private = repository.pop("private")
    assert private and {"training_args.bin", "recipe.yaml", "provenance.json", "README.md"} <= repository.keys()
    assert leaks(folder, captured.out + captured.err, server.repositories) == []
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["run_name"] == "with <hidden>" and recipe["gradient_checkpointing_kwargs"]["token"] == "<hidden>"
    assert recipe["env"] == dict.fromkeys(environment, "<hidden>") | {"WANDB_MODE": "offline"}
    repository["private"] = True
    push(out)  # later, by the recipe
    del repository["private"]
    assert leaks(folder, "", server.repositories) == []


def test_errors_of_the_hub(train, server, folder, capfd):
    server.failures["/commit/"] = 403  # which sends the token back
    assert train(push_to_hub=True) == 2
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ") and "Bearer <hidden>" in captured.err
    assert leaks(folder, captured.out + captured.err, {}) == []


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        (["--hub_token", OTHER], {}),
        (["--hub-token", "plain-secret"], {}),
        ([f"--run_name={OTHER}"], {}),
        ([], {"hub_token": OTHER}),
        ([], {"dataset_name": "https://me:url-secret@127.0.0.1:1/pairs.jsonl"}),
        ([], {"model_name_or_path": "https://me:url-secret@127.0.0.1:1/model"}),
        ([], {"model_name_or_path": OTHER}),
        ([], {"image_root": "https://me:url-secret@127.0.0.1:1/pictures", "bad_rows": "error"}),
        ([], {"learning_rate": OTHER}),
        ([], {OTHER: 1}),
        ([], {"env": {"MY_TOKEN": ["plain-secret"]}}),
        ([], {"model_init_kwargs": {"token": "<hidden>"}}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refusals(train, folder, capfd, flags, changes):
    assert train(*flags, **changes) == 2
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert leaks(folder, captured.out + captured.err) == []
