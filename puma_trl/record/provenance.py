"""
Where a model comes from: `recipe.yaml`, which runs the stage again, and `provenance.json`, beside the model and in
every checkpoint.

`provenance.json` holds the settings of the method, the training and its data, the base model and its licence, the
versions of the packages and the git commit. Both files say `<hidden>` where a secret was given.
"""

import json
import os
import platform
import shutil
import subprocess
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from ..config import PumaKLConfig, rows_per_step
from ..data.policy import DataReport
from ..errors import CheckpointError
from ..files import whole_file
from ..models.adapters import below_adapters
from ..models.families import is_multimodal
from ..on_policy_config import OF_SAMPLING
from ..redact import hide_secrets, record_environment
from .fingerprint import fingerprint
from .hub_calls import within


RECIPE, PROVENANCE = "recipe.yaml", "provenance.json"
# The section of the signs of collapse that the watch over a training has told, name → what and when
SIGNS = "signs_of_collapse"
PACKAGES = (
    "puma_trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "huggingface_hub",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
CARD_SECONDS = 60.0  # for the card of a base model on the Hub, without which a run goes on
METHOD = (
    "use_kl",
    "alpha_kl",
    "lambda_kl",
    "temp_kl",
    "standardize_logits",
    "teacher",
    "teacher_model_name_or_path",
    "teacher_model_revision",
    "trainable_parts",
    "part_learning_rates",
)
TRAINING = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "num_train_epochs",
    "max_steps",
    "max_length",
    "max_grad_norm",
    "seed",
    "bf16",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
)
STAGES = ("text", "alignment on pairs (PUMA)", "instruction tuning")
ADAPTERS = ("peft_type", "r", "lora_alpha", "lora_dropout", "modules_to_save", "use_dora", "use_rslora")


def name_stage(use_kl: bool, trainable_parts: list[str] | None) -> tuple[int, str]:
    """Returns which of the three stages a run is, by its step and what it trains, and the name of that."""
    number = 2 if use_kl else 1 if trainable_parts == ["language_model"] else 3
    return number, STAGES[number - 1]


def saved_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """
    Returns the recipe that runs a stage again.

    Args:
        values (`dict[str, Any]`):
            The values that the run was given, as [`parse_recipe`] returns them.

    Returns:
        `dict[str, Any]`: Key → value, without `resume_from_checkpoint`. Secrets, and values of all but well-known
        environment variables, are `<hidden>`; a recipe with that is refused until the value is given again.
    """
    values = {name: value for name, value in values.items() if name != "resume_from_checkpoint"}
    if values.get("env"):
        values["env"] = record_environment(values["env"])
    return hide_secrets(values)


def describe_run(
    args: PumaKLConfig, model: PreTrainedModel, peft_config: PeftConfig | None = None
) -> dict[str, dict[str, Any]]:
    """
    Returns what the settings and the model tell of a run: `method`, `training`, `model` and, if there are any,
    `adapters` and `teacher`, another model.
    """
    name = model.config._name_or_path
    description = {
        "method": {key: getattr(args, key) for key in (*METHOD, *(OF_SAMPLING if args.on_policy_share else ()))},
        "training": {key: _plain(getattr(args, key)) for key in TRAINING} | {"global_batch_size": rows_per_step(args)},
        "model": {
            "class": type(model).__name__,
            "is_multimodal": is_multimodal(model.config),
            "name_or_path": name,
            **describe_base(name),
        },
    }
    if args.teacher == "model":
        description["teacher"] = {
            "name_or_path": args.teacher_model_name_or_path,
            "load_in_4bit": args.teacher_load_in_4bit,
            **describe_base(args.teacher_model_name_or_path),
        }
    if peft_config is not None:
        settings = peft_config.to_dict()
        adapters = {key: _plain(settings[key]) for key in ADAPTERS if key in settings}
        if getattr(model, "is_quantized", False):  # transformers sets it on quantised models only
            adapters["base_weights"] = str(model.quantization_method.value) + _bits(model.config.quantization_config)
        description["adapters"] = adapters
    return description


def describe_trainer(trainer: SFTTrainer, dataset_name: str | None = None) -> dict[str, Any]:
    """
    Returns what a trainer with a [`PumaKLConfig`] tells of a run, and of its data the number of rows, with the name if
    one is given.
    """
    adapters = trainer.model.peft_config["default"] if is_peft_model(trainer.model) else None
    facts = describe_run(trainer.args, below_adapters(trainer.model), adapters)
    if isinstance(trainer.train_dataset, Dataset):
        sources = [dataset_name] if dataset_name else []
        facts["data"] = {"train": {"sources": sources, "rows_kept": len(trainer.train_dataset), "dropped": {}}}
    return facts


