"""A real headless Chromium, driven by its DevTools protocol over a pipe: for tests of the pages."""

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from io import BytesIO
from urllib.parse import urlencode

import pytest
from PIL import Image


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BASH = shutil.which("bash")
# What modules that use it are marked with
NEEDS_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or BASH is None, reason="no Chromium (apt-get install chromium), or no bash"),
]
KEY_CODES = {"ArrowRight": 39, "ArrowLeft": 37, "Escape": 27, "Tab": 9}


class Browser:
    """One tab of a Chromium."""

    def __init__(self, profile):
        command_end, self._commands = os.pipe()
        self._replies, reply_end = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        self.process = subprocess.Popen(
            # Chromium expects the two pipes at 3 and 4
            [BASH, "-c", f'exec "$0" "$@" 3<&{command_end} 4>&{reply_end}', CHROMIUM, *options]
            + ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(command_end, reply_end),
            stderr=subprocess.DEVNULL,
        )
        os.close(command_end)
        os.close(reply_end)
        self._rest, self._count, self.session, self.errors = b"", 0, None, []
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self):
        while b"\0" not in self._rest:
            block = os.read(self._replies, 1 << 20)
            assert block, "Chromium has ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(message)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown" or (method == "Log.entryAdded" and params["entry"]["level"] == "error"):
            self.errors.append(params)
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(params)
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
            self.errors.append(params["request"]["url"])
        return message

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == self._count:
                assert "error" not in reply, reply
                return reply["result"]

    def open(self, path, width=1280, height=900, dark=False, mobile=False, **state):
        """Loads a page afresh, with a state in its address; `mobile` screens are as wide as the page asks for."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + ("#" + urlencode(state) if state else ""))
        self.wait(f"document.readyState === 'complete' && location.pathname === {json.dumps(path.as_uri()[7:])}")

    def run(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition):
        deadline = time.monotonic() + 30
        while not self.run(condition):
            assert time.monotonic() < deadline, f"{condition} did not come true"
            time.sleep(0.02)

    def press(self, key):
        code = {"windowsVirtualKeyCode": KEY_CODES[key]} if key in KEY_CODES else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, field, value):
        """Sets a field as a person does: with the events that this gives."""
        self.run(
            f"(() => {{ const field = document.getElementById({json.dumps(field)}); field.value = {json.dumps(value)};"
            "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    def screenshot(self):
        return Image.open(BytesIO(b64decode(self.call("Page.captureScreenshot", format="png")["data"])))

    def titles(self):
        return self.run("[...document.querySelectorAll('h2')].map(title => title.textContent)")

    def count(self):
        return self.run("document.getElementById('count').textContent")

    def focused(self):
        return self.run("document.activeElement.querySelector('h2')?.textContent")

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self._commands)
        os.close(self._replies)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    """A tab; a test fails if its page wrote an error, threw one, or asked for anything from a network."""
    chromium.errors.clear()
    yield chromium
    assert chromium.errors == []
