"""Which rows of the last batch of an epoch count, where some are there only to fill it."""

from types import SimpleNamespace

import pytest
import torch

from puma_trl.train.sampling import count_real_rows


@pytest.mark.parametrize(
    ("num_rows", "process", "change", "expected"),
    [
        (10, 0, {}, None),  # two processes with 3 rows each: 4 are left for the last batches
        (10, 1, {}, 1),
        (8, 1, {}, 0),
        (12, 0, {}, None),  # none is repeated
        (12, 1, {}, None),
        (10, 1, {"is_end": False}, None),
        (10, 1, {"drops_last": True}, None),  # the last batch is a whole one
        (10, 1, {"padding_free": True}, None),
        (10, 0, {"num_processes": 1}, None),
    ],
)
def test_rows_that_count(num_rows, process, change, expected):
    change = {"is_end": True, "drops_last": False, "padding_free": False, "num_processes": 2} | change
    loader = SimpleNamespace(dataset=range(num_rows))
    state = SimpleNamespace(end_of_dataloader=change["is_end"], active_dataloader=loader)
    accelerator = SimpleNamespace(gradient_state=state, num_processes=change["num_processes"], process_index=process)
    batch = {"labels": torch.zeros(3, 5)}
    assert count_real_rows(batch, accelerator, change["drops_last"], change["padding_free"]) == expected
    # without padding the rows are one
    batch = {"labels": torch.zeros(1, 15), "row_id": ["a", "b", "c"]}
    assert count_real_rows(batch, accelerator, change["drops_last"], change["padding_free"]) == expected
