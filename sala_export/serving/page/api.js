// The server's endpoints. Addresses are relative to the page, so that it also works behind a proxy that serves it
// under a path.
import * as store from "./store.js";

// An answer that is no success. `status` is 0 if there was no answer at all, `retryAfter` counts seconds.
export class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = "The server cannot be reached.";
const LOST = "The connection was lost before the answer had ended.";

const address = (path) => new URL(path, document.baseURI);

function authorization() {
  const key = store.key();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// What the server answers, as JSON. A proxy in between may answer something else.
async function answerOf(path) {
  const response = await request(path);
  try {
    return await response.json();
  } catch {
    throw new ApiError(`The server's answer to ${path} is no JSON.`);
  }
}

async function request(path, { method = "GET", json, signal } = {}) {
  const headers = authorization();
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const body = json === undefined ? undefined : JSON.stringify(json);
    response = await fetch(address(path), { method, headers, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(UNREACHABLE);
  }
  if (!response.ok) {
    const body = await response.text().catch(() => ""); // what came before the connection was lost tells enough
    throw failure(response.status, body, response.headers.get("Retry-After"));
  }
  return response;
}

function failure(status, body, retryAfter) {
  let message;
  try {
    message = JSON.parse(body).error.message;
  } catch {
    message = `The server answered with status ${status}.`; // a proxy in between may answer in its own form
  }
  return new ApiError(message, { status, retryAfter: Number(retryAfter) || 0 });
}

// Splits server-sent events from text that comes in any pieces.
class EventReader {
  #rest = "";

  *push(text) {
    const parts = (this.#rest + text).split("\n\n");
    this.#rest = parts.pop();
    for (const part of parts) {
      const event = { name: "message", data: "" };
      for (const line of part.split("\n")) {
        if (line.startsWith("data: ")) event.data += line.slice(6);
        else if (line.startsWith("event: ")) event.name = line.slice(7);
      }
      if (event.data) yield event; // else it is a comment that keeps the connection open
    }
  }
}

// The chunks of an answer as they come. Throws ApiError if it fails, also in the middle.
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", { method: "POST", json: body, signal });
  const events = new EventReader();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError(LOST);
      for (const { data } of events.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message);
        yield chunk;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(LOST);
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already, which the caller knows
  }
}

// The first name of the model.
export async function model() {
  return (await answerOf("v1/models")).data[0].id;
}

// Gauges and counters by name, without those that have labels.
export async function metrics(signal) {
  const text = await (await request("metrics", { signal })).text();
  const lines = text
    .split("\n")
    .map((line) => line.match(/^(\w+) (\S+)$/))
    .filter(Boolean);
  return Object.fromEntries(lines.map(([, name, value]) => [name, Number(value)]));
}

// The contexts that have a name, or null if this server keeps none.
export async function contexts() {
  try {
    return (await answerOf("v1/contexts")).data;
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

export const deleteContext = (name) => request(`v1/contexts/${encodeURIComponent(name)}`, { method: "DELETE" });

// Send a file to be read as a context. `fetch` does not tell how much has been sent, so this is the older way.
// Calls `onUpload` with bytes sent, and `onProgress` with each `context.progress`. Gives the context.
export function readContext(name, file, { system, signal, onUpload, onProgress }) {
  const target = address("v1/contexts");
  target.searchParams.set("name", name);
  target.searchParams.set("stream", "true");
  if (system) target.searchParams.set("system", system);
  const events = new EventReader();
  const sending = new XMLHttpRequest();
  let taken = 0;
  let context = null;
  let fault = null;

  function take() {
    const text = sending.responseText.slice(taken);
    taken += text.length;
    for (const { name: kind, data } of events.push(text)) {
      const told = JSON.parse(data);
      if (told.error) fault = new ApiError(told.error.message);
      else if (kind === "context.ready") context = told;
      else if (kind === "context.progress") onProgress(told);
    }
  }

  return new Promise((resolve, reject) => {
    sending.open("POST", target);
    for (const [header, value] of Object.entries(authorization())) sending.setRequestHeader(header, value);
    sending.setRequestHeader("Content-Type", "text/plain; charset=utf-8");
    sending.upload.onprogress = (event) => onUpload(event.loaded);
    sending.onprogress = () => sending.status < 300 && take();
    sending.onerror = () => reject(new ApiError("The connection was lost while the file was sent or read."));
    sending.onabort = () => reject(new DOMException("stopped", "AbortError"));
    sending.onload = () => {
      if (sending.status >= 300) {
        reject(failure(sending.status, sending.responseText, sending.getResponseHeader("Retry-After")));
        return;
      }
      take();
      if (context && !fault) resolve(context);
      else reject(fault ?? new ApiError(LOST));
    };
    signal.addEventListener("abort", () => sending.abort());
    sending.send(file);
  });
}
