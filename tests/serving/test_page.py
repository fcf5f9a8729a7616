"""The page of the server, in a browser, against the passkey model whose answers are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from support.browser import answer_of, faults_of, running_browser
from support.passkey_text import passkey_text, passkey_text_bundle, question
from support.server import MODEL, RunningServer, running_server

import sala_export.serving.page as page_module
from sala_export.serving.settings import Keys, Settings

_KEY = "a-key-of-this-test"
_FILES = sorted(Path(page_module.__file__).with_name("page").iterdir())
_CHAT = "**/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(passkey_text_bundle()) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    """A tab of a browser that has not been here before. Its scripts may not fail, nor may it ask strangers."""
    with browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        faults, strangers = faults_of(page), []
        page.on("request", lambda asked: None if asked.url.startswith((server.url, "data:", "blob:")) else strangers.append(asked.url))
        page.goto("/")
        expect(page.locator("#of-server")).to_contain_text(MODEL)
        yield page
        assert not faults
        assert not strangers


def _ask(page: Page, text: str) -> None:
    page.fill("#question", text)
    page.keyboard.press("Enter")


def _answers(page: Page, *answers: str | dict[str, Any]) -> list[dict[str, Any]]:
    """Let these be the next answers of the server: a stream, or what `fulfill` takes. Gives what is asked then."""
    asked: list[dict[str, Any]] = []
    left = list(answers)

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        given = left.pop(0)
        if isinstance(given, str):
            given = {"body": given, "content_type": "text/event-stream"}
        route.fulfill(**given)

    page.route(_CHAT, answer)
    return asked


def _error(status: int, message: str, **headers: str) -> dict[str, Any]:
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}})
    return {"status": status, "headers": {"Content-Type": "application/json", **headers}, "body": body}


def test_files_are_sent_without_a_key_and_under_a_strict_policy() -> None:
    settings = Settings(model_names=(MODEL,), keys=Keys([_KEY]))
    with running_server(passkey_text_bundle(), settings) as server, httpx2.Client(base_url=server.url) as client:
        assert client.get("/v1/models").status_code == 401
        for path in ("/", *(f"/page/{file.name}" for file in _FILES)):
            answer = client.get(path)
            assert answer.status_code == 200, path
            policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert client.get("/").text == (_FILES[0].parent / "index.html").read_text(encoding="utf-8")
        for path in ("/page/", "/page/none.js", "/page/..%2Fpage.py", "/page/../page.py", "/page/%2E%2E/settings.py"):
            assert client.get(path).status_code in (401, 404), path


def test_files_name_no_other_address_and_make_no_markup() -> None:
    for file in _FILES:
        text = file.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[\w.]+[^\s\"']*", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, file.name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(", text), file.name


def test_stop_ends_the_answer_and_the_request(page: Page, server: RunningServer) -> None:
    _ask(page, "w40 k1")
    expect(page.locator(".prose")).to_contain_text("<unk> <unk>")
    page.click("#stop")
    expect(page.locator(".note")).to_have_text("You stopped this answer.")
    expect(page.locator("#send")).to_be_visible()
    page.wait_for_function("fetch('metrics').then((a) => a.text()).then((t) => t.includes('sala_requests_generate 0.0'))")
    page.click("[aria-label='Answer again']")
    expect(page.locator(".prose")).to_contain_text("<unk> <unk>")
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("You stopped this answer.")
    assert page.locator("article").count() == 2


def test_conversations_are_kept_renamed_exported_and_deleted(page: Page) -> None:
    text, needles = passkey_text(600)
    page.click("#open-settings")
    page.get_by_label("Most tokens of an answer").fill("1")
    page.get_by_label("Temperature").fill("0")
    page.click("#settings [type=submit]")
    expected = f"v{needles[0].value - 18}"
    _ask(page, f"{text} {question(needles[0])}")
    expect(page.locator(".prose")).to_have_text(expected)
    page.click("#rename")
    page.get_by_label("Title").fill("The passkey \u202e")
    page.keyboard.press("Enter")
    page.click("#new-chat")
    _ask(page, "w40 k1")
    expect(page.locator(".answer .actions")).to_be_visible()
    page.reload()
    expect(page.locator("#title")).to_have_text("w40 k1")  # the conversation that was shown
    page.get_by_role("button", name="The passkey [U+202E]").click()
    expect(page.locator(".prose")).to_have_text(expected)
    with page.expect_download() as download:
        page.click("#export")
    exported = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert [message["text"] for message in exported["messages"]] == [f"{text} {question(needles[0])}", expected]
    page.click("#delete")
    page.click("#ask [type=submit]")
    expect(page.locator("#chats li")).to_have_count(1)
    page.reload()
    expect(page.locator("#chats li")).to_have_text("w40 k1")


def test_last_question_can_be_changed(page: Page) -> None:
    asked = _answers(page, answer_of({"content": "one"}), answer_of({"content": "two"}), answer_of({"content": "three"}))
    _ask(page, "first")
    expect(page.locator(".prose")).to_have_text("one")
    _ask(page, "second")
    expect(page.locator(".prose").nth(1)).to_have_text("two")
    page.click("[aria-label='Change the question']")
    expect(page.locator("#question")).to_have_value("second")
    _ask(page, "changed")
    expect(page.locator(".prose").nth(1)).to_have_text("three")
    assert [message["content"] for message in asked[2]["messages"]] == ["first", "one", "changed"]


def test_settings_are_part_of_the_request(page: Page) -> None:
    page.click("#open-settings")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("Most tokens").fill("77")
    page.get_by_label("Thinking").select_option("off")
    page.get_by_label("Colours").select_option("dark")
    page.click("#settings [type=submit]")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    asked = _answers(page, answer_of({"content": "yes"}))
    _ask(page, "Well?")
    expect(page.locator(".prose")).to_have_text("yes")
    assert asked == [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Well?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 77,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]


def test_thinking_and_tool_calls_stand_apart_from_the_answer(page: Page) -> None:
    hostile = "<img src=x onerror='window.hit = 1'>"
    call = {"index": 0, "id": "c", "function": {"name": hostile, "arguments": ""}}
    usage = {"prompt_tokens": 900, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 890}}
    body = answer_of(
        {"role": "assistant", "content": ""},
        {"reasoning_content": f"I think {hostile}"},
        {"content": f"**So** {hostile}"},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": "' + hostile + '"}'}}]},
        usage=usage,
    )
    _answers(page, body)
    _ask(page, hostile)
    expect(page.locator(".prose")).to_have_text(f"So {hostile}")
    assert not page.locator(".thinking").get_attribute("open")
    page.click(".thinking summary")
    expect(page.locator(".thinking .plain")).to_have_text(f"I think {hostile}")
    expect(page.locator(".call figcaption")).to_have_text(f"Tool call: {hostile}")
    expect(page.locator("#of-answer")).to_contain_text("890 of 900 tokens cached")
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.hit") is None


def test_faults_are_told_and_can_be_tried_again(page: Page) -> None:
    _answers(
        page,
        _error(429, "256 requests wait.", **{"Retry-After": "1"}),
        _error(503, "There is no memory."),
        answer_of({"content": "Half an ans"}, ends=False),
        'data: {"error": {"message": "A fault in the middle."}}\n\n',
        answer_of({"content": "whole"}),
    )
    _ask(page, "Well?")
    fault = page.get_by_role("alert").locator("visible=true")
    again = fault.get_by_role("button")
    expect(fault).to_contain_text("256 requests wait.")
    expect(again).to_have_text("Try again in 1 s")
    expect(again).to_be_disabled()
    again.click()  # waits until the server may be asked
    expect(fault).to_contain_text("There is no memory.")
    again.click()
    expect(fault).to_contain_text("The connection was lost")
    expect(page.locator(".prose")).to_have_text("Half an ans")
    again.click()
    expect(fault).to_contain_text("A fault in the middle.")
    page.reload()
    expect(fault).to_contain_text("A fault in the middle.")
    page.unroute(_CHAT)
    page.route(_CHAT, lambda route: route.abort())
    again.click()
    expect(fault).to_contain_text("The server cannot be reached.")
    _answers(page, answer_of({"content": "whole"}))
    again.click()
    expect(page.locator(".prose")).to_have_text("whole")
    assert page.locator("article").count() == 2


def test_key_is_asked_for_and_kept_for_the_tab(browser: Browser) -> None:
    settings = Settings(model_names=(MODEL,), keys=Keys([_KEY]))
    with running_server(passkey_text_bundle(), settings) as server, browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Key", exact=True).fill("a-wrong-key")
        page.keyboard.press("Enter")
        expect(page.locator("#ask-text")).to_contain_text("does not know the key")
        page.get_by_label("Key", exact=True).fill(_KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#of-server")).to_contain_text("idle")
        page.reload()
        expect(page.locator("#of-server")).to_contain_text("idle")
        assert page.evaluate("localStorage.getItem('sala-key')") is None
        other = context.new_page()
        other.goto("/")
        expect(other.locator("#ask")).to_be_visible()


def test_page_works_where_nothing_can_be_stored(page: Page) -> None:
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage", "indexedDB"])
             Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });"""
    )
    page.reload()
    expect(page.locator(".notice")).to_contain_text("forbids pages to store anything")
    _answers(page, answer_of({"content": "yes"}))
    _ask(page, "Well?")
    expect(page.locator(".prose")).to_have_text("yes")
    page.click("#new-chat")
    page.get_by_role("button", name="Well?").click()
    expect(page.locator(".prose")).to_have_text("yes")


