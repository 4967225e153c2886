"""
The model card, and pushing to the Hub.

```bash
puma-trl push outputs/stage2
puma-trl push outputs/stage2 --repo_id me/math-puma-stage2 --private
```

pushes a model that a run has saved, with its card, processor and curves: later, or after a push that failed.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import PumaKLConfig
from ..data.files import DROPPED
from ..errors import HubError
from ..models.families.math_puma_qwen2 import MathPumaQwen2ForConditionalGeneration
from ..redact import hide_secrets
from .hub_calls import LOGIN_SECONDS, describe_failure, push_within, within
from .intervals import wilson
from .provenance import RECIPE, SIGNS, describe_base, describe_software, name_stage, read_provenance


TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
CURVES = "curves.png"
TAGS = ("trl", "math-puma", "puma")
# rows of the data may be private
NOT_PUSHED = ("_*", f"{PREFIX_CHECKPOINT_DIR}-*", DROPPED)

CITATION = """\
@article{zhuang2024mathpuma,
    title        = {{Math-PUMA: Progressive Upward Multimodal Alignment to Enhance Mathematical Reasoning}},
    author       = {Wenwen Zhuang and Xin Huang and Xiantao Zhang and Jin Zeng},
    year         = 2024,
    eprint       = {arXiv:2408.08640},
}"""
PAPER = "[Math-PUMA](https://huggingface.co/papers/2408.08640)"
PAIRS = (
    f"Trained with the second stage of {PAPER}, which teaches a multimodal model to read the picture of a problem as "
    "well as its words. Every problem is read twice: the model's own next-token distribution on the form in words "
    "teaches the form in the picture, through forward and reverse KL beside the cross-entropy on the answer."
)
SFT = (
    f"Trained with stage {{}} of {PAPER}, which brings multimodal models to mathematics in three stages: text, "
    "alignment of picture and words, instruction tuning. This stage is supervised fine-tuning, the cross-entropy "
    "taken on the answers alone."
)
BENCHMARKS = {"mathverse": "MathVerse", "mathvista": "MathVista", "wemath": "We-Math"}


def push_command(folder: str | Path) -> str:
    """Returns the command that pushes the model in `folder`."""
    return f"puma-trl push {folder}"


def check_login(args: PumaKLConfig) -> None:
    """
    Makes sure, before anything is trained, that the Hub will take the model; creates the repository.

    Args:
        args ([`PumaKLConfig`]):
            `hub_model_id` becomes the full id of the repository.

    Raises:
        HubError: if nobody is logged in, the token is not valid or may not write, the repository is there with another
            visibility, or the Hub cannot be reached.
    """
    if not args.push_to_hub or args.process_index != 0:
        return
    instead = f"Or set `push_to_hub: false` and push when the run is over: `{push_command(args.output_dir)}`."
    api = HfApi()
    name = args.hub_model_id or Path(args.output_dir).absolute().name

    def log_in() -> str:
        api.whoami()
        return _make_repository(api, name, args.hub_private_repo, args.hub_revision).repo_id

    try:
        args.hub_model_id = within(LOGIN_SECONDS, log_in)
    except HubError as error:
        raise HubError(f"{error} {instead}") from error
    except LocalTokenNotFoundError as error:
        raise HubError(
            f"`push_to_hub: true`, but nobody is logged in to the Hub. Run `hf auth login`, or set HF_TOKEN. {instead}"
        ) from error
    except Exception as error:  # whatever goes wrong here would go wrong after the training too
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            reason = (
                "The Hub does not accept the token (401). Log in again with `hf auth login`, or set another HF_TOKEN."
            )
        elif status == 403:
            reason = (
                f"The token may not write to `{name}` (403). Give it write access, or choose another `hub_model_id`."
            )
        else:
            reason = f"`push_to_hub: true`, but the Hub cannot be used {describe_failure(api, error)}."
        raise HubError(f"{reason} {instead}") from error


def _make_repository(api: HfApi, name: str, private: bool | None, revision: str | None) -> RepoUrl:
    """Makes sure that there is such a repository, of that visibility and with that branch."""
    repository = api.create_repo(name, private=private, exist_ok=True)
    if private is not None and bool(api.repo_info(repository.repo_id).private) != private:
        raise HubError(
            f"{repository.repo_id} is {'public' if private else 'private'}, but `hub_private_repo: "
            f"{str(private).lower()}`. Change that in its settings on the Hub, or choose another `hub_model_id`."
        )
    if revision is not None:
        api.create_branch(repository.repo_id, branch=revision, exist_ok=True)
    return repository


def push(folder: str | Path, repo_id: str | None = None, private: bool | None = None) -> str:
    """
    Pushes what a run has saved: the model, its processor, card and curves; not its checkpoints.

    Args:
        folder (`str` or `Path`):
            The output folder of a run, or any folder with a model.
        repo_id (`str`, *optional*):
            Repository to push to. Defaults to `hub_model_id` of the folder's recipe, or the folder's name.
        private (`bool`, *optional*):
            Visibility of the repository. Defaults to `hub_private_repo` of the recipe.

    Returns:
        `str`: address of the repository.

    Raises:
        HubError: if the folder holds no model, or the push fails.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise HubError(
            f"{folder} holds no model: there is neither a config.json nor an adapter_config.json. Name the output "
            "folder of a run."
        )
    settings = _read_recipe(folder / RECIPE)
    repo_id = repo_id or settings.get("hub_model_id") or folder.absolute().name
    private = settings.get("hub_private_repo") if private is None else private
    revision = settings.get("hub_revision")
    api = HfApi()

    def upload() -> str:
        validate_repo_id(repo_id)
        repository = _make_repository(api, repo_id, private, revision)
        facts = read_provenance(folder)
        if facts is not None:  # with figures that were not there yet when the run ended
            write_card(folder, facts, repository.repo_id)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message="Push model, processor, card and curves",
            ignore_patterns=list(NOT_PUSHED),
            revision=revision,
        )
        return str(repository)

    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        return push_within(size, upload)
    except Exception as error:  # of the connection, the server or the client: the model is safe on the disk
        raise HubError(f"{folder} could not be pushed to the Hub {describe_failure(api, error)}") from error


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())
        raise HubError(f"{path} is not valid YAML: {words}. Repair it, or delete it.") from error
    if not isinstance(values, dict):
        raise HubError(f"{path} is no mapping of keys to values. Repair it, or delete it.")
    return values


