"""Every recipe and every accelerate configuration that is shipped, through the parsers that will read them."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, DistributedType
from transformers import SchedulerType
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.training_args import OptimizerNames

from puma_trl.models.parts import PARTS
from puma_trl.recipe import parse_recipe


ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in ROOT.glob("recipes/**/stage*.yaml") if not path.is_symlink())
ENGINES = sorted(ROOT.glob("accelerate_configs/*.yaml"))
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--tf32", "false"]


def name(path):
    return str(path.relative_to(ROOT))


def read_header(path):
    """Returns the comment on top of a recipe, in one line."""
    lines = path.read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[: lines.index("")])


def test_recipes_are_found():
    """The paper's recipes, and for each family a folder for each way to train, all of three stages."""
    kinds = [f"qwen2_vl/{kind}" for kind in ("full", "lora", "qlora")]
    kinds += [f"{family}/full" for family in ("qwen2_5_vl", "math_puma_qwen2", "deepseek_vl_hybrid")]
    for folder in (".", "mini", *kinds):
        names = [path.name for path in sorted((ROOT / "recipes" / folder).glob("stage*.yaml"))]
        assert names == ["stage1.yaml", "stage2.yaml", "stage3.yaml"], folder


def test_papers_recipes_are_those_of_qwen2_vl():
    """They are links, so that there is one copy."""
    for path in (ROOT / "recipes" / "qwen2_vl" / "full").iterdir():
        assert path.is_symlink() and path.resolve() == ROOT / "recipes" / path.name


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe(path):
    """It parses, and what only a GPU can check are names that the installed libraries know."""
    script_args, args, model_args, _ = parse_recipe([str(path), *ON_CPU])
    values = yaml.safe_load(path.read_text())
    # what the file says is what the run gets
    for key, value in values.items():
        owners = [owner for owner in (script_args, args, model_args) if hasattr(owner, key)]
        assert len(owners) == 1, key
        if type(value) in (int, float) and key != "gradient_checkpointing":
            assert getattr(owners[0], key) == value, key
    assert values.get("attn_implementation", "eager") in {"eager", *ALL_ATTENTION_FUNCTIONS.keys()}
    assert values.get("dtype") in ("bfloat16", "float32")
    assert values.get("optim", "adamw_torch") in {item.value for item in OptimizerNames}
    assert values.get("lr_scheduler_type", "linear") in {item.value for item in SchedulerType}
    assert set(args.trainable_parts) <= {*PARTS, "all"}
    assert args.use_kl == (path.name == "stage2.yaml")
    # bf16 is asked of a GPU, fp32 of a CPU, and both places say the same
    assert bool(values.get("bf16")) == (values["dtype"] == "bfloat16") != bool(values.get("use_cpu"))
    if model_args.use_peft:
        assert "lm_head" not in (model_args.lora_target_modules or ())


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_global_batch_size_of_the_header(path):
    _, args, _, _ = parse_recipe([str(path), *ON_CPU])
    header = read_header(path)
    numbers = re.search(r"Global batch size: (\d+) × (\d+) × (\d+) = (\d+)\.", header).groups()
    processes, batch, accumulation, total = map(int, numbers)
    assert (batch, accumulation) == (args.per_device_train_batch_size, args.gradient_accumulation_steps)
    assert batch * accumulation * processes == total
    engine = re.search(r"accelerate_configs/\w+\.yaml", header)[0]
    assert yaml.safe_load((ROOT / engine).read_text())["num_processes"] == processes
    # and the output stands where the recipe stands; only the study has a folder of its own
    place = path.relative_to(ROOT / "recipes").with_suffix("").as_posix().replace("mini/study/", "study/")
    assert args.output_dir == f"outputs/{place}"


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_stages_follow_each_other(kind):
    """A stage starts from what the one before it leaves, merged where it leaves adapters."""
    folder = ROOT / "recipes" / "qwen2_vl" / kind
    outputs = []
    for number in (1, 2, 3):
        _, args, model_args, _ = parse_recipe([str(folder / f"stage{number}.yaml"), *ON_CPU])
        if outputs:
            assert model_args.model_name_or_path == outputs[-1]
        outputs.append(args.output_dir + ("" if kind == "full" else "-merged"))
        assert model_args.use_peft == (kind != "full") and model_args.load_in_4bit == (kind == "qlora")
        if kind != "full":
            command = f"python -m puma_trl.merge {args.output_dir} {outputs[-1]}"
            assert command in read_header(folder / f"stage{number}.yaml")


@pytest.mark.parametrize("path", ENGINES, ids=name)
def test_accelerate_configuration(path):
    """accelerate's own class takes it: unknown keys are errors there."""
    config = load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert config.to_dict().items() >= {
        (key, value) for key, value in values.items() if not isinstance(value, dict | list)
    } - {("distributed_type", values["distributed_type"])}
    assert config.distributed_type == DistributedType(values["distributed_type"])
    assert config.num_processes == values["num_processes"] and config.num_processes % config.num_machines == 0
    assert config.mixed_precision == "no"  # the recipe decides; `bf16: false` under a file that says bf16 is an error
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [path for path in ENGINES if "zero" in path.name], ids=name)
def test_deepspeed_stage(path, monkeypatch):
    """The stage in the file's name is the one that DeepSpeed is given."""
    settings = load_config_from_file(str(path)).deepspeed_config
    stage = int(re.search(r"zero(\d)", path.name)[1])
    assert settings["zero_stage"] == stage
    plugin = DeepSpeedPlugin(
        zero_stage=settings["zero_stage"],
        offload_optimizer_device=settings["offload_optimizer_device"],
        offload_param_device=settings["offload_param_device"],
    )
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage
    device = "cpu" if "offload" in path.name else "none"
    assert zero["offload_optimizer"]["device"] == device
    # sharded weights are gathered for saving
    assert settings.get("zero3_save_16bit_model", False) == (stage == 3)
