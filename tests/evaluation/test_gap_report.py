"""The table of the gap: names that differ, and 80 columns."""

import pytest
from PIL import Image

from puma_trl.evaluation.gap_report import draw_gap, name_models, print_gap


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["outputs/a/stage1", "outputs/a/stage2"], ["stage1", "stage2"]),
        (["outputs/a/stage2", "outputs/b/stage2/", "stage1"], ["a/stage2", "b/stage2", "stage1"]),
        (["x/a/out/stage2", "x/b/out/stage2"], ["a/out/stage2", "b/out/stage2"]),
        (["stage2", "x/stage2"], ["stage2", "x/stage2"]),
        (["same", "same"], ["same", "same"]),
    ],
)
def test_names_differ(paths, names):
    assert name_models(paths) == names


@pytest.fixture
def summaries():
    accuracies = {"text_rich_accuracy": 1.0, "vision_rich_accuracy": 0.023, "gap": 0.977}
    kl = {"by": {}, "gap_p": 0.0, "agreement": 0.5, "gap_interval": (0.95, 0.99)}
    for side in ("text_rich", "vision_rich"):
        kl |= {f"{side}_interval": (0.0, 0.9), f"{side}_tokens": 12.34, f"{side}_cut": 0.01}
    kl |= {"forward_kl": 11.846, "reverse_kl": 13.112, "shuffled_forward_kl": 12.341, "shuffled_reverse_kl": 13.339}
    names = ("stage1", "a_long_name_of_a_model/checkpoint-1000")
    return [{"label": name, "pairs": 300, **accuracies, **kl} for name in names]


def test_table_fits(summaries, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_gap(summaries)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80 and not any("…" in line for line in lines)
    row = next(line for line in lines if "stage1" in line)
    assert row.split() == ["stage1", *"100.0% 2.3% +97.7% 11.846 / 13.112 12.341 / 13.339".split()]


def test_chart(summaries, tmp_path):
    draw_gap(summaries, tmp_path / "gap.png")
    assert len(set(Image.open(tmp_path / "gap.png").convert("L").tobytes())) > 10


def test_levels_of_modality_have_a_panel(summaries, tmp_path):
    draw_gap(summaries, tmp_path / "plain.png")
    for summary in summaries:
        group = {"vision_rich_accuracy": 0.5, "vision_rich_interval": (0.4, 0.6)}
        summary["by"] = {"modality": {"text_lite": group, "vision_only": group}}
    draw_gap(summaries, tmp_path / "levels.png")
    plain, levels = (Image.open(tmp_path / f"{name}.png").width for name in ("plain", "levels"))
    assert levels == 1.5 * plain
