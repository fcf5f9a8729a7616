// Markdown as elements. Text of a model only ever becomes text nodes and a few kinds of elements without handlers, so
// nothing that a model writes runs, loads or leaves this page. The time is linear in the length of the text, and
// elements are nested to a bounded depth.
import { copyButton, el, visible } from "./dom.js";
import { appendInline } from "./inline.js";

const MOST_DEPTH = 12;
// Longer answers end as plain text: to lay out a million elements takes a browser minutes.
const MOST_CHARACTERS = 200_000;

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const ITEM = /^( {0,3})([-+*]|\d{1,9}[.)])( +|$)/;
const HEADING = /^ {0,3}(#{1,6})(?: |$)/;
const QUOTE = /^ {0,3}> ?/;
// A single dash may become an item of a list while the text comes, so it makes no heading.
const UNDERLINE = /^ {0,3}(={2,}|-{3,}) *$/;
const MOST_COLUMNS = 100;
const DELIMITER = /^:?-+:?$/;

const isBlank = (line) => line.trim() === "";
const isRule = (line) => /^ {0,3}[-*_]/.test(line) && /^(-{3,}|\*{3,}|_{3,})$/.test(line.replaceAll(" ", ""));
const indentOf = (line) => line.length - line.trimStart().length;

function fenceOf(line) {
  const found = FENCE.exec(line);
  return found && !(found[1][0] === "`" && found[2].includes("`")) ? found : null;
}

function cellsOf(line) {
  const row = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const delimiters = cellsOf(lines[at + 1]);
  if (delimiters.length > MOST_COLUMNS) return false;
  return delimiters.every((cell) => DELIMITER.test(cell)) && delimiters.length === cellsOf(lines[at]).length;
}

// Whether a line ends the paragraph before it.
function endsParagraph(lines, at) {
  const line = lines[at];
  if (isBlank(line) || HEADING.test(line) || QUOTE.test(line) || fenceOf(line) || isRule(line)) return true;
  const item = ITEM.exec(line);
  const opens =
    item && item[3] !== "" && !isBlank(line.slice(item[0].length)) && !(/\d/.test(item[2]) && parseInt(item[2]) !== 1);
  return Boolean(opens) || isTable(lines, at);
}

// Where the block that begins at line `at` ends, and the function that makes its element.
function blockAt(lines, at) {
  const line = lines[at];
  if (indentOf(line) >= 4) return indentedCode(lines, at);
  const fence = fenceOf(line);
  if (fence) return fencedCode(lines, at, fence);
  if (HEADING.test(line)) return { end: at + 1, make: () => heading(line) };
  if (isRule(line)) return { end: at + 1, make: () => el("hr") };
  if (QUOTE.test(line)) return quote(lines, at);
  const item = ITEM.exec(line);
  if (item) return list(lines, at, item);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at);
}

function inlineElement(tag, text) {
  const element = el(tag);
  appendInline(element, text);
  element.dir = "auto";
  return element;
}

function heading(line) {
  const level = HEADING.exec(line)[1].length;
  const text = line
    .trim()
    .slice(level)
    .trim()
    .replace(/(^|(?<= ))#+$/, "")
    .trim();
  // The page has a heading of the first level already, and those of an answer stand below it.
  return inlineElement(`h${Math.min(level + 1, 6)}`, text);
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !endsParagraph(lines, end) && !UNDERLINE.test(lines[end])) end += 1;
  const text = lines
    .slice(at, end)
    .map((line) => line.trimStart())
    .join("\n")
    .trimEnd();
  const under = end < lines.length ? UNDERLINE.exec(lines[end]) : null;
  if (under) return { end: end + 1, make: () => inlineElement(under[1][0] === "=" ? "h2" : "h3", text) };
  return { end, make: () => inlineElement("p", text) };
}

function codeBlock(text, language) {
  const head = el(
    "figcaption",
    {},
    el("span", {}, visible(language)),
    copyButton("Copy the code", () => text),
  );
  return el("figure", { class: "code" }, head, el("pre", { tabindex: 0 }, el("code", { dir: "ltr" }, visible(text))));
}

// Whether a line is of the marks that began the code, and of no fewer.
function closes(marks, line) {
  const closing = line.trim();
  return indentOf(line) < 4 && closing.length >= marks.length && closing === marks[0].repeat(closing.length);
}

function fencedCode(lines, at, fence) {
  let end = at + 1;
  while (end < lines.length && !closes(fence[1], lines[end])) end += 1;
  const indent = indentOf(lines[at]);
  const text = lines
    .slice(at + 1, end)
    .map((line) => line.slice(Math.min(indent, indentOf(line))))
    .join("\n");
  return { end: end + 1, make: () => codeBlock(text, fence[2].trim().split(" ")[0].slice(0, 40)) };
}

function indentedCode(lines, at) {
  let end = at + 1;
  while (end < lines.length && (indentOf(lines[end]) >= 4 || isBlank(lines[end]))) end += 1;
  while (isBlank(lines[end - 1])) end -= 1;
  const text = lines
    .slice(at, end)
    .map((line) => line.slice(4))
    .join("\n");
  return { end, make: () => codeBlock(text, "") };
}

function quote(lines, at) {
  let end = at + 1;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = () => lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return {
    end,
    make(depth) {
      const element = el("blockquote");
      fill(element, inner(), depth + 1);
      return element;
    },
  };
}