def push_saved(folder: str | Path, repo_id: str | None = None, private: bool | None = None) -> None:
    """
    Pushes what has just been saved (see [`push`]), and prints where.

    Raises:
        HubError: if the push fails, with the command that pushes later.
    """
    try:
        print(f"Pushed to {push(folder, repo_id, private)}.")
    except HubError as error:
        command = (
            push_command(folder) + (f" --repo_id {repo_id}" if repo_id else "") + (" --private" if private else "")
        )
        raise HubError(f"{error} The model is saved in {folder}. This pushes it: {command}") from error


def write_card(
    folder: str | Path,
    facts: dict[str, Any],
    repo_id: str | None = None,
    tags: Iterable[str] = (),
    model_name: str | None = None,
) -> None:
    """
    Writes the model card, `README.md`.

    Args:
        folder (`str` or `Path`):
            Folder of the model; `curves.png` and the `metrics.json` of an evaluation in it become part of the card.
        facts (`dict[str, Any]`):
            What `provenance.json` holds (see [`describe_run`]); `data`, `packages` and the signs of collapse may be
            missing.
        repo_id (`str`, *optional*):
            Repository for the quick start. Defaults to the folder, from which the model loads before a push.
        tags (`Iterable[str]`, *optional*):
            Tags besides our own.
        model_name (`str`, *optional*):
            The card's title. Defaults to the last part of the repository or folder.
    """
    folder = Path(folder)
    facts = hide_secrets(facts)
    model, method, training = facts["model"], facts["method"], facts["training"]
    adapters, merged = facts.get("adapters", {}), facts.get("merged_adapters", {})
    data = facts.get("data", {})
    evaluation, notes = _read_metrics(folder)
    repo_id = repo_id or str(folder)
    number, stage = name_stage(method["use_kl"], method["trainable_parts"])
    sources = [source for split in data.values() for source in split["sources"]]
    card = ModelCard.from_template(
        card_data=ModelCardData(
            base_model=model["base_model"],
            datasets=list(dict.fromkeys(name for name in sources if not os.path.exists(name))) or None,
            library_name="peft" if adapters else "transformers",
            license=model.get("license"),
            license_name=model.get("license_name"),
            license_link=model.get("license_link"),
            model_name=model_name or repo_id.rstrip("/").split("/")[-1],
            pipeline_tag="image-text-to-text" if model["is_multimodal"] else "text-generation",
            tags=list(dict.fromkeys([*TAGS, *(["lora"] if adapters else []), *tags])),
        ),
        template_path=TEMPLATE,
        adapters=adapters,
        base_folder=os.path.basename((model["name_or_path"] or "").rstrip("/")),  # no more of a path of this machine
        bases=_as_list(model["base_model"]),
        citation=CITATION,
        curves=CURVES if (folder / CURVES).exists() else None,
        data=[(split, _describe_rows(rows)) for split, rows in data.items()],
        evaluation=evaluation,
        hyper_parameters=[
            (name, value)
            for group in (method, adapters, merged, training)
            for name, value in group.items()
            if value is not None
        ],
        is_multimodal=model["is_multimodal"],
        local_base=os.path.isdir(model["name_or_path"]),
        model_class=model["class"],
        needs_import=model["class"] == MathPumaQwen2ForConditionalGeneration.__name__,
        method=PAIRS if number == 2 else SFT.format(number),
        notes=notes,
        packages=(facts if "packages" in facts else describe_software())["packages"].items(),
        recipe=(folder / RECIPE).exists(),
        repo_id=repo_id,
        signs=facts.get(SIGNS, {}).values(),
        stage=f"{number}: {stage}",
        trained=", ".join(method["trainable_parts"] or ["what required a gradient"])
        + (" by adapters" if adapters else " by adapters, merged" if merged else ""),
    )
    card.save(folder / "README.md")


