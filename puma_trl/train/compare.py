"""What a run is, as its checkpoints keep it, and what of that has changed when one of them is resumed from."""

import hashlib
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from ..config import PumaKLConfig
from ..errors import CheckpointError
from ..models.adapters import below_adapters
from ..on_policy_config import OF_SAMPLING
from ..record.fingerprint import fingerprint


# In the optimizer and scheduler of a checkpoint, which go on with the old values whatever the recipe says
HELD = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "learning_rate",
    "optim",
    "optim_args",
    "optim_target_modules",
    "part_learning_rates",
    "weight_decay",
)
# What the weights and states of a checkpoint are of
FIXED = ("teacher", "trainable_parts")
# The order of the rows
ORDER = (
    "accelerator_config",
    "data_seed",
    "dataloader_drop_last",
    "length_column_name",
    "seed",
    "train_sampling_strategy",
)
# What takes effect from the checkpoint on. Where one of these changes the rows, their fingerprint tells.
LEARNED = (
    *OF_SAMPLING,
    "alpha_kl",
    "assistant_only_loss",
    "average_tokens_across_devices",
    "bf16",
    "chat_template_path",
    "columns",
    "completion_only_loss",
    "dataset_text_field",
    "eos_token",
    "fp16",
    "ignore_data_skip",
    "label_names",
    "label_smoothing_factor",
    "lambda_kl",
    "loss_type",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_length",
    "max_pixels",
    "max_steps",
    "min_pixels",
    "neftune_noise_alpha",
    "num_train_epochs",
    "packing",
    "packing_strategy",
    "padding_free",
    "router_aux_loss_coef",
    "shuffle_dataset",
    "special_tokens",
    "standardize_logits",
    "teacher_sync_steps",
    "teacher_update_rate",
    "temp_kl",
    "tf32",
    "truncation_mode",
    "use_kl",
    "use_vllm",
    "warmup_steps",
)
# Takes effect where a share of the micro-batches is on-policy: of as many rows in a step it decides which these are
OF_MICRO_BATCHES = "gradient_accumulation_steps"
# Of adapters: where they are, which is told of the model, and how they are used at the moment
NOT_OF_ADAPTERS = ("base_model_name_or_path", "inference_mode", "revision", "peft_version")
SAMPLES, SAMPLE_BYTES = 16, 65_536


def describe_settings(args: PumaKLConfig) -> dict[str, Any]:
    """Returns the settings that a resumed run is compared by, as JSON has them."""
    names = [*HELD, *FIXED, *ORDER, *LEARNED]
    if 0 < args.on_policy_share < 1:
        names.append(OF_MICRO_BATCHES)
    return _as_json({name: getattr(args, name) for name in names})


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_plain, sort_keys=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.to_dict() if hasattr(value, "to_dict") else str(value)


def describe_weights(model: PreTrainedModel, teacher: PreTrainedModel | None = None) -> dict[str, Any]:
    """
    Returns what the weights of a checkpoint are of: `model`, `teacher`, `adapters` and `trained`, a digest of the
    names that train.
    """
    is_peft = is_peft_model(model)
    names = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    adapters = _as_json(model.peft_config["default"].to_dict()) if is_peft else None
    return {
        "model": _describe_model(below_adapters(model)),
        "teacher": None if teacher is None else _describe_model(teacher),
        "adapters": adapters and {name: adapters[name] for name in adapters if name not in NOT_OF_ADAPTERS},
        "trained": hashlib.sha256("\n".join(names).encode()).hexdigest(),
    }


