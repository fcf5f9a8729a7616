// Puts the parts of the page together.
import * as api from "./api.js";
import * as store from "./store.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Contexts } from "./contexts.js";
import { applyTheme, ask, askForKey, editSettings, switchTheme } from "./dialogs.js";
import { byId, el, icon, iconButton, visible } from "./dom.js";
import { Status } from "./status.js";

// A line above the question, until it is closed. Args: again: what a button to try again does.
function tell(text, again = null) {
  const line = el("div", { class: "notice", role: "status" }, el("p", {}, text));
  if (again) {
    const retry = () => {
      line.remove();
      again();
    };
    line.append(el("button", { type: "button", click: retry }, icon("again"), "Try again"));
  }
  line.append(iconButton("close", "Close this line", () => line.remove()));
  byId("tray").append(line);
}

async function unauthorized() {
  const isGiven = await askForKey();
  if (isGiven && !chat.model) await connect();
  return isGiven;
}

const chat = new Chat({
  changed: () => drawAll(),
  answered: (usage, seconds) => status.answered(usage, seconds),
  unauthorized,
  edit: (message) => composer.edit(message),
});
const composer = new Composer(chat);
const contexts = new Contexts(chat, composer, { unauthorized, tell, settings: store.settings });
const status = new Status({ tick: () => contexts.list?.some((each) => each.status !== "ready") && contexts.refresh() });

// The model and the contexts. It is tried until the server is there.
async function connect() {
  try {
    const name = await api.model();
    chat.model = name;
    status.of(name);
    await contexts.refresh();
    composer.update();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    byId("of-server").textContent = error.message;
    if (error.status === 401) await unauthorized();
    else setTimeout(connect, 3000);
  }
}

// The list of conversations, and what can be done with the one that is shown.

let drawn = 0;

async function drawAll() {
  const { current } = chat;
  byId("title").textContent = visible(current.title) || "New conversation";
  document.title = current.title ? `${visible(current.title)} · sala-export` : "sala-export";
  byId("chat-actions").hidden = current.messages.length === 0;
  document.body.classList.toggle("blank", current.messages.length === 0);
  store.setShownId(current.messages.length > 0 ? current.id : "");
  composer.update();
  contexts.draw();
  drawn += 1;
  const mine = drawn;
  const list = await store.list();
  if (mine !== drawn) return; // a newer list is on its way
  byId("chats-part").hidden = list.length === 0;
  const held = byId("chats").contains(document.activeElement) ? document.activeElement.dataset.id : null;
  byId("chats").replaceChildren(...list.map((each) => el("li", {}, chatButton(each))));
  if (held) byId("chats").querySelector(`[data-id="${held}"]`)?.focus();
}

function chatButton({ id, title }) {
  const open = async () => {
    await chat.open(id);
    closeSide();
    composer.focus();
  };
  return el(
    "button",
    { type: "button", "data-id": id, dir: "auto", "aria-current": id === chat.current.id && "true", click: open },
    visible(title),
  );
}

function begin() {
  chat.begin();
  closeSide();
  composer.focus();
}

async function rename() {
  const given = await ask({
    title: "Rename the conversation",
    field: "Title",
    value: chat.current.title,
    action: "Rename",
  });
  if (given?.answer) chat.rename(given.answer);
}

async function remove() {
  const text = "It is kept in this browser alone, so it is gone then.";
  if (!(await ask({ title: `Delete “${visible(chat.current.title)}”?`, text, action: "Delete" }))) return;
  await chat.remove();
  composer.focus();
}

function exportChat() {
  const { title, context, messages } = chat.current;
  const told = { title, model: chat.model, context, messages: messages.map(({ progress, ...message }) => message) };
  const address = URL.createObjectURL(new Blob([JSON.stringify(told, null, 2)], { type: "application/json" }));
  const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "conversation";
  el("a", { href: address, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// The side bar lies over the rest where there is little room.

const narrow = matchMedia("(max-width: 800px)");
const side = byId("side");

function setSide(isOpen) {
  const isDrawer = narrow.matches;
  side.classList.toggle("open", isDrawer && isOpen);
  side.inert = isDrawer && !isOpen;
  document.querySelector("main").inert = isDrawer && isOpen;
  byId("scrim").hidden = !(isDrawer && isOpen);
  byId("side-open").setAttribute("aria-expanded", String(isDrawer && isOpen));
}

function closeSide() {
  const wasOpen = side.classList.contains("open");
  setSide(false);
  if (wasOpen) byId("side-open").focus();
  return wasOpen;
}

function openSide() {
  setSide(true);
  byId("new-chat").focus();
}

const clicks = {
  "new-chat": begin,
  rename,
  delete: remove,
  export: exportChat,
  "to-end": () => chat.toEnd(),
  "side-open": openSide,
  "side-close": closeSide,
  scrim: closeSide,
  "switch-theme": switchTheme,
  "open-settings": async () => {
    await editSettings();
    if (!chat.model) await connect();
  },
};
for (const [id, click] of Object.entries(clicks)) byId(id).addEventListener("click", click);

addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (closeSide()) return;
  if (chat.isBusy) chat.stop();
  else composer.leaveEdit();
});
// Another tab may have changed the conversations meanwhile.
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && drawAll());
narrow.addEventListener("change", () => setSide(false));
// On phones whose browsers lay the keyboard over the page, this is the part above it.
window.visualViewport?.addEventListener("resize", () => {
  document.documentElement.style.setProperty("--height", `${visualViewport.height}px`);
});

store.onTrouble(tell);
await store.open();
applyTheme();
setSide(false);
const shown = store.shownId();
if (!shown || !(await chat.open(shown))) chat.begin();
composer.focus();
await connect();
