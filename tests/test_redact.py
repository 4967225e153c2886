"""Secrets are found wherever they stand, and what only resembles them is left alone."""

import copy
import enum
import pickle

import pytest
import torch

from puma_trl import redact
from puma_trl.config import PumaKLConfig
from puma_trl.errors import ConfigError
from puma_trl.recipe import parse_recipe
from puma_trl.record.provenance import saved_recipe
from puma_trl.redact import HIDDEN, hide_secrets, is_secret_name, record_environment


TOKEN = "hf_" + "secretsecret" * 3


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch):
    monkeypatch.setattr(redact, "_seen", set())


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"a {TOKEN}.", TOKEN),
        ("key sk-proj-4x5y6z7A8B9C0dEfG", "sk-proj-4x5y6z7A8B9C0dEfG"),
        ("gho_16C7e42F292c6912E7", "gho_16C7e42F292c6912E7"),
        ("id AKIAIOSFODNN7EXAMPLE!", "AKIAIOSFODNN7EXAMPLE"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "MIIE"),
        ("Authorization: Bearer abcdef", "abcdef"),
        ("'authorization': 'Bearer abcdef'", "abcdef"),
        ("Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
        ("https://user:p@ss@host/x.jsonl", "p@ss"),
        ("socks5://user:@host", "user"),
        ("no regular file https:/user:SEKRET@host/t.jinja", "SEKRET"),
        ("https:///user:SEKRET@host/t.jinja", "SEKRET"),
        ("proxy me:pass@proxy:3128", "pass"),
        ("me:pass@proxy.example.org", "pass"),
        ("https://x/?X-Amz-Credential=ABCDE&X-Amz-Signature=12345", "12345"),
        ('{"token": "abc def"}', "abc def"),
        (r"{\"apiKey\": \"abc\"}", "abc"),
        ("password: hunter2", "hunter2"),
        ("optim_args=access_key=abc,eps=1", "abc"),
        ("hub token: abcdefghijklmnop", "abcdefghijklmnop"),
    ],
)
def test_texts(text, secret):
    hidden = hide_secrets(text)
    assert secret not in hidden and HIDDEN in hidden
    assert hide_secrets(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "special_tokens: error",
        "the token: <|image_pad|>",
        "eos_token='<|im_end|>'",
        "tokens: 12,345,678,901,234",
        "basic mathematics and geometry",
        "outputs/stage2/pairs.jsonl:17: missing image",
        "git@github.com:me/puma.git",
        "task-sk-learn",
        "http://127.0.0.1:8000/v1",
        "a@b.c",
        "hf_hub",
        "the secret of success",
    ],
)
def test_texts_without_secrets(text):
    assert hide_secrets(text) == text


