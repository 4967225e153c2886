"""What every benchmark says of itself and does."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar


PROMPTS = ("official", "math_puma")


class Benchmark(ABC):
    """
    A benchmark: where its items are, what a model is asked, and how replies are scored.

    Attributes:
        name (`str`):
            Name on the command line and in `metrics.json`.
        title (`str`):
            Name for people.
        hub_id (`str`):
            Official data set on the Hub.
        config_is_split (`bool`):
            Whether that data set has one configuration per split, of the same name.
        archive (`str`):
            Zip archive in it that holds the pictures.
        id_column (`str`):
            Column that names an item.
        duplicates (`str`):
            What to do about ids that occur more than once.
        image_columns (`tuple[str, ...]`):
            Columns that may hold the picture or its path, the first that does counts.
        columns (`tuple[str, ...]`):
            Columns that scoring needs.
        prompt_columns (`dict[str, tuple[str, ...]]`):
            Columns that each of `PROMPTS` needs.
        extraction_columns (`dict[str, tuple[str, ...]]`):
            Columns that an extraction rule needs besides.
        headline (`tuple[str, ...]`):
            Metrics that an incomplete run would falsify.
        llm_rules (`tuple[str, ...]`):
            Extraction rules that ask a language model what their direct steps do not decide.
        charted (`tuple[str, ...]`):
            Metrics and groups that the chart of a report shows.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hub_id: ClassVar[str]
    config_is_split: ClassVar[bool] = False
    archive: ClassVar[str] = "images.zip"
    id_column: ClassVar[str]
    duplicates: ClassVar[str] = "Remove the repeated rows."
    image_columns: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[str, ...]]
    prompt_columns: ClassVar[dict[str, tuple[str, ...]]]
    extraction_columns: ClassVar[dict[str, tuple[str, ...]]] = {}
    headline: ClassVar[tuple[str, ...]] = ()
    llm_rules: ClassVar[tuple[str, ...]] = ("official",)
    charted: ClassVar[tuple[str, ...]]

    @property
    def default_extraction(self) -> str:
        """The extraction rule without a language model: the official one where it needs none, else `final`."""
        return "final" if "official" in self.llm_rules else "official"

    def item_id(self, item: dict[str, Any]) -> str:
        """Returns the id of an item as text, so that 17 and "17" are the same."""
        return str(item[self.id_column])

    def describe(self, item: dict[str, Any]) -> str:
        """Returns a line for people that names an item and its kind."""
        return f"Item {self.item_id(item)}"

    def show_question(self, item: dict[str, Any]) -> str:
        """Returns what was asked, as people read it."""
        return str(item.get("question") or "")

    @abstractmethod
    def check_items(self, items: list[dict[str, Any]], allow_partial: bool) -> None:
        """
        Checks what scoring needs.

        Args:
            items (`list[dict[str, Any]]`):
                All items.
            allow_partial (`bool`):
                Whether items may be missing that belong to others.

        Raises:
            EvaluationError: if an item cannot be scored.
        """

    @abstractmethod
    def build_prompt(self, item: dict[str, Any], variant: str) -> str:
        """
        Returns what the model is asked.

        Args:
            item (`dict[str, Any]`):
                The item as published.
            variant (`str`):
                One of `PROMPTS`: the official prompt, or the one that the original project sends.
        """

    @abstractmethod
    def extract(self, item: dict[str, Any], reply: str | None, rule: str) -> str | None:
        """
        Extracts the answer from a reply without a language model.

        Args:
            item (`dict[str, Any]`):
                The item as published.
            reply (`str`, *optional*):
                What the model said; `None` is an empty reply.
            rule (`str`):
                One of [`RULES`].

        Returns:
            The extraction, or `None` where the rule finds nothing.
        """

    @abstractmethod
    def needs_llm(self, item: dict[str, Any], reply: str | None) -> bool:
        """Returns whether the rules that ask a language model ask it about this reply."""

    def clean_llm_extraction(self, text: str, rule: str) -> str:
        """Returns a language model's extraction as the rule takes it."""
        return text

    def normalise(self, item: dict[str, Any], extraction: Any) -> Any:
        """Returns the extraction in the form of the gold answer, `None` where it has none."""
        return extraction

    def is_correct(self, item: dict[str, Any], normalised: Any) -> bool:
        """Returns whether the normalised extraction equals the gold answer as it stands, untrimmed."""
        return normalised is not None and normalised == item["answer"]

    @abstractmethod
    def compute_metrics(self, items: list[dict[str, Any]], correct: list[bool]) -> dict[str, Any]:
        """
        Computes the aggregates.

        Returns:
            `dict[str, Any]` with rates as fractions.
        """
