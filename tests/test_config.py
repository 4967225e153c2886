import pytest

from puma_trl.config import PumaKLConfig, parse_recipe


RECIPE = """
model_name_or_path: some/model
dataset_name: a.jsonl, b.jsonl
output_dir: {output_dir}
learning_rate: 1e-5
trainable_parts: aligner, vision_tower_low, vision_tower_high
bf16: false
use_cpu: true
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output_dir=tmp_path / "out"))
    return path


@pytest.mark.parametrize("form", ["positional", "flag", "flag="])
def test_recipe_forms(recipe, form):
    argv = {"positional": [str(recipe)], "flag": ["--config", str(recipe)], "flag=": [f"--config={recipe}"]}[form]
    script_args, training_args, model_args, path = parse_recipe(argv)
    assert path == str(recipe)
    assert model_args.model_name_or_path == "some/model"
    assert script_args.dataset_name == ["a.jsonl", "b.jsonl"]
    assert training_args.learning_rate == 1e-5  # YAML reads 1e-5 as a string
    assert training_args.trainable_parts == ["aligner", "vision_tower_low", "vision_tower_high"]
    assert (training_args.use_kl, training_args.alpha_kl, training_args.lambda_kl, training_args.temp_kl) == (
        True,
        0.5,
        0.1,
        1.0,
    )


def test_command_line_overrides_recipe(recipe):
    argv = [str(recipe), "--alpha_kl", "0.25", "--use_kl", "false", "--trainable_parts", "aligner,language_model"]
    _, training_args, _, _ = parse_recipe(argv)
    assert training_args.alpha_kl == 0.25
    assert training_args.use_kl is False
    assert training_args.trainable_parts == ["aligner", "language_model"]


def test_unknown_key_in_recipe(recipe):
    recipe.write_text(recipe.read_text() + "alpha_lk: 0.3\n")
    with pytest.raises(ValueError, match=r"Unknown key `alpha_lk` in the recipe .*Did you mean `alpha_kl`"):
        parse_recipe([str(recipe)])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [("--tempkl", "temp_kl"), ("--learning_rat=1", "learning_rate"), ("--lr=1", "learning_rate")],
)
def test_unknown_flag(recipe, flag, nearest):
    with pytest.raises(ValueError, match=rf"on the command line. Did you mean `{nearest}`"):
        parse_recipe([str(recipe), *flag.split("=")])


def test_unknown_key_like_no_other(recipe):
    with pytest.raises(ValueError, match=r"Unknown key `zzz` on the command line. `puma_trl/run.py --help` lists all"):
        parse_recipe([str(recipe), "--zzz", "1"])


def test_part_learning_rates(recipe):
    recipe.write_text(recipe.read_text() + "part_learning_rates: {aligner: 1e-4}\n")  # text in YAML
    assert parse_recipe([str(recipe)])[1].part_learning_rates == {"aligner": 1e-4}
    argv = [str(recipe), "--part_learning_rates", '{"vision_tower": 0.0}']
    assert parse_recipe(argv)[1].part_learning_rates == {"vision_tower": 0.0}


def test_broken_yaml(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(ValueError, match="broken.yaml is not valid YAML"):
        parse_recipe([str(path)])


@pytest.mark.parametrize("missing", ["model_name_or_path", "dataset_name"])
def test_missing_key(recipe, missing):
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith(missing)]
    recipe.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"`{missing}` is missing"):
        parse_recipe([str(recipe)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha_kl", 1.5),
        ("alpha_kl", -0.1),
        ("lambda_kl", 2.0),
        ("lambda_kl", None),
        ("temp_kl", 0.0),
        ("temp_kl", None),
        ("temp_kl", float("nan")),
        ("teacher", "alive"),
        ("teacher_update_rate", 0.0),
        ("teacher_sync_steps", 0),
        ("trainable_parts", []),
        ("packing", True),
        ("label_smoothing_factor", 0.1),
        ("loss_type", "dft"),
        ("part_learning_rates", {"aligner": "fast"}),
        ("part_learning_rates", 1e-4),
    ],
)
def test_values_out_of_range(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, **{field: value})


def test_packing_is_allowed_without_kl(tmp_path):
    assert PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, use_kl=False, packing=True).packing


def test_both_kinds_of_eval_data(recipe):
    with pytest.raises(ValueError, match="`eval_split_size` and `eval_dataset_name`"):
        parse_recipe([str(recipe), "--eval_split_size", "0.1", "--eval_dataset_name", "e.jsonl"])
