"""A bar with rate and time left, and the accuracy so far where one is known."""

import os
import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """A progress bar on stderr, where that is a terminal; of several processes the first one's."""

    def __init__(self, title: str, total: int):
        shown = sys.stderr.isatty() and int(os.environ.get("RANK", 0)) == 0
        self.bar = tqdm(total=total, desc=title, disable=not shown)
        self.correct = self.judged = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def say(self, line: str) -> None:
        """Prints a line on stderr, above the bar."""
        tqdm.write(line, file=sys.stderr)

    def advance(self, count: int = 1, correct: int | None = None) -> None:
        """Counts `count` more, `correct` of them right where that is known without a judge."""
        if correct is not None:
            self.correct += correct
            self.judged += count
            self.bar.set_postfix(accuracy=f"{self.correct / self.judged:.1%}", refresh=False)
        self.bar.update(count)