def test_long_texts_are_read_once():
    """A search that starts again at every letter would take 10^10 steps."""
    for piece in (
        "a",
        "a:",
        "a-",
        "eyJ",
        "://",
        "://a:",
        "sk-",
        "bearer ",
        "x:y@",
        "token",
        "-----BEGIN PRIVATE KEY-----",
    ):
        hide_secrets(piece * (200_000 // len(piece)))


def test_names():
    for name in ("hub_token", "HF_TOKEN", "token", "apiKey", "X-Api-Key", "MY_CREDENTIALS", "proxy-password", "AUTH"):
        assert is_secret_name(name), name
    for name in ("eos_token", "pad_token", "special_tokens", "answer_tokens", "PWD", "key", "author", "tokenizer"):
        assert not is_secret_name(name), name


def test_values():
    class Mode(str, enum.Enum):
        FAST = "fast"

    values = {
        "model_init_kwargs": {"token": "abc", "trust": True},
        "list": [{"password": 1234}, (TOKEN, 5)],
        "credentials": {"user": "a", "id": [1, 2]},
        TOKEN: 1,
        "mode": Mode.FAST,
        "token": True,  # "the one that is logged in"
        "secret": None,
        "eos_token": "</s>",
    }
    before = copy.deepcopy(values)
    hidden = hide_secrets(values)
    assert hidden == {
        "model_init_kwargs": {"token": HIDDEN, "trust": True},
        "list": [{"password": HIDDEN}, (HIDDEN, 5)],
        "credentials": HIDDEN,
        HIDDEN: 1,
        "mode": "fast",
        "token": True,
        "secret": None,
        "eos_token": "</s>",
    }
    assert hidden["mode"] is Mode.FAST and values == before


def test_what_the_process_was_given_is_known_everywhere(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "plain words")
    monkeypatch.setenv("DB_PASSWORD", "short")
    assert hide_secrets("I got plain words, short ones") == "I got <hidden>, short ones"
    redact.remember_secrets({"a": [{"token": "other words"}], "b": "no words at all"})
    assert hide_secrets("other words, no words at all") == "<hidden>, no words at all"


def test_recorded_environment():
    values = {
        "OMP_NUM_THREADS": 2,
        "WANDB_MODE": "offline",
        "HF_HOME": "/data",
        "NCCL_DEBUG": "INFO",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "EMPTY": "",
    }
    hidden = {
        "HF_TOKEN": TOKEN,
        "WANDB_API_KEY": "abc",
        "WANDB_BASE_URL": "http://x",
        "HTTPS_PROXY": "http://me:pass@proxy:3128",
        "MY_CREDENTIALS": "abc",
        "MY_FLAG": 1,
        "WANDB_NAME": TOKEN,
        "HF_HUB_TOKEN": "abc",
    }
    assert record_environment(values | hidden) == values | dict.fromkeys(hidden, HIDDEN)


RECIPE = "model_name_or_path: me/base\ndataset_name: pairs.jsonl\nuse_cpu: true\nbf16: false\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    "flags",
    [
        ["--hub_token", "abc"],
        ["--hub-token=abc"],
        ["--run_name", TOKEN],
        [f"--dataset_name={TOKEN}"],
        ["--dataset_name", "https://me:pass@host/x.jsonl"],
        ["--model_init_kwargs", '{"token": "abc"}'],
    ],
    ids=lambda flags: flags[0],
)
def test_secrets_on_the_command_line(recipe, flags, capsys):
    with pytest.raises(ConfigError, match=r"A secret stands on the command line \(`--\w+.*hf auth login") as error:
        parse_recipe([str(recipe), "--hub_model_id", "me/x", *flags])
    assert "abc" not in str(error.value) and TOKEN not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_token_in_a_recipe(recipe):
    recipe.write_text(RECIPE + f"hub_token: {TOKEN}\n")
    with pytest.raises(ConfigError, match="`hub_token` stands in the recipe .*recipe.yaml.*hf auth login") as error:
        parse_recipe([str(recipe)])
    assert TOKEN not in str(error.value)
    recipe.write_text(RECIPE + "hub_token: null\neos_token: </s>\n")
    assert parse_recipe([str(recipe)])[1].eos_token == "</s>"


def test_saved_recipe_hides_secrets_and_is_refused_until_they_are_given(recipe, monkeypatch, tmp_path):
    given = (
        f"gradient_checkpointing_kwargs: {{token: {TOKEN}, revision: main}}\nrun_name: http://me:pass@host/pictures\n"
    )
    for name in ("MY_CREDENTIALS", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    recipe.write_text(RECIPE + given + "env: {MY_CREDENTIALS: abc, WANDB_MODE: offline}\n")
    saved = saved_recipe(parse_recipe([str(recipe), "--resume_from_checkpoint", "true"])[3])
    assert saved["gradient_checkpointing_kwargs"] == {"token": HIDDEN, "revision": "main"}
    assert saved["run_name"] == "http://<hidden>@host/pictures"
    assert saved["env"] == {"MY_CREDENTIALS": HIDDEN, "WANDB_MODE": "offline"}
    assert "resume_from_checkpoint" not in saved

    again = "gradient_checkpointing_kwargs: {token: <hidden>}\nrun_name: http://<hidden>@host/pictures\n"
    recipe.write_text(RECIPE + again)
    with pytest.raises(
        ConfigError, match="`gradient_checkpointing_kwargs`, `run_name`: <hidden> stands where .* Give the value"
    ):
        parse_recipe([str(recipe)])
    parse_recipe([str(recipe), "--gradient_checkpointing_kwargs", "{}", "--run_name", "mine"])  # given again

    recipe.write_text(RECIPE + "env: {MY_CREDENTIALS: <hidden>}\n")
    parse_recipe([str(recipe)])  # it stands in the environment still
    monkeypatch.delenv("MY_CREDENTIALS")
    with pytest.raises(ConfigError, match="`MY_CREDENTIALS`: <hidden> stands where"):
        parse_recipe([str(recipe)])


def test_settings_that_are_written_hold_no_secrets(tmp_path):
    kwargs = {"token": TOKEN, "revision": "main"}
    args = PumaKLConfig(str(tmp_path), hub_token=TOKEN, gradient_checkpointing_kwargs=kwargs, use_cpu=True, bf16=False)
    torch.save(args, tmp_path / "training_args.bin")
    assert TOKEN.encode() not in (tmp_path / "training_args.bin").read_bytes()
    loaded = pickle.loads(pickle.dumps(args))
    assert loaded.hub_token is None and loaded.gradient_checkpointing_kwargs == {"token": HIDDEN, "revision": "main"}
    assert loaded.learning_rate == args.learning_rate
    assert TOKEN not in args.to_json_string() and TOKEN not in str(args.to_dict())  # for trackers
    assert args.hub_token == TOKEN and args.gradient_checkpointing_kwargs == kwargs  # the run itself needs them
