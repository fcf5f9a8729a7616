// The inside of a paragraph: emphasis, code, links. One pass, and nothing is looked for twice.
import { el, visible } from "./dom.js";

const SPECIAL = /[\\`*_~![<]|https?:\/\//g;
const ESCAPED = /[!-/:-@[-`{-~]/;
// Texts of links hold no brackets, and all parts have a greatest length: that keeps hostile texts cheap.
const LINK =
  /!?\[([^[\]]{0,1000})\]\( {0,9}(<[^<>\n]{0,2000}>|[^\s()<>]{0,2000}(?:\([^\s()<>]{0,1000}\)[^\s()<>]{0,1000}){0,3})(?:\s{1,9}(?:"[^"]{0,500}"|'[^']{0,500}'))?\s{0,9}\)/y;
const AUTOLINK = /<((?:https?|mailto):[^\s<>]{1,2000})>/iy;
const BREAK = /<br ?\/?>/iy;
const ADDRESS = /https?:\/\/[^\s<>"'`\\|\u3000-\u303f\uff00-\uffef]{1,2000}/y;
const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const MOST_OPEN = 10;

// An address that may be followed from here, or null.
function allowed(text) {
  const address = URL.canParse(text) ? new URL(text) : null;
  return address && PROTOCOLS.has(address.protocol) ? address : null;
}

// A link never hides where it leads: if its text is not its address, the host stands behind it.
function link(address, text) {
  const anchor = el("a", {
    href: address.href,
    rel: "noopener noreferrer nofollow",
    target: "_blank",
    title: visible(address.href),
  });
  if (text === null) anchor.append(visible(address.href));
  else appendInline(anchor, text, { withLinks: false });
  const whole = document.createDocumentFragment();
  whole.append(anchor);
  if (text !== null && text !== address.href) {
    const place = address.host || address.href.replace(/^mailto:/, "");
    whole.append(el("span", { class: "host" }, ` (${visible(place)})`));
  }
  return whole;
}

const isSpace = (character) => character === "" || /\s/u.test(character);
const isPunctuation = (character) => /[\p{P}\p{S}]/u.test(character);
// Chinese and Japanese put no spaces around what is emphasised.
const isUnspaced = (character) => /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}]/u.test(character);

// Whether a run of * or _ may begin and end emphasis, by the characters around it.
function sides(text, start, end) {
  const before = characterBefore(text, start);
  const after = end < text.length ? String.fromCodePoint(text.codePointAt(end)) : "";
  const opens =
    !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before) || isUnspaced(before));
  const closes =
    !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after) || isUnspaced(after));
  if (text[start] !== "_") return { opens, closes };
  return { opens: opens && (!closes || isPunctuation(before)), closes: closes && (!opens || isPunctuation(after)) };
}

function characterBefore(text, at) {
  if (at === 0) return "";
  const code = text.charCodeAt(at - 1);
  return code >= 0xdc00 && code <= 0xdfff && at > 1 ? text.slice(at - 2, at) : text[at - 1];
}

// Whether one run may end what another began. Of marks that could do both, lengths decide: CommonMark's rule of three.
function isPair(begin, end) {
  if (begin.mark === "~" || !(begin.closes || end.opens) || (begin.whole + end.whole) % 3 !== 0) return true;
  return begin.whole % 3 === 0 && end.whole % 3 === 0;
}

// Elements and texts with those emphases around them whose end has not come yet.
class Builder {
  #open = [{ mark: "", length: 0, parts: [] }];

  add(part) {
    if (part !== "") this.#open.at(-1).parts.push(part);
  }

