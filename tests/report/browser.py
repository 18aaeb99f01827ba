"""A page in headless Chromium: what its script makes of it."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def opened(url: str, *options: str, milliseconds: int = 1500) -> str:
    """The document as HTML once its script has run for `milliseconds` of virtual time."""
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless", "--disable-gpu", f"--user-data-dir={profile}", *options]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--virtual-time-budget={milliseconds}", "--dump-dom", url]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=True).stdout


def after(page: Path, script: str) -> str:
    """The document after a test's own script, whose `done(text)` writes to the element #done.

    The copy that is opened has no Content-Security-Policy: that would forbid the test's script.
    """
    html = page.read_text(encoding="utf-8").replace('http-equiv="Content-Security-Policy"', "data-unused")
    helper = "const done = (text) => document.body.insertAdjacentHTML('beforeend', `<p id=done>${text}</p>`);"
    copy = page.with_name("copy.html")
    copy.write_text(html.replace("</body>", f"<script>{helper}\n{script}</script></body>"), encoding="utf-8")
    return opened(copy.as_uri())
