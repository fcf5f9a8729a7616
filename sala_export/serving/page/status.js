// The line at the bottom: what the server does, and how the last answer went.
import * as api from "./api.js";
import { byId, bytes, count, plural } from "./dom.js";

const EVERY = 4000;

export class Status {
  #model = "";
  #handlers;
  #isAsking = false;

  // Args: handlers: `tick` is called after each look.
  constructor(handlers) {
    this.#handlers = handlers;
    setInterval(() => document.visibilityState === "visible" && this.look(), EVERY);
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.look());
  }

  of(model) {
    this.#model = model;
    this.look();
  }

  async look() {
    if (this.#isAsking || !this.#model) return;
    this.#isAsking = true;
    try {
      this.#draw(await api.metrics(AbortSignal.timeout(EVERY)));
      this.#handlers.tick();
    } catch (error) {
      if (!(error instanceof api.ApiError) && error.name !== "TimeoutError") throw error;
      const told =
        error.status === 401 ? `${this.#model} · needs a key` : error.message || "The server cannot be reached.";
      byId("of-server").textContent = told;
    } finally {
      this.#isAsking = false;
    }
  }

  #draw(values) {
    const queue = [
      ["waiting", "waiting"],
      ["prefill", "reading"],
      ["generate", "answering"],
    ]
      .map(([stage, word]) => [values[`sala_requests_${stage}`] ?? 0, word])
      .filter(([number]) => number > 0)
      .map(([number, word]) => `${count(number)} ${word}`);
    byId("of-server").textContent = [
      this.#model,
      `${bytes(values.sala_cache_bytes ?? 0)} of memory`,
      plural(values.sala_kept_contexts ?? 0, "kept context"),
      queue.join(", ") || "idle",
    ].join(" · ");
  }

  // Args: seconds: from the first token of the answer to the last.
  answered({ prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details }, seconds) {
    const parts = [];
    if (tokens > 1 && seconds > 0) parts.push(`${count((tokens - 1) / seconds)} tokens/s`);
    parts.push(`${count(details.cached_tokens)} of ${plural(prompt, "token")} cached`);
    byId("of-answer").textContent = parts.join(" · ");
  }
}
