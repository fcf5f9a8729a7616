// How the messages of a conversation look.
import { Bar, announce, bytes, copyButton, count, duration, el, icon, iconButton, plural, visible } from "./dom.js";
import { Markdown } from "./markdown.js";

// A question, with the files whose text goes with it.
export class Question {
  constructor(message, { edit }) {
    this.actions = el("div", { class: "actions" });
    this.#edit = edit;
    this.#message = message;
    const files = message.files.map(({ name, text }) =>
      el(
        "details",
        {},
        el("summary", {}, visible(name), " ", el("span", { class: "muted" }, bytes(text.length))),
        el("pre", { tabindex: 0 }, visible(text)),
      ),
    );
    const text = el("p", { class: "plain", dir: "auto" }, visible(message.text));
    this.element = el(
      "article",
      { class: "question", "aria-label": "You" },
      el("div", { class: "bubble" }, ...files, text),
      this.actions,
    );
  }

  #edit;
  #message;

  // Args: isLast: no other question follows, so it can be changed.
  update({ isLast, isBusy }) {
    this.actions.replaceChildren(copyButton("Copy the question", () => this.#message.text));
    if (isLast && !isBusy) this.actions.append(iconButton("edit", "Change the question", this.#edit));
  }
}

const ENDINGS = {
  length: "The answer ended at its limit of tokens.",
  stopped: "You stopped this answer.",
  interrupted: "This answer was interrupted.",
};
// A text that is laid out anew costs more the longer it is. The rest of the time belongs to the reader.
const REST = 3;
const LEAST_PAUSE = 60;

// An answer, also while it comes.
export class Answer {
  #message;
  #handlers;
  #body = el("div", { class: "prose" });
  #markdown = new Markdown(this.#body);
  #thought = el("div", { class: "plain", dir: "auto" });
  #thinkingTitle = el("summary");
  #thinking = el("details", { class: "thinking", hidden: true }, this.#thinkingTitle, this.#thought);
  #calls = el("div");
  #reading = new Bar("Prompt read");
  #note = el("div", { class: "note" });
  #actions = el("div", { class: "actions" });
  #timer = null;
  #nextDraw = 0;

  // Args: handlers: `again` makes the answer anew.
  constructor(message, handlers) {
    this.#message = message;
    this.#handlers = handlers;
    this.#reading.element.hidden = true;
    this.element = el(
      "article",
      { class: "answer", "aria-label": "Answer" },
      this.#thinking,
      this.#reading.element,
      this.#body,
      this.#calls,
      this.#note,
      this.#actions,
    );
  }

  // The message has changed: draw it, not more often than the browser can. Then `whenDrawn` looks where its end is.
  grow(whenDrawn) {
    if (this.#timer !== null) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = null;
        const begun = performance.now();
        this.#draw();
        whenDrawn();
        const now = performance.now();
        this.#nextDraw = now + Math.max(LEAST_PAUSE, REST * (now - begun));
      },
      Math.max(0, this.#nextDraw - performance.now()),
    );
  }

  #draw() {
    const { text, thinking, calls, progress } = this.#message;
    this.#markdown.update(text);
    if (thinking) {
      this.#thinking.hidden = false;
      this.#thinkingTitle.textContent = text || calls.length ? "Thought" : "Thinking";
      this.#thought.textContent = visible(thinking);
    }
    this.#calls.replaceChildren(...calls.map(callElement));
    this.#drawProgress(text || thinking || calls.length ? null : progress);
  }

  #drawProgress(progress) {
    const isShown = Boolean(progress) && progress.processed < progress.total;
    this.#reading.element.hidden = !isShown;
    if (isShown) this.#reading.set(progress.processed / progress.total, readingText(progress));
  }

  // Args: isLast: of the conversation, so it can be made anew.
  update({ isLast, isBusy }) {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#draw();
    const isGrowing = isLast && isBusy;
    this.element.setAttribute("aria-busy", isGrowing);
    this.element.classList.toggle("growing", isGrowing);
    const { text, reason, fault } = this.#message;
    this.#note.replaceChildren();
    this.#actions.replaceChildren();
    if (isGrowing) return;
    this.#drawProgress(null);
    if (fault) this.#note.append(this.#faultElement(fault, isLast));
    else if (ENDINGS[reason]) this.#note.append(ENDINGS[reason]);
    if (text) this.#actions.append(copyButton("Copy the answer", () => text));
    if (isLast && !fault) this.#actions.append(iconButton("again", "Answer again", this.#handlers.again));
  }

  // What went wrong, in a line, with a button that waits as long as the server asked to.
  #faultElement(fault, isLast) {
    const line = el("p", { class: "fault", role: "alert" }, visible(fault.message));
    if (!isLast) return line;
    const button = el("button", { type: "button", click: this.#handlers.again });
    const tick = () => {
      const left = Math.ceil((fault.retryAt - Date.now()) / 1000);
      button.disabled = left > 0;
      button.replaceChildren(icon("again"), left > 0 ? `Try again in ${left} s` : "Try again");
      if (left > 0) setTimeout(tick, 500);
    };
    tick();
    line.append(" ", button);
    return line;
  }
}

// Args: progress: `prompt_progress` of the server. Cached tokens took no time.
function readingText({ total, cache, processed, time_ms }) {
  const rate = (processed - cache) / (time_ms / 1000);
  const told = `Reading: ${count(processed)} of ${plural(total, "token")}`;
  if (!(rate > 0) || !Number.isFinite(rate)) return told;
  return `${told} · ${count(rate)} tokens/s · ${duration((total - processed) / rate)} left`;
}

function callElement({ name, arguments: written }) {
  let shown = written;
  try {
    shown = JSON.stringify(JSON.parse(written), null, 2);
  } catch {
    // It has not come whole yet, or never will: it is shown as it is.
  }
  return el(
    "figure",
    { class: "code call" },
    el("figcaption", {}, el("span", {}, "Tool call: ", el("b", {}, visible(name)))),
    el("pre", { tabindex: 0 }, el("code", {}, visible(shown))),
  );
}

const MOST_ANNOUNCED = 3000;

// Tell an answer to those who hear the page: once, when it has ended.
export function announceAnswer({ text, fault }) {
  if (fault) return; // its line is an alert already
  announce(
    text.length > MOST_ANNOUNCED
      ? `${text.slice(0, MOST_ANNOUNCED)} … The answer goes on.`
      : text || "The answer is empty.",
  );
}
