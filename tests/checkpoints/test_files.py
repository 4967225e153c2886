import json

import pytest

from puma_trl.checkpoints.files import CheckpointFiles
from puma_trl.errors import CheckpointError


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/other.safetensors", "a/../../b.safetensors", 7])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_leads_nowhere_else(tmp_path, kind, file):
    (tmp_path / "other.safetensors").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"weight": file}}))
    with pytest.raises(CheckpointError, match=f"index.json names '{file}', which lies outside of its folder"):
        CheckpointFiles(folder, allow_pickle=True)
