"""A browser that a test drives: Chromium, without a window.

The tests run in the one that the system has, or in the one that Playwright installs. They are skipped without either.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, sync_playwright

from sala_export.serving.page import add_page
from sala_export.serving.run import reserve, url_of

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start a browser until the block is left. Skips the test if there is none."""
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, _NAMES)), None)
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no browser: install the package chromium, or run `playwright install chromium`")
        # The sandbox of Chromium refuses root, as whom containers run tests. The pages come from this checkout.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def faults_of(page: Page) -> list[str]:
    """What goes wrong in the scripts of a page, or against its content policy, from now on."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
    return faults


@contextmanager
def page_of_files(browser: Browser) -> Iterator[Page]:
    """The page in a server without a model, whose API answers with 404."""
    app = FastAPI()
    add_page(app)
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with reserve("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            page = browser.new_page()
            page.goto(url_of(listener))
            yield page
        finally:
            server.should_exit = True
            thread.join()


def answer_of(*deltas: dict[str, Any], ends: bool = True, usage: dict[str, Any] | None = None) -> str:
    """A streamed answer of `/v1/chat/completions`, as a server sends it. Args: ends: or the connection is lost."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    if ends:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage is not None:
        chunks.append({"choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ("data: [DONE]\n\n" if ends else "")
