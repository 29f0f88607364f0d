"""A real headless Chromium that loads a page in a frame of a given width and says how it came out.

measure(page, width=390, dark=True)  # {"scroll": 390, "client": 390, "scripts": 0, ...}
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

#: For tests that look at a page as a reader does.
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")

# no service of the browser's maker is asked for anything; its sandbox does not work as root
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()

_FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<style>iframe {{ width: {width}px; height: 2000px; border: 0 }}</style>
<iframe id="frame" srcdoc="{page}"></iframe>
<script>
frame.onload = () => {{
  const page = frame.contentDocument, top = page.documentElement;
  // what lies in a box that scrolls by itself makes the page no wider
  const wide = [...page.querySelectorAll("body *")].filter(
    e => !e.closest("figure") && e.getBoundingClientRect().right > top.clientWidth + 1);
  document.body.dataset.seen = JSON.stringify({{
    scroll: top.scrollWidth, client: top.clientWidth, wide: wide.map(e => e.outerHTML.slice(0, 80)),
    scripts: page.scripts.length, images: page.images.length, links: page.links.length,
    pictures: page.querySelectorAll("svg").length,
    headings: [...page.querySelectorAll("h1, h2")].map(e => e.textContent),
    background: getComputedStyle(page.body).backgroundColor,
    text: getComputedStyle(page.body).color,
  }});
}};
</script>
"""


def measure(folder: Path, page: str, *, width: int, dark: bool = False) -> dict[str, Any]:
    """How `page` comes out in a frame of `width` pixels; `folder` is for the browser's own files."""
    outer = folder / f"frame-{width}-{dark}.html"
    outer.write_text(_FRAME.format(width=width, page=html.escape(page, quote=True)), encoding="utf-8")
    seen = re.search(r'data-seen="([^"]*)"', _run(folder, outer, dark, "--dump-dom"))
    assert seen is not None, "the page was not loaded"
    measured: dict[str, Any] = json.loads(html.unescape(seen[1]))
    return measured


def _run(folder: Path, page: Path, dark: bool, *flags: str) -> str:
    argv = [
        "setpriv", "--pdeathsig", "KILL", "chromium", *_FLAGS, f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,2200", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *flags, page.as_uri(),
    ]  # fmt: skip
    child = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return child.communicate(timeout=60)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
