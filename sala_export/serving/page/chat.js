// Conversations and the turns in them. Several conversations may be answered at once, and one of them is shown.
import * as api from "./api.js";
import * as store from "./store.js";
import { announce, byId } from "./dom.js";
import { Answer, Question, announceAnswer } from "./messages.js";

const SAVE_EVERY = 1000;
const NEAR_END = 80;

const newConversation = () => ({
  id: crypto.getRandomValues(new Uint32Array(4)).join("-"), // randomUUID is missing where the address is no https
  title: "",
  updated: Date.now(),
  context: null,
  messages: [],
});

const titleOf = (text) => text.trim().split("\n")[0].slice(0, 80) || "Conversation";

// What the server is sent of a message.
function sent(message) {
  if (message.role === "user")
    return { role: "user", content: [...message.files.map(({ text }) => text), message.text].join("\n\n") };
  const calls = message.calls.filter((call) => isObject(call.arguments));
  const content = { role: "assistant", content: message.text };
  if (calls.length === 0) return content;
  const called = calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return { ...content, tool_calls: called };
}

function isObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    return false; // the model wrote something else, and the server would refuse it
  }
}

// What the server is asked. A context brings the system message that it was read behind.
function requestOf({ context, messages }, model) {
  const { system, temperature, topP, maxTokens, thinking } = store.settings();
  const isWithSystem = system && !context;
  return {
    model,
    messages: [...(isWithSystem ? [{ role: "system", content: system }] : []), ...messages.map(sent)],
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
    ...(context ? { context } : {}),
    ...(temperature === null ? {} : { temperature }),
    ...(topP === null ? {} : { top_p: topP }),
    ...(maxTokens === null ? {} : { max_tokens: maxTokens }),
    ...(thinking ? { chat_template_kwargs: { enable_thinking: thinking === "on" } } : {}),
  };
}

// Changes an answer by a chunk of it.
function take(answer, chunk) {
  if (chunk.prompt_progress) answer.progress = chunk.prompt_progress;
  const choice = chunk.choices[0];
  if (!choice) return;
  const { content, reasoning_content: thinking, tool_calls: calls } = choice.delta;
  answer.text += content ?? "";
  answer.thinking += thinking ?? "";
  for (const part of calls ?? []) {
    answer.calls[part.index] ??= { id: part.id, name: part.function.name, arguments: "" };
    answer.calls[part.index].arguments += part.function.arguments ?? "";
  }
  if (choice.finish_reason) answer.reason = choice.finish_reason;
}

export class Chat {
  #handlers;
  #views = new Map(); // by message of the conversation that is shown
  #turns = new Map(); // {conversation, controller} by id of the conversation
  #log = byId("log");
  #messages = byId("messages");

  // Args: handlers: `changed` when the list of conversations or what can be done now has changed; `answered` with
  // {usage, rate} of an answer; `unauthorized` gives a promise of whether there is a key now; `edit` with a message.
  constructor(handlers) {
    this.#handlers = handlers;
    this.model = null;
    this.current = newConversation();
    this.#log.addEventListener("scroll", () => this.#followed());
  }

  get isBusy() {
    return this.#turns.has(this.current.id);
  }

  begin() {
    this.#show(newConversation());
  }

  async open(id) {
    const going = this.#turns.get(id)?.conversation;
    const conversation = going ?? (await store.load(id));
    if (!conversation) return false;
    const last = conversation.messages.at(-1);
    // The page was closed while this answer came.
    if (!going && last?.role === "assistant" && last.reason === null && !last.fault) last.reason = "interrupted";
    this.#show(conversation);
    return true;
  }

