"""Files that are there whole or not at all."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from puma_trl.data.load import _processor_digest
from puma_trl.errors import PumaError
from puma_trl.files import check_file, check_folder, naming_disk, unfinished, whole_file


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder" / "notes.txt"
    with whole_file(path) as file:
        file.write("é")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "é" and [each.name for each in path.parent.iterdir()] == ["notes.txt"]


def test_what_a_kill_leaves_goes_with_the_next_writer(tmp_path):
    path = tmp_path / "notes.txt"
    code = "import os, sys; from puma_trl.files import whole_file\n"
    code += "with whole_file(sys.argv[1]) as file:\n    file.write('half'); file.flush(); os.kill(os.getpid(), 9)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment)
    assert done.returncode == -signal.SIGKILL and unfinished(path).read_text() == "half" and not path.exists()
    with whole_file(path) as file:
        file.write("all")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"] and path.read_text() == "all"


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(FileExistsError, match="is not a regular file|is a folder"), whole_file(path):
            pass
    assert not Path("/dev/null").is_file()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    check_file(tmp_path / "new" / "notes.txt")
    check_folder(tmp_path / "new" / "er")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "rows.jsonl").touch()
    for refused in (tmp_path / "rows.jsonl", tmp_path / "rows.jsonl" / "data"):
        with pytest.raises(NotADirectoryError, match="rows.jsonl' is a file, and a folder is needed"):
            check_folder(refused)
        with pytest.raises(NotADirectoryError):
            check_file(refused / "notes.txt")


@pytest.mark.parametrize(
    ("error", "is_of_writing"),
    [
        (OSError(27, "File too large"), True),
        (Exception("File too large (os error 27)"), True),  # of tokenizers
        (RuntimeError("[enforce fail at inline_container.cc:672]"), True),
        (RuntimeError("CUDA out of memory"), False),
        (KeyError("file"), False),
    ],
)
def test_errors_of_writing_name_the_disk(error, is_of_writing):
    expected = PumaError if is_of_writing else type(error)
    with pytest.raises(expected) as raised, naming_disk("/full", ", or go elsewhere"):
        raise error
    line = f"/full could not be written: {error}. See that its disk has room and takes files of this size, or go "
    assert (str(raised.value) == f"{line}elsewhere.") is is_of_writing


def test_a_full_temporary_folder(processor):
    """The processor is saved there, to be told from another one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(PumaError, match="could not be written: .*let TMPDIR name another folder"):
            _processor_digest(processor)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
