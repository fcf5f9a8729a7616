"""The page of the server, in a browser, against the passkey model whose answers are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from support.browser import answer_of, faults_of, running_browser
from support.passkey_text import passkey_text, passkey_text_bundle, question
from support.server import MODEL, RunningServer, running_server

from sala_export.serving.settings import Keys, Settings

_KEY = "a-key-of-this-test"
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
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((server.url, "data:", "blob:")) else strangers.append(asked.url),
        )
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
        asked.append(json.loads(route.request.post_data or ""))
        given = left.pop(0)
        if isinstance(given, str):
            given = {"body": given, "content_type": "text/event-stream"}
        route.fulfill(**given)

    page.route(_CHAT, answer)
    return asked


def _error(status: int, message: str, **headers: str) -> dict[str, Any]:
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}})
    return {"status": status, "headers": {"Content-Type": "application/json", **headers}, "body": body}


def _drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file on the window, as a file manager does."""
    page.evaluate(
        """([name, content]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(content)], name));
          for (const kind of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [name, list(content)],
    )


def _set_short_answers(page: Page) -> None:
    page.click("#open-settings")
    page.get_by_label("Tokens at most").fill("1")
    page.get_by_label("Temperature").fill("0")
    page.click("#settings [type=submit]")


_WATCH = """(selector) => {
  window.seen = [];
  const watch = () => {
    const bar = document.querySelector(selector);
    if (bar?.checkVisibility()) window.seen.push([bar.value, bar.nextSibling.textContent]);
  };
  new MutationObserver(watch).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""


def _seen(page: Page, pattern: str) -> list[float]:
    """The values that the watched bar had while its text was of a pattern."""
    seen: list[tuple[float, str]] = page.evaluate("window.seen")
    return [value for value, text in seen if re.search(pattern, text)]


def test_dropped_file_is_read_and_asked_about_also_after_a_reload(page: Page) -> None:
    text, needles = passkey_text(8_000)
    _set_short_answers(page)
    page.evaluate(_WATCH, "#tray progress")
    _drop(page, "Krieg & Frieden.txt", text.encode())
    expect(page.get_by_label("Context", exact=True)).to_have_value("Krieg-Frieden", timeout=20_000)
    values = _seen(page, r"Read [\d,]+ of 8,0\d\d tokens · [\d,]+ tokens/s")
    assert len({*values}) >= 3
    assert values == sorted(values)
    assert values[-1] == 1
    expect(page.locator("#tray")).to_be_empty()
    for place, needle in enumerate(needles[:3]):
        if place == 2:
            page.reload()
            known = [f"v{each.value - 18}" for each in needles[:2]]
            expect(page.locator(".prose")).to_have_text(known)
        _ask(page, question(needle))
        expect(page.locator(".prose").nth(place)).to_have_text(f"v{needle.value - 18}")
        cached, total = re.findall(r"([\d,]+) of ([\d,]+) tokens cached", page.inner_text("#of-answer"))[0]
        assert int(cached.replace(",", "")) > 0.99 * int(total.replace(",", ""))
    expect(page.locator("#contexts")).to_contain_text(re.compile(r"Krieg-Frieden\s*8,0\d\d tokens · [\d.]+ MB"))
    page.get_by_label("Delete the context Krieg-Frieden").click()
    page.click("#ask [type=submit]")
    expect(page.locator("#contexts li")).to_have_count(0)
    expect(page.get_by_label("Context", exact=True)).to_have_value("")


def test_reading_can_be_stopped(page: Page) -> None:
    text, _ = passkey_text(20_000)
    page.set_input_files("#file", {"name": "long.md", "mimeType": "text/markdown", "buffer": text.encode()})
    expect(page.locator("#tray")).to_contain_text(re.compile("Read [1-9]"), timeout=20_000)
    page.get_by_label("Stop reading long.md").click()
    expect(page.locator("#tray")).to_be_empty()
    expect(page.locator("#contexts li")).to_have_count(0)
    page.wait_for_function(
        "fetch('metrics').then((a) => a.text()).then((t) => t.includes('sala_requests_prefill 0.0'))"
    )


def test_files_that_are_no_text_are_refused_with_the_reason(page: Page) -> None:
    for content, reason in (
        (b"", "it is empty"),
        (b"PK\x03\x04\0\0", "it is no text"),
        (b"\xe9t\xe9 1805", "it is no text in UTF-8"),
    ):
        _drop(page, "file.bin", content)
        expect(page.locator(".notice")).to_have_text(f"file.bin cannot be read: {reason}.")
        page.get_by_label("Close this line").click()


def test_file_that_the_server_refuses_can_be_sent_again_and_names_are_unique(page: Page) -> None:
    ready = {"name": "text-3", "tokens": 2, "bytes": 2, "status": "ready", "processed": 2, "created": 1}
    answers = [
        _error(409, "There is a context text."),
        _error(409, "There is a context text-2."),
        _error(413, "1,000 tokens fit."),
        {"body": f"event: context.ready\ndata: {json.dumps(ready)}\n\n", "content_type": "text/event-stream"},
    ]
    names: list[str] = []

    def answer(route: Route) -> None:
        names.append(re.findall("name=([^&]*)", route.request.url)[0])
        route.fulfill(**answers.pop(0))

    page.route("**/v1/contexts?*", answer)
    _drop(page, "мир.txt", b"some text")
    expect(page.locator(".notice")).to_contain_text("мир.txt was not read: 1,000 tokens fit.")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_label("Context", exact=True)).to_have_value("text-3")
    assert names == ["text", "text-2", "text-3", "text"]


def test_text_goes_with_the_question_where_there_are_no_contexts(page: Page) -> None:
    page.route("**/v1/contexts", lambda route: route.fulfill(**_error(404, "There is nothing here.")))
    page.reload()
    expect(page.locator("#of-server")).to_contain_text("idle")
    asked = _answers(page, answer_of({"content": "yes"}))
    _drop(page, "notes.txt", b"Some notes.")
    expect(page.locator(".notice")).to_contain_text("keeps no contexts")
    expect(page.locator("#attached")).to_contain_text("notes.txt")
    _ask(page, "Well?")
    expect(page.locator(".prose")).to_have_text("yes")
    assert asked[0]["messages"] == [{"role": "user", "content": "Some notes.\n\nWell?"}]
    expect(page.locator(".question summary")).to_contain_text("notes.txt")


def test_progress_of_a_long_question_is_shown(page: Page) -> None:
    text, needles = passkey_text(6_000, seed=1)
    _set_short_answers(page)
    page.evaluate(_WATCH, ".answer progress")
    _ask(page, f"{text} {question(needles[4])}")
    expect(page.locator(".prose")).to_have_text(f"v{needles[4].value - 18}", timeout=20_000)
    values = _seen(page, r"Reading: [\d,]+ of 6,0\d\d tokens")
    assert len({*values}) >= 3
    assert values == sorted(values)


def test_stop_ends_the_answer_and_the_request(page: Page, server: RunningServer) -> None:
    _ask(page, "w40 k1")
    expect(page.locator(".prose")).to_contain_text("<unk> <unk>")
    page.click("#stop")
    expect(page.locator(".note")).to_have_text("You stopped this answer.")
    expect(page.locator("#send")).to_be_visible()
    page.wait_for_function(
        "fetch('metrics').then((a) => a.text()).then((t) => t.includes('sala_requests_generate 0.0'))"
    )
    page.click("[aria-label='Answer again']")
    expect(page.locator(".prose")).to_contain_text("<unk> <unk>")
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("You stopped this answer.")
    assert page.locator("article").count() == 2


def test_conversations_are_kept_renamed_exported_and_deleted(page: Page) -> None:
    text, needles = passkey_text(60)
    _set_short_answers(page)
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
    asked = _answers(
        page, answer_of({"content": "one"}), answer_of({"content": "two"}), answer_of({"content": "three"})
    )
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
    page.get_by_label("Tokens at most").fill("77")
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


def test_texts_are_copied_as_the_model_wrote_them(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    written = "**a** \u202e\n\n```js\nif (a\u2066) {\n\n}\n```"
    _answers(page, answer_of({"content": written}))
    _ask(page, "Well?")
    for label, copied in (
        ("Copy the answer", written),
        ("Copy the code", "if (a\u2066) {\n\n}"),
        ("Copy the question", "Well?"),
    ):
        page.get_by_label(label).click()
        expect(page.locator("#announce")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == copied


def test_faults_are_told_and_can_be_tried_again(page: Page) -> None:
    _answers(
        page,
        _error(429, "256 requests wait.", **{"Retry-After": "1"}),
        _error(503, "There is no memory."),
        answer_of({"content": "Half a sentence"}, ends=False),
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
    expect(page.locator(".prose")).to_have_text("Half a sentence")
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
    page.evaluate(
        "() => { IDBObjectStore.prototype.put = () => { throw new DOMException('', 'QuotaExceededError'); }; }"
    )
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
    page.dispatch_event("#question", "keydown", {"key": "Enter", "isComposing": True})  # of an input method
    expect(page.locator("#question")).to_have_value("Well?\nReally?")
    page.keyboard.press("Enter")
    expect(page.locator(".question .plain")).to_have_text("Well?\nReally?")
    expect(page.locator("#announce")).to_contain_text("yes")
    can_be_used = page.evaluate(
        """[...document.querySelectorAll("button, select, textarea, summary, a, [tabindex]")]
             .filter((each) => each.checkVisibility() && !each.disabled).length"""
    )
    page.focus(".skip")
    reached = 0
    while page.evaluate("document.activeElement !== document.body"):
        reached += 1
        # The frame around the question stands for the question itself.
        seen = page.evaluate(
            """[document.activeElement, document.activeElement.closest("form") ?? document.activeElement]
                 .map(getComputedStyle).map((style) => [style.outlineStyle, style.boxShadow])"""
        )
        assert seen[0][0] == "solid" or seen[1][1] != "none", page.evaluate("document.activeElement.outerHTML")
        page.keyboard.press("Tab")
    assert reached == can_be_used
    page.focus("#rename")
    page.keyboard.press("Enter")
    expect(page.locator("#ask [name=answer]")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#rename")).to_be_focused()
    unnamed = page.locator("button, select, input:not([hidden]), textarea, progress").evaluate_all(
        """all => all.filter((each) => !(each.ariaLabel || each.labels?.length || each.textContent.trim()))
             .map((each) => each.outerHTML)"""
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
        _answers(page, answer_of({"content": "|a|b|\n|-|-|\n" + "|" + "long" * 60 + "|x|\n\n" + "w" * 400}))
        _ask(page, "w" * 400)
        expect(page.locator(".prose table")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.querySelector('#log').scrollWidth") == 360