  #show(conversation) {
    this.current = conversation;
    this.#views.clear();
    this.#draw();
    this.toEnd();
  }

  // Make what is missing, drop what is gone, and let the others know what they can do.
  #draw() {
    const { messages } = this.current;
    const known = new Set(messages);
    for (const [message, view] of this.#views) {
      if (known.has(message)) continue;
      view.element.remove();
      this.#views.delete(message);
    }
    if (this.#views.size === 0) this.#messages.replaceChildren();
    const lastQuestion = messages.findLastIndex((message) => message.role === "user");
    for (const [place, message] of messages.entries()) {
      const isLast = place === messages.length - 1 || place === lastQuestion;
      const isNew = !this.#views.has(message);
      if (isNew) this.#views.set(message, this.#viewOf(message));
      const view = this.#views.get(message);
      view.update({ isLast, isBusy: this.isBusy });
      if (isNew) this.#messages.append(view.element);
    }
    this.#handlers.changed();
  }

  #viewOf(message) {
    if (message.role === "user") return new Question(message, { edit: () => this.#handlers.edit(message) });
    return new Answer(message, { again: () => this.again() });
  }

  // Ask something. Args: replaces: the question that this one takes the place of, with all that came after it.
  ask(text, files, { replaces = null } = {}) {
    const conversation = this.current;
    if (replaces) conversation.messages.length = conversation.messages.indexOf(replaces);
    conversation.title ||= titleOf(text || files[0].name);
    conversation.messages.push({ role: "user", text, files });
    return this.#answer(conversation);
  }

  // Answer the last question anew.
  again() {
    const { messages } = this.current;
    if (this.isBusy) return undefined;
    if (messages.at(-1)?.role === "assistant") messages.pop();
    return this.#answer(this.current);
  }

  stop() {
    this.#turns.get(this.current.id)?.controller.abort();
  }

  async #answer(conversation) {
    const turn = { conversation, controller: new AbortController() };
    const request = requestOf(conversation, this.model);
    const answer = { role: "assistant", text: "", thinking: "", calls: [], reason: null, fault: null, progress: null };
    conversation.messages.push(answer);
    this.#turns.set(conversation.id, turn);
    this.#draw();
    this.toEnd();
    announce("Sent.");
    this.#save(conversation);
    let isRefused = false;
    try {
      await this.#stream(turn, answer, request);
    } catch (error) {
      if (error.name === "AbortError") answer.reason = "stopped";
      else if (error instanceof api.ApiError) {
        answer.fault = { message: error.message, retryAt: Date.now() + error.retryAfter * 1000 };
        isRefused = error.status === 401;
      } else throw error;
    } finally {
      answer.progress = null;
      await this.#save(conversation); // what is seen to have ended is there after a reload
      this.#turns.delete(conversation.id);
      if (conversation === this.current) {
        this.#draw();
        this.#follow();
        announceAnswer(answer);
      } else this.#handlers.changed();
    }
    if (isRefused && (await this.#handlers.unauthorized()) && this.current.messages.at(-1) === answer)
      await this.again();
  }

  async #stream(turn, answer, request) {
    let saved = performance.now();
    let first = null;
    for await (const chunk of api.chat(request, turn.controller.signal)) {
      take(answer, chunk);
      if (first === null && (answer.text || answer.thinking || answer.calls.length)) first = performance.now();
      if (chunk.usage) this.#handlers.answered(chunk.usage, first === null ? 0 : (performance.now() - first) / 1000);
      if (turn.conversation === this.current) this.#views.get(answer)?.grow(() => this.#follow());
      if (performance.now() - saved > SAVE_EVERY) {
        saved = performance.now();
        this.#save(turn.conversation);
      }
    }
  }

  async #save(conversation) {
    if (conversation.isGone) return;
    conversation.updated = Date.now();
    await store.save(conversation);
    this.#handlers.changed();
  }

  rename(title) {
    this.current.title = title;
    this.#save(this.current);
  }

  choose(context) {
    this.current.context = context;
    if (this.current.messages.length > 0) this.#save(this.current);
    this.#handlers.changed();
  }

  async remove() {
    this.stop();
    this.current.isGone = true;
    await store.remove(this.current.id);
    this.begin();
  }

  // Stay at the end of what grows, unless the reader has left it.

  #isAtEnd = true;

  #followed() {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    this.#isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
    byId("to-end").hidden = this.#isAtEnd;
  }

  #follow() {
    if (this.#isAtEnd) this.toEnd();
    else this.#followed();
  }

  toEnd() {
    this.#isAtEnd = true;
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#followed();
  }
}
