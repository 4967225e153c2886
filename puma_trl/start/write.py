"""A recipe as text, in the order of those that come with the package."""

from typing import Any

import yaml


TITLES = {
    1: "text: the language model on problems in words",
    2: "PUMA: aligner and vision towers learn from the model's own text-rich distribution",
    3: "instruction tuning: everything trains",
}
PARTS = {1: "language_model", 2: "aligner, vision_tower_low, vision_tower_high", 3: "all"}
ADAPTERS = ("none", "lora", "qlora")
SECTIONS = ("Model", "Adapters", "Loss", "Data", "Trainer")


def write_recipe(notes: list[str], sections: dict[str, dict[str, Any]]) -> str:
    """
    Words a recipe.

    Args:
        notes (`list[str]`):
            Lines of its header.
        sections (`dict[str, dict[str, Any]]`):
            Section → keys and values; empty ones are left out.
    """
    blocks = ["".join(f"# {note}\n" for note in notes)]
    for name in SECTIONS:
        if sections.get(name):
            blocks.append(f"# {name}\n" + yaml.safe_dump(sections[name], allow_unicode=True, width=1000))
    return "\n".join(blocks)