// The end of a list, its items as lines without their markers, and whether empty lines stand between its parts.
function itemsOf(lines, at, first) {
  const kind = first[2].slice(-1);
  const items = [];
  let end = at;
  let isLoose = false;
  while (end < lines.length) {
    const marker = ITEM.exec(lines[end]);
    if (!marker || marker[2].slice(-1) !== kind || isRule(lines[end])) break;
    const width =
      marker[1].length + marker[2].length + (marker[3].length > 4 || marker[3] === "" ? 1 : marker[3].length);
    const item = [lines[end].slice(width)];
    let next = end + 1;
    let blanks = 0;
    for (; next < lines.length; next += 1) {
      const line = lines[next];
      if (isBlank(line)) {
        blanks += 1;
        continue;
      }
      const isInside = indentOf(line) >= width;
      // A line that goes on with the paragraph of an item need not be indented.
      if (!isInside && (blanks > 0 || ITEM.test(line) || endsParagraph(lines, next) || isBlank(item.at(-1)))) break;
      for (; blanks > 0; blanks -= 1) item.push("");
      item.push(isInside ? line.slice(width) : line.trimStart());
    }
    items.push(item);
    end = next - blanks;
    const follows = ITEM.exec(lines[next] ?? "");
    if (blanks > 0 && follows && follows[2].slice(-1) === kind) {
      isLoose = true;
      end = next;
    }
  }
  return { end, items, isLoose };
}

function list(lines, at, first) {
  const { end, items, isLoose } = itemsOf(lines, at, first);
  const isNumbered = first[2].length > 1;
  const start = parseInt(first[2]);
  return {
    end,
    make(depth) {
      const element = isNumbered ? el("ol", start === 1 ? {} : { start }) : el("ul");
      let hasGaps = isLoose;
      for (const item of items) {
        const made = el("li");
        hasGaps = fill(made, item, depth + 1) || hasGaps;
        made.dir = "auto"; // an element that has it already is looked through again for each child that it gets
        element.append(made);
      }
      if (!hasGaps) [...element.children].forEach(unwrapParagraphs);
      return element;
    },
  };
}

function unwrapParagraphs(item) {
  for (const child of [...item.children]) if (child.tagName === "P") child.replaceWith(...child.childNodes);
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && !isBlank(lines[end]) && !endsTable(lines[end])) end += 1;
  return {
    end,
    make() {
      const sides = cellsOf(lines[at + 1]).map((cell) => {
        if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
        return "left";
      });
      const row = (line, tag) => {
        const made = el("tr");
        for (const [place, text] of cellsOf(line).slice(0, sides.length).entries()) {
          const cell = inlineElement(tag, text);
          cell.className = sides[place];
          made.append(cell);
        }
        return made;
      };
      const element = el("table", {}, el("thead", {}, row(lines[at], "th")));
      const body = el("tbody");
      for (const line of lines.slice(at + 2, end)) body.append(row(line, "td"));
      if (body.hasChildNodes()) element.append(body);
      return el("div", { class: "table", tabindex: 0 }, element);
    },
  };
}

const endsTable = (line) => HEADING.test(line) || QUOTE.test(line) || fenceOf(line) || isRule(line) || ITEM.test(line);

// Append blocks to an element, and tell whether empty lines stand between them. Too deep inside others, they are text.
function fill(element, lines, depth) {
  if (depth > MOST_DEPTH) {
    element.append(visible(lines.join("\n")));
    return false;
  }
  let isAfterBlank = false;
  let hasGaps = false;
  for (let at = 0; at < lines.length;) {
    if (isBlank(lines[at])) {
      isAfterBlank = element.hasChildNodes();
      at += 1;
      continue;
    }
    hasGaps ||= isAfterBlank;
    isAfterBlank = false;
    const { end, make } = blockAt(lines, at);
    element.append(make(depth));
    at = end;
  }
  return hasGaps;
}

const EXPANDED_TAB = "    ";
const linesOf = (text) =>
  text.split(/\r\n|\n|\r/).map((line) => line.replace(/^[ \t]+/, (indent) => indent.replaceAll("\t", EXPANDED_TAB)));

// Shows a text that grows. What was made of blocks that can no longer change stays as it is.
export class Markdown {
  #element;
  #settled = []; // {end, element} of each block, in order
  #plain = null;

  constructor(element) {
    this.#element = element;
  }

  update(text) {
    // Of the blocks that were there, more text can change the last, and the one before that the last may now belong to.
    this.#drop();
    this.#drop();
    const from = this.#settled.at(-1)?.end ?? 0;
    const shown = text.length > MOST_CHARACTERS ? text.slice(0, MOST_CHARACTERS) : text;
    this.#append(shown, from);
    if (text.length > MOST_CHARACTERS) this.#appendPlain(text.slice(MOST_CHARACTERS));
  }

  #drop() {
    this.#settled.pop()?.element.remove();
  }

  #append(text, from) {
    const raw = text.slice(from);
    const lines = linesOf(raw);
    const ends = endsOf(raw);
    const made = document.createDocumentFragment();
    for (let at = 0; at < lines.length;) {
      if (isBlank(lines[at])) {
        at += 1;
        continue;
      }
      const { end, make } = blockAt(lines, at);
      const element = make(0);
      made.append(element);
      at = Math.min(end, lines.length);
      this.#settled.push({ end: from + ends[at - 1], element });
    }
    this.#element.insertBefore(made, this.#plain);
  }

  #appendPlain(text) {
    if (!this.#plain) {
      this.#plain = el("p", { class: "plain" });
      this.#element.append(this.#plain);
    }
    this.#plain.textContent = visible(text);
  }
}

// Offsets behind the line break of each line.
function endsOf(text) {
  const ends = [...text.matchAll(/\r\n|\n|\r/g)].map((found) => found.index + found[0].length);
  return [...ends, text.length];
}