def test_full_storage_is_told(page: Page) -> None:
    page.evaluate("() => { IDBObjectStore.prototype.put = () => { throw new DOMException('', 'QuotaExceededError'); }; }")
    _answers(page, answer_of({"content": "yes"}))
    _ask(page, "Well?")
    expect(page.locator(".notice")).to_contain_text("its storage is full")
    expect(page.locator(".prose")).to_have_text("yes")
    expect(page.locator("#chats li")).to_have_count(1)


def test_keyboard_alone_is_enough(page: Page) -> None:
    """Every button that can be seen is reached in the order of the page, and what has the focus shows it."""
    _answers(page, answer_of({"content": "```js\nx\n```\nyes"}))
    page.keyboard.type("Well?")  # the question has the focus from the beginning
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Really?")
    page.keyboard.press("Enter")
    expect(page.locator(".question .plain")).to_have_text("Well?\nReally?")
    expect(page.locator("#announce")).to_contain_text("yes")
    visible = page.evaluate(
        """[...document.querySelectorAll("button, select, textarea, summary, a")]
             .filter((each) => each.checkVisibility() && !each.disabled).length"""
    )
    page.focus(".skip")
    reached = []
    for _ in range(visible + 4):
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement.closest('form') ?? document.body).boxShadow")
        assert outline.startswith("solid") or "none" not in outline[4:], reached[-1]
        page.keyboard.press("Tab")
    assert len({*reached}) >= visible
    page.focus("#rename")
    page.keyboard.press("Enter")
    expect(page.locator("#ask [name=answer]")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#rename")).to_be_focused()
    unnamed = page.locator("button, select, input:not([hidden]), textarea, progress").evaluate_all(
        "all => all.filter((each) => !(each.ariaLabel || each.labels?.length || each.textContent.trim())).map((each) => each.outerHTML)"
    )
    assert not unnamed


def test_side_bar_is_a_drawer_on_a_phone(browser: Browser, server: RunningServer) -> None:
    with browser.new_context(base_url=server.url, viewport={"width": 360, "height": 640}) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#side")).not_to_be_in_viewport()
        page.click("#side-open")
        expect(page.locator("#new-chat")).to_be_focused()
        expect(page.locator("#side")).to_be_in_viewport()
        page.keyboard.press("Escape")
        expect(page.locator("#side-open")).to_be_focused()
        expect(page.locator("#side")).not_to_be_in_viewport()
        _answers(page, answer_of({"content": "|a|b|\n|-|-|\n" + "|" + "long " * 60 + "|x|\n\n" + "w" * 400}))
        _ask(page, "w" * 400)
        expect(page.locator(".prose table")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.querySelector('#log').scrollWidth") == 360
