"""What holds for a command before its own code is reached, and when nobody reads it any more."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts a command of the name that the installed one has, with the given code."""

    def start(code, **kwargs):
        (tmp_path / "puma-trl").write_text(f"import os, signal, sys\n{code}")
        kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, str(tmp_path / "puma-trl")], env=environment, **kwargs)

    return start


def test_an_interrupt_while_modules_are_imported(start):
    process = start("import puma_trl.entry\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(60)")
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 130


def test_an_interrupt_of_a_command(start):
    """It may clean up behind itself."""
    body = "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n    finally:\n        print('cleaned')\n"
    process = start(f"from puma_trl.entry import run_command\ndef main():\n{body}run_command(main)")
    assert process.communicate(timeout=60) == ("cleaned\n", "") and process.returncode == 130


def test_a_folder_that_has_been_deleted(start, tmp_path):
    (tmp_path / "gone").mkdir()
    code = f"os.chdir({str(tmp_path / 'gone')!r})\nos.rmdir(os.getcwd())\nimport puma_trl.entry"
    process = start(code)
    assert process.communicate(timeout=60)[1] == "error: The current folder has been deleted. Change to another one.\n"
    assert process.returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_comes_as_it_is_written(start, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    code = "import puma_trl.entry\nsys.stdout.write('é')\nsys.stderr.write('done\\n')\nsys.stdin.read()"
    process = start(code, stdin=subprocess.PIPE)
    assert process.stderr.readline() == "done\n"
    os.set_blocking(process.stdout.fileno(), False)
    assert (os.read(process.stdout.fileno(), 9) == "é".encode()) if unbuffered else True
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    if not unbuffered:
        assert os.read(process.stdout.fileno(), 9) == "é".encode()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_lost_console_loses_nothing(start, tmp_path, name):
    work = f"    for step in range(3):\n        print(step, file=sys.{name}, flush=True)\n"
    work += f"    open({str(tmp_path / 'saved')!r}, 'w').close()\n"
    code = f"from puma_trl.entry import run_command\ndef main():\n    sys.stdin.readline()\n{work}run_command(main)"
    process = start(code, stdin=subprocess.PIPE)
    getattr(process, name).close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0 and (tmp_path / "saved").exists()


def test_python_that_imports_the_package_is_left_alone():
    code = "import signal, sys; out = sys.stdout; import puma_trl.entry; "
    code += "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, sys.stdout is out)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, preexec_fn=restore)
    assert done.stdout == "True True\n"
