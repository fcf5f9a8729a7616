// Small helpers to make elements, and to write numbers for people.

// An element. Properties that are functions are handlers of events, all others are attributes. Children that are
// strings become text, never markup.
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

// One of the drawings at the top of index.html.
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  drawing.append(use);
  drawing.setAttribute("aria-hidden", "true");
  return drawing;
}

export function iconButton(name, label, click) {
  return el("button", { type: "button", class: "icon", "aria-label": label, title: label, click }, icon(name));
}

export const byId = (id) => document.getElementById(id);

// Characters that change the direction of what follows can make a text look like another one. They are shown instead.
const DIRECTIONS = /[\u202A-\u202E\u2066-\u2069]/g;
export function visible(text) {
  return text.replace(DIRECTIONS, (mark) => `[U+${mark.codePointAt(0).toString(16).toUpperCase()}]`);
}

// Tell it to those who hear the page.
export function announce(text) {
  byId("announce").textContent = text;
}

// A text goes to the clipboard. Where the browser has none for this address, by way of a selection.
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = el("textarea", { class: "heard", readonly: true });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  if (!done) throw new Error("the browser refuses");
}

// A button that copies what `source` returns, and says whether it did.
export function copyButton(label, source) {
  const button = iconButton("copy", label, async () => {
    let told = "Copied";
    try {
      await copy(source());
    } catch {
      told = "The browser did not let it be copied";
    }
    announce(told);
    button.dataset.told = told;
    setTimeout(() => delete button.dataset.told, 1500);
  });
  return button;
}

export const count = (number) => Math.round(number).toLocaleString("en");

export function bytes(number) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${unit === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

// A bar with what it stands for. `set` moves it and says how far it is.
export class Bar {
  constructor(label) {
    this.bar = el("progress", { "aria-label": label, max: 1 });
    this.text = el("span", { class: "muted" });
    this.element = el("div", { class: "bar" }, this.bar, this.text);
  }

  // A `share` of null: it goes on, and nobody knows how far.
  set(share, text) {
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
    this.text.textContent = text;
  }
}
