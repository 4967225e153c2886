"""Charts as PNG files, drawn without a screen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def chart(path: str | Path, columns: int = 1, rows: int = 1, dpi: int = 120, **kwargs: Any) -> Iterator[Any]:
    """
    Gives the axes of the panels to draw on; the file is written when the block ends.

    Args:
        path (`str` or `Path`):
            The PNG to write. Its folder is made if it is missing.
        columns (`int`, *optional*, defaults to `1`):
            Number of panels in a row.
        rows (`int`, *optional*, defaults to `1`):
            Number of rows.
        dpi (`int`, *optional*, defaults to `120`):
            Dots per inch.
        kwargs (`dict`, *optional*):
            Further arguments of `matplotlib.pyplot.subplots`, such as `figsize` in inches.

    Yields:
        `numpy.ndarray` of matplotlib axes, one per panel, row by row.
    """
    import matplotlib  # half a second, which only those who draw wait for

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, squeeze=False, **kwargs)
    try:
        yield axes.flatten()
        figure.tight_layout()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    finally:
        plt.close(figure)