  // A run of marks ends emphases that are open, begins one, or is text.
  marks(mark, whole, { opens, closes }) {
    let length = whole;
    while (closes && length > 0) {
      const found = this.#open.findLastIndex((each) => each.mark === mark && isPair(each, { whole, opens }));
      if (found < 0 || (mark === "~" && length !== 2)) break;
      while (this.#open.length > found + 1) this.#giveUp();
      const emphasis = this.#open[found];
      const used = Math.min(2, length, emphasis.length);
      const tag = mark === "~" ? "del" : used === 2 ? "strong" : "em";
      const element = el(tag);
      appendAll(element, joined(emphasis.parts));
      length -= used;
      emphasis.length -= used;
      if (emphasis.length > 0) emphasis.parts = [element];
      else {
        this.#open.pop();
        this.add(element);
      }
    }
    if (length === 0) return;
    if (opens && this.#open.length <= MOST_OPEN && length <= (mark === "~" ? 2 : 3) && !(mark === "~" && length === 1))
      this.#open.push({ mark, whole, length, closes, parts: [] });
    else this.add(mark.repeat(length));
  }

  // The last emphasis has no end, so its marks are text.
  #giveUp() {
    const { mark, length, parts } = this.#open.pop();
    this.add(mark.repeat(length));
    for (const part of parts) this.add(part);
  }

  end() {
    while (this.#open.length > 1) this.#giveUp();
    return joined(this.#open[0].parts);
  }
}

// Neighbouring texts as one, so that there are few nodes.
function joined(parts) {
  const whole = [];
  for (const part of parts) {
    if (typeof part === "string" && typeof whole.at(-1) === "string") whole[whole.length - 1] += part;
    else whole.push(part);
  }
  return whole.map((part) => (typeof part === "string" ? visible(part) : part));
}

// One by one, because a call takes no more than some ten thousand arguments.
function appendAll(element, parts) {
  for (const part of parts) element.append(part);
}

// Finds the end of code: the next run of as many backquotes.
class Backquotes {
  #places = new Map();

  constructor(text) {
    for (const { 0: run, index } of text.matchAll(/`+/g)) {
      const places = this.#places.get(run.length) ?? [];
      places.push(index);
      this.#places.set(run.length, places);
    }
    for (const places of this.#places.values()) places.reverse();
  }

  next(length, from) {
    const places = this.#places.get(length) ?? [];
    while (places.length > 0 && places.at(-1) < from) places.pop();
    return places.at(-1) ?? -1;
  }
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

// What stands at a special character: {end, part}, or null if it is text.
function partAt(text, at, backquotes, withLinks) {
  const character = text[at];
  if (character === "\\") {
    if (text[at + 1] === "\n") return { end: at + 2, part: el("br") };
    return ESCAPED.test(text[at + 1] ?? "") ? { end: at + 2, part: text[at + 1] } : null;
  }
  if (character === "`") return code(text, at, backquotes);
  if (character === "<") {
    const found = matchAt(BREAK, text, at);
    if (found) return { end: at + found[0].length, part: el("br") };
  }
  return withLinks ? linkAt(text, at) : null;
}

function code(text, at, backquotes) {
  const length = runLength(text, at);
  const end = backquotes.next(length, at + length);
  if (end < 0) return { end: at + length, part: "`".repeat(length) };
  let inside = text.slice(at + length, end).replaceAll("\n", " ");
  if (/^ .* $/.test(inside) && inside.trim()) inside = inside.slice(1, -1);
  return { end: end + length, part: el("code", { dir: "ltr" }, visible(inside)) };
}

// An address without the marks that belong to the sentence around it. A parenthesis does if it was not opened inside.
function withoutEnd(address) {
  let closed = address.split(")").length - address.split("(").length;
  let end = address.length;
  while (end > 0 && (/[.,:;!?*_~]/.test(address[end - 1]) || (address[end - 1] === ")" && closed > 0))) {
    if (address[end - 1] === ")") closed -= 1;
    end -= 1;
  }
  return address.slice(0, end);
}

function linkAt(text, at) {
  const character = text[at];
  if (character === "<") {
    const found = matchAt(AUTOLINK, text, at);
    const address = found && allowed(found[1]);
    return address ? { end: at + found[0].length, part: link(address, null) } : null;
  }
  if (character === "h") {
    const found = matchAt(ADDRESS, text, at);
    if (!found) return null;
    const written = withoutEnd(found[0]);
    const address = allowed(written);
    return address ? { end: at + written.length, part: link(address, null) } : null;
  }
  const found = matchAt(LINK, text, at);
  const address = found && allowed(found[2].replace(/^<|>$/g, ""));
  // Pictures are not loaded: to ask for one can tell a stranger what was said here.
  return address ? { end: at + found[0].length, part: link(address, found[1] || null) } : null;
}

// Append what a text of one paragraph says to an element.
export function appendInline(element, text, { withLinks = true } = {}) {
  const builder = new Builder();
  const backquotes = new Backquotes(text);
  let from = 0;
  for (let at = nextSpecial(text, 0); at >= 0; at = nextSpecial(text, from)) {
    builder.add(text.slice(from, at));
    const character = text[at];
    if (character === "*" || character === "_" || character === "~") {
      from = at + runLength(text, at);
      builder.marks(character, from - at, sides(text, at, from));
      continue;
    }
    const found = partAt(text, at, backquotes, withLinks);
    from = found ? found.end : at + 1;
    builder.add(found ? found.part : character);
  }
  builder.add(text.slice(from));
  appendAll(element, builder.end());
}

function nextSpecial(text, from) {
  SPECIAL.lastIndex = from;
  return SPECIAL.exec(text)?.index ?? -1;
}
