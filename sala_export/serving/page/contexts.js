// Texts that the server has read and keeps under a name, and files that become such texts.
import * as api from "./api.js";
import { Bar, announce, byId, bytes, count, duration, el, iconButton, plural, visible } from "./dom.js";
import { ask } from "./dialogs.js";

const MOST_NAME = 128;
const LOOKED_AT = 65536;
const MOST_NAMES_TRIED = 50;

// The name of a context for a file: the characters that names may have, and none that is taken.
function nameFor(file, taken) {
  const stem = file.name.replace(/\.[^.]{1,8}$/, "") || file.name;
  const plain =
    stem
      .normalize("NFKD")
      .replace(/[^A-Za-z0-9._-]+/g, "-")
      .replace(/^[-.]+|-+$/g, "")
      .slice(0, MOST_NAME - 4) || "text";
  let name = plain;
  for (let place = 2; taken.has(name); place += 1) name = `${plain}-${place}`;
  return name;
}

// Why a file cannot be read as a text, or null. Its beginning tells.
async function whyNoText(file) {
  if (file.size === 0) return "it is empty";
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.slice(0, LOOKED_AT).arrayBuffer(), {
      stream: true,
    });
  } catch (error) {
    return error instanceof TypeError ? "it is no text in UTF-8" : "the browser cannot read it";
  }
  return text.includes("\0") ? "it is no text" : null;
}

export class Contexts {
  #chat;
  #composer;
  #handlers;
  #names = new Set(); // of files that are being read
  list; // null if this server keeps no contexts, and undefined until it has told

  // Args: handlers: `unauthorized` as of Chat, `tell` with a line for the tray, `settings` gives the settings.
  constructor(chat, composer, handlers) {
    this.#chat = chat;
    this.#composer = composer;
    this.#handlers = handlers;
    byId("context").addEventListener("change", (event) => chat.choose(event.target.value || null));
    byId("add-file").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", (event) => {
      this.addAll(event.target.files);
      event.target.value = "";
    });
    this.#takeDrops();
  }

  async refresh() {
    this.list = await api.contexts();
    this.draw();
  }

  draw() {
    byId("contexts-part").hidden = !this.list;
    byId("context").hidden = !this.list;
    const list = this.list ?? [];
    byId("no-contexts").hidden = list.length > 0;
    byId("contexts").replaceChildren(...list.map((context) => this.#item(context)));
    this.#drawChoice(list);
  }

  #item(context) {
    const { name, tokens, bytes: size, status, processed } = context;
    const about =
      status === "ready"
        ? `${plural(tokens, "token")} · ${bytes(size)}`
        : `reading: ${count(processed)} of ${count(tokens)}`;
    const isChosen = this.#chat.current.context === name;
    const choose = el(
      "button",
      {
        type: "button",
        title: name,
        "aria-pressed": String(isChosen),
        click: () => this.#chat.choose(isChosen ? null : name),
      },
      el("span", {}, name),
      el("small", {}, about),
    );
    return el(
      "li",
      {},
      choose,
      iconButton("delete", `Delete the context ${name}`, () => this.#delete(name)),
    );
  }

  #drawChoice(list) {
    const select = byId("context");
    const chosen = this.#chat.current.context;
    const options = list
      .filter(({ status }) => status === "ready")
      .map(({ name, tokens }) => [name, `${name} (${count(tokens)} tokens)`]);
    if (chosen && !options.some(([name]) => name === chosen)) options.push([chosen, `${chosen} (not on this server)`]);
    select.replaceChildren(
      el("option", { value: "" }, "No context"),
      ...options.map(([value, text]) => el("option", { value }, text)),
    );
    select.value = chosen ?? "";
  }

  async #delete(name) {
    const text = "The server forgets it. Conversations about it cannot go on until it is read again.";
    if (!(await ask({ title: `Delete ${name}?`, text, action: "Delete" }))) return;
    try {
      await api.deleteContext(name);
      if (this.#chat.current.context === name) this.#chat.choose(null);
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error;
      this.#handlers.tell(`${name} was not deleted: ${error.message}`);
    }
    await this.#refreshQuietly();
  }

  async #refreshQuietly() {
    try {
      await this.refresh();
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error; // the status line tells that the server is away
    }
  }

  addAll(files) {
    for (const file of files) this.#add(file);
  }

  async #add(file) {
    const reason = await whyNoText(file);
    if (reason) {
      this.#handlers.tell(`${visible(file.name)} cannot be read: ${reason}.`);
      return;
    }
    if (this.list === undefined) {
      this.#handlers.tell(`${visible(file.name)} was not read: the server has not answered yet.`, () =>
        this.#add(file),
      );
      return;
    }
    if (this.list === null) {
      this.#composer.attach(file.name, await file.text());
      this.#handlers.tell("This server keeps no contexts, so the text goes with your question.");
      return;
    }
    await this.#read(file);
  }

  async #read(file) {
    const controller = new AbortController();
    const bar = new Bar(`Reading ${file.name}`);
    bar.set(0, "");
    const stop = iconButton("close", `Stop reading ${file.name}`, () => controller.abort());
    const element = el("div", { class: "upload" }, el("bdi", {}, visible(file.name)), bar.element, stop);
    byId("tray").append(element);
    let isAgain = false;
    try {
      const context = await this.#send(file, controller.signal, bar);
      announce(`${file.name} has been read.`);
      if (!this.#chat.current.context) this.#chat.choose(context.name);
    } catch (error) {
      if (error instanceof api.ApiError) isAgain = error.status === 401 && (await this.#handlers.unauthorized());
      else if (error.name !== "AbortError") throw error;
      if (error instanceof api.ApiError && !isAgain) this.#failed(file, error);
    } finally {
      element.remove();
      await this.#refreshQuietly();
    }
    if (isAgain) await this.#read(file);
  }

  #failed(file, error) {
    this.#handlers.tell(`${visible(file.name)} was not read: ${error.message}`, () => this.#read(file));
  }

  // Somebody else may take a name between the list and the upload, so others are tried.
  async #send(file, signal, bar) {
    const refused = new Set();
    for (;;) {
      const name = nameFor(file, new Set([...this.list.map((each) => each.name), ...this.#names, ...refused]));
      this.#names.add(name);
      try {
        return await api.readContext(name, file, {
          system: this.#handlers.settings().system,
          signal,
          onUpload: (sent) => bar.set(sent / file.size, `Sent ${bytes(sent)} of ${bytes(file.size)}`),
          onProgress: (progress) => bar.set(progress.processed / progress.tokens, progressText(progress)),
        });
      } catch (error) {
        if (error.status !== 409 || refused.size >= MOST_NAMES_TRIED) throw error;
        refused.add(name);
      } finally {
        this.#names.delete(name);
      }
    }
  }

  #takeDrops() {
    const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
    let inside = 0; // elements of the page that the file was drawn into and not yet out of
    const mark = (change) => {
      inside = Math.max(0, inside + change);
      byId("drop").hidden = inside === 0;
    };
    addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
    addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
    // A browser that is not told otherwise leaves the page and opens the file.
    addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      mark(-inside);
      this.addAll(event.dataTransfer.files);
    });
  }
}

function progressText({ tokens, processed, tokens_per_second: rate, seconds_left: left }) {
  const parts = [`Read ${count(processed)} of ${plural(tokens, "token")}`];
  if (rate) parts.push(`${count(rate)} tokens/s`);
  if (rate && left) parts.push(`${duration(left)} left`);
  return parts.join(" · ");
}