def _describe_model(model: PreTrainedModel) -> dict[str, Any]:
    quantization = getattr(model.config, "quantization_config", None)
    return {
        "class": type(model).__name__,
        "name": model.config._name_or_path,
        "digest": _digest_model(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": _as_json(quantization) if getattr(model, "is_quantized", False) else None,
    }


def _digest_model(model: PreTrainedModel) -> str | None:
    """Tells models apart, also two in the same folder one after the other, and knows one that was moved."""
    folder = Path(model.config._name_or_path)
    if not model.config._name_or_path or not folder.is_dir():  # of the Hub, or made in Python
        return getattr(model.config, "_commit_hash", None)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            for position in range(SAMPLES):
                file.seek(position * size // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def describe_rows(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Returns split → number of rows and fingerprint, of the datasets that have a length."""
    evaluation = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    splits = {"train": trainer.train_dataset}
    splits |= {f"eval_{name}" if name else "eval": rows for name, rows in evaluation.items()}
    return {
        split: {"rows": len(rows), "fingerprint": fingerprint(rows)}
        for split, rows in splits.items()
        if isinstance(rows, Dataset)
    }


def compare_settings(checkpoint: str | Path, saved: dict[str, Any], args: PumaKLConfig) -> dict[str, list[Any]]:
    """
    Compares the settings of a run with those of the checkpoint that it resumes from.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint.
        saved (`dict[str, Any]`):
            What [`describe_settings`] gave for its run.
        args ([`PumaKLConfig`]):
            The settings now; with `allow_changed_data`, rows may come in another order.

    Returns:
        `dict[str, list]`: setting → old and new value, of those that differ and take effect.

    Raises:
        CheckpointError: if a setting differs that would not take effect, or that would change the order of the rows.
    """
    now = describe_settings(args)
    changed = find_changes(saved, now)
    kinds = [
        (
            HELD,
            "its optimizer and scheduler would go on with the old value, and the new one be recorded but not used",
        ),
        (FIXED, "its weights and states are of the old value"),
    ]
    if not args.allow_changed_data:
        reason = "rows would come in another order, so that some were read twice and others never"
        kinds.append((ORDER, f"{reason}, unless you accept that with `allow_changed_data: true`"))
    for names, reason in kinds:
        differing = [name for name in names if name in changed]
        if differing:
            raise CheckpointError(
                f"{checkpoint} is of a run with other settings ({word_changes(changed, differing)}): {reason}. Set "
                f"{'it' if len(differing) == 1 else 'them'} back, or start a new run from the model with "
                "`model_name_or_path`."
            )
    return changed


def find_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Returns setting → old and new value, of those that are on both sides and differ."""
    return {name: [before[name], now[name]] for name in now if name in before and before[name] != now[name]}


def word_changes(changed: dict[str, list[Any]], names: Iterable[str] | None = None) -> str:
    """Returns `name: old → new` of the settings that have changed, or of some of them."""
    return ", ".join(
        f"`{name}: {_shown(changed[name][0])} → {_shown(changed[name][1])}`" for name in names or sorted(changed)
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compare_weights(checkpoint: str | Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """
    Makes sure that a checkpoint's weights belong to the model that is to be trained.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint.
        saved (`dict[str, Any]`), now (`dict[str, Any]`):
            What [`describe_weights`] gave then, and gives now; each with `engine`.

    Raises:
        CheckpointError: if it is another model, has other adapters, trains other parameters, or under another engine.
    """
    what = None
    old, new = saved["model"], now["model"]
    if (other := _word_other(old, new)) is not None:
        what = f"from the model {other}"
    elif saved["teacher"] is not None and (other := _word_other(saved["teacher"], now["teacher"])) is not None:
        what = f"with the teacher {other}"
    elif saved["adapters"] != now["adapters"]:
        what = f"with {_word_adapters(saved['adapters'], now['adapters'])}."
    else:
        models = {"": (old, new)}
        if saved["teacher"] is not None:
            models[" of the teacher"] = saved["teacher"], now["teacher"]
        differing = {
            f"{name}{whose}": [before[name], after[name]]
            for whose, (before, after) in models.items()
            for name in ("dtype", "quantization")
            if before[name] != after[name]
        }
        if saved["engine"] != now["engine"]:
            differing["engine"] = [saved["engine"], now["engine"]]
        if differing:
            what = f"with other weights ({word_changes(differing)})."
        elif saved["trained"] != now["trained"]:
            what = "in which other parameters were trained."
    if what is not None:
        raise CheckpointError(
            f"{checkpoint} is of a run {what} What it has saved does not fit this one: go back to the settings of "
            "that run, or start a new one in another `output_dir`."
        )


def _word_other(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Returns that a model is another one, in words, or `None` where it is the same."""
    known = old["digest"] is not None and new["digest"] is not None
    if old["class"] == new["class"] and (old["digest"] == new["digest"] if known else old["name"] == new["name"]):
        return None
    again = " It has changed since." if old["name"] == new["name"] else ""
    return f"{old['name']} ({old['class']}), and not {new['name']} ({new['class']}).{again}"


def _word_adapters(old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
    if old is None or new is None:
        return "adapters, which this one has not" if new is None else "no adapters, which this one has"
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return f"other adapters ({word_changes({name: [old.get(name), new.get(name)] for name in names})})"


def compare_rows(
    checkpoint: str | Path,
    saved: dict[str, dict[str, Any]],
    now: dict[str, dict[str, Any]],
    changed: dict[str, list[Any]],
    is_allowed: bool,
) -> dict[str, list[Any]]:
    """
    Compares the data of a run with that of the checkpoint that it resumes from.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint.
        saved (`dict[str, dict]`), now (`dict[str, dict]`):
            What [`describe_rows`] gave then, and gives now.
        changed (`dict[str, list]`):
            Settings that differ, which may be why.
        is_allowed (`bool`):
            Whether changed data is gone on with.

    Returns:
        `dict[str, list]`: split → what it was and is, of those that differ; `None` where there is no such split.

    Raises:
        CheckpointError: if data has changed and that is not allowed.
    """
    differing = {
        split: [saved.get(split), now.get(split)]
        for split in sorted(saved.keys() | now.keys())
        if saved.get(split) != now.get(split)
    }
    for split, (old, new) in differing.items():
        if old is None or new is None or is_allowed:  # an evaluation more or less changes nothing that is learned
            continue
        if old["rows"] != new["rows"]:
            what = f"had {old['rows']:,} rows and now has {new['rows']:,}"
        else:
            what = f"has as many rows ({new['rows']:,}), but other texts or pictures, or in another order"
        settings = f" Settings that have changed: {word_changes(changed)}." if changed else ""
        raise CheckpointError(
            f"The {split} data is not that of {checkpoint}: it {what}. Going on, some rows would be read twice and "
            f"others never.{settings} Restore the data, start a new run, or set `allow_changed_data: true` to go on "
            "with it and have that recorded."
        )
    return differing