def _bits(config: BitsAndBytesConfig) -> str:
    if not config.load_in_4bit:
        return ", 8 bits"
    return f", {config.bnb_4bit_quant_type}" + (", double quantisation" if config.bnb_4bit_use_double_quant else "")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@cache
def describe_base(name: str) -> dict[str, Any]:
    """
    Returns `base_model`, the id on the Hub that the model descends from (several for one that was assembled of
    parts), and its licence, as far as its card tells.

    Args:
        name (`str`):
            Folder or id of the model that training starts from; the card of a folder names its own base model.
    """
    if not name:  # a model made in Python
        return {"base_model": None}
    card = _read_card(name)
    facts = {key: card.get(key) for key in ("license", "license_name", "license_link") if card.get(key)}
    base = card.get("base_model") if os.path.isdir(name) else name
    return {"base_model": base[0] if isinstance(base, list) and len(base) == 1 else base} | facts


def _read_card(name: str) -> ModelCardData:
    path = Path(name) / "README.md"
    try:
        if not os.path.isdir(name):
            return within(CARD_SECONDS, lambda: ModelCard.load(name, ignore_metadata_errors=True).data)
        if path.exists():
            return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError):  # no such card, or the Hub does not answer: the licence is not known then
        pass
    return ModelCardData()


def describe_data(reports: dict[str, DataReport], datasets: dict[str, Dataset], names: dict[str, list[str]]) -> dict:
    """
    Returns split → sources, row counts, answer tokens and a fingerprint.

    Args:
        reports (`dict[str, DataReport]`):
            What [`load_data`] tells of each split.
        datasets (`dict[str, Dataset]`):
            The rows that it returned.
        names (`dict[str, list[str]]`):
            Split → files, folders or Hub datasets; a split that was held out has none of its own.
    """
    return {
        split: {
            "sources": names.get(split) or names["train"],
            "rows_read": report.rows_read,
            "rows_kept": report.rows_kept,
            "dropped": report.dropped,
            "answer_tokens": report.answer_tokens,
            "fingerprint": fingerprint(datasets[split]),
        }
        for split, report in reports.items()
    }


def describe_software() -> dict[str, Any]:
    """Returns `packages` with their versions, `python`, `cuda`, `platform`, and `git` if this is a working copy."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    software = {
        "packages": packages,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
    }
    root = Path(__file__).parents[2]
    if (root / ".git").exists() and shutil.which("git"):
        software["git"] = {
            "commit": _git(root, "rev-parse", "HEAD"),
            "changed_files": _git(root, "diff", "--name-only", "HEAD").splitlines(),
        }
    return software


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()


def save_provenance(folder: str | Path, recipe: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Writes both files, without secrets."""
    with whole_file(Path(folder) / RECIPE) as file:
        yaml.safe_dump(hide_secrets(recipe), file, sort_keys=True, allow_unicode=True)
    _write_provenance(folder, provenance)


def read_provenance(folder: str | Path) -> dict[str, Any] | None:
    """
    Returns what `provenance.json` holds, or `None` where there is none.

    Raises:
        CheckpointError: if the file is no JSON object.
    """
    path = Path(folder) / PROVENANCE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Restore it, or delete it.") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is no JSON object. Restore it, or delete it.")
    return facts


def update_provenance(folder: str | Path, facts: dict[str, dict[str, Any]]) -> None:
    """Changes facts in a folder's `provenance.json`, section → name → value, if the run script has written one."""
    if (written := read_provenance(folder)) is not None:
        for section, values in facts.items():
            written[section] = written.get(section, {}) | values
        _write_provenance(folder, written)


def _write_provenance(folder: str | Path, facts: dict[str, Any]) -> None:
    with whole_file(Path(folder) / PROVENANCE) as file:
        file.write(json.dumps(hide_secrets(facts), indent=2, ensure_ascii=False) + "\n")


class ProvenanceCallback(TrainerCallback):
    """Puts `recipe.yaml` and `provenance.json` of the output folder into every checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            for name in (RECIPE, PROVENANCE):
                shutil.copy(folder / name, folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / name)