def write_parts_card(folder: str | Path, name: str, parts: dict[str, str]) -> None:
    """
    Writes the card of a model that was assembled and not yet trained, from which later stages take their base models.

    Args:
        folder (`str` or `Path`):
            Folder of the model.
        name (`str`):
            The card's title.
        parts (`dict[str, str]`):
            Part → folder or id on the Hub that it is from. The licence is that of the first.
    """
    facts = [describe_base(source) for source in parts.values()]
    bases = list(dict.fromkeys(base for each in facts for base in _as_list(each["base_model"])))
    terms = {key: facts[0].get(key) for key in ("license", "license_name", "license_link")}
    data = ModelCardData(base_model=bases or None, pipeline_tag="image-text-to-text", **terms)
    lines = [
        f"- {part}: {', '.join(_as_list(each['base_model'])) or 'not recorded'}"
        for part, each in zip(parts, facts, strict=True)
    ]
    text = f"# {name}\n\nAssembled of these parts, with an aligner that is not trained yet:\n\n" + "\n".join(lines)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(Path(folder) / "README.md")


def _as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def _describe_rows(rows: dict[str, Any]) -> str:
    sources = ", ".join(
        f"`{os.path.basename(source) if os.path.exists(source) else source}`" for source in rows["sources"]
    )
    dropped = f", {sum(rows['dropped'].values()):,} of {rows['rows_read']:,} dropped" if rows["dropped"] else ""
    return f"{rows['rows_kept']:,} rows" + (f" of {sources}" if sources else "") + dropped


def _describe_rate(rate: dict[str, Any]) -> tuple[str, str, str]:
    """Returns value, 95 % interval and count."""
    interval, count = wilson(rate["correct"], rate["total"]), f"{rate['correct']:,}/{rate['total']:,}"
    if interval is None:
        return "none", "", count
    return f"{rate['accuracy']:.2%}", f"{interval[0]:.1%} to {interval[1]:.1%}", count


def _read_metrics(folder: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns benchmark, metric, value, interval and count of every evaluation in the folder, and how to read them."""
    table, notes = [], []
    for path in sorted([*folder.glob("metrics*.json"), *folder.glob("*/metrics*.json")]):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        title = BENCHMARKS[metrics["benchmark"]]
        rates = {"accuracy": metrics} | metrics.get("problem_version", {})
        for name, rate in rates.items():
            table.append((title, name, *_describe_rate(rate)))
        for setting, dimensions in (metrics.get("four_dimensional") or {}).items():
            table.append((title, f"{setting} score", f"{dimensions['score']:.2%}", "", ""))
        llm = metrics["settings"].get("extraction_llm")
        notes.append(
            f"{title}: {metrics['answered']:,} of {metrics['items']:,} items answered; answers extracted by the "
            f"`{metrics['extraction']}` rule{f' and {llm}' if llm else ', without a language model'}, judged by "
            f"`{metrics['judge']}`." + (" **A partial run.**" if metrics["partial"] else "")
        )
    return table, notes
