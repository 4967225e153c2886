"""Rows whose pictures break while a run goes on, which the collator replaces: told once, and written down."""

import json
import os
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from ..data.files import DROPPED


logger = get_logger(__name__)


class DroppedRows:
    """
    Tells of each row once, and adds it to `dropped_rows.jsonl`, which each process does for the rows that it reads.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / DROPPED
        self.known: set[str] = set()

    def add(self, rows: list[dict[str, Any]], mode: str) -> None:
        """
        Adds rows of a batch.

        Args:
            rows (`list[dict[str, Any]]`):
                `row_id` and `reason` of each, as the collator gives them.
            mode (`str`):
                `"train"` or `"eval"`, the split that they are of.
        """
        for row in rows:
            if row["row_id"] in self.known:
                continue
            self.known.add(row["row_id"])
            message = f"Row {row['row_id']} is left out, {len(self.known)} so far in this process: {row['reason']}"
            logger.warning(message, main_process_only=False)
            line = json.dumps({"split": mode, **row}, ensure_ascii=False) + "\n"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # one write of a short line to the end, so that the lines of several processes do not mix
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
