// What the browser keeps: conversations in IndexedDB, settings in localStorage, the key for as long as the tab is open
// unless it should be remembered. Where the browser keeps nothing, the page works on and says so once.

const SETTINGS = "sala-settings";
const KEY = "sala-key";
const BLANK = { system: "", temperature: null, topP: null, maxTokens: null, thinking: "", theme: "" };

let warn = () => {};
let isWarned = false;

// Args: whom to tell what is not kept. It is told once.
export function onTrouble(tell) {
  warn = tell;
}

function trouble(error) {
  if (isWarned) return;
  isWarned = true;
  const reason = error.name === "QuotaExceededError" ? "its storage is full" : "it forbids pages to store anything";
  warn(`This browser does not keep your conversations: ${reason}. Export those that you need.`);
}

// Browsers refuse with a DOMException. Anything else is a fault of this page.
function refused(error) {
  if (!(error instanceof DOMException)) throw error;
  trouble(error);
}

function attempt(work) {
  try {
    return work();
  } catch (error) {
    refused(error);
    return null;
  }
}

// Settings

let current = { ...BLANK };

function loadSettings() {
  const text = attempt(() => localStorage.getItem(SETTINGS));
  try {
    current = { ...BLANK, ...JSON.parse(text ?? "{}") };
  } catch {
    current = { ...BLANK }; // somebody else wrote there
  }
}

export const settings = () => current;

export function saveSettings(changes) {
  current = { ...current, ...changes };
  attempt(() => localStorage.setItem(SETTINGS, JSON.stringify(current)));
}

// The conversation that this tab shows, so that a reload shows it again.
const OPEN = "sala-open";
export const shownId = () => attempt(() => sessionStorage.getItem(OPEN));
export const setShownId = (id) => attempt(() => sessionStorage.setItem(OPEN, id));

// The key

let heldKey = "";
export const key = () => heldKey;
export const isKeyRemembered = () => Boolean(attempt(() => localStorage.getItem(KEY)));

function loadKey() {
  heldKey = attempt(() => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY)) ?? "";
}

export function saveKey(value, { remember }) {
  heldKey = value;
  attempt(() => {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (value) (remember ? localStorage : sessionStorage).setItem(KEY, value);
  });
}

// A header holds no other characters than these.
export const isPossibleKey = (value) => /^[\x21-\x7e]*$/.test(value);

// Conversations. What their list needs lies apart, so that a page with a thousand of them begins at once.

const PARTS = ["heads", "conversations"];
let database = null;
const unkept = new Map();

const settled = (asked) =>
  new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });

export async function open() {
  loadSettings();
  loadKey();
  try {
    const asked = indexedDB.open("sala-export", 1);
    asked.onupgradeneeded = () => PARTS.forEach((part) => asked.result.createObjectStore(part, { keyPath: "id" }));
    database = await settled(asked);
  } catch (error) {
    refused(error);
  }
}

// One change or question. Gives what `work` asked for when it has been written.
async function transaction(mode, work) {
  const going = database.transaction(PARTS, mode);
  const ended = new Promise((resolve, reject) => {
    going.oncomplete = resolve;
    going.onabort = () => reject(going.error ?? new DOMException("the change was not kept"));
  });
  ended.catch(() => {}); // the same fault may come out of `work` first
  const result = await work(going.objectStore(PARTS[0]), going.objectStore(PARTS[1]));
  await ended;
  return result;
}

// What the database gives, or null if there is none, or if it refuses.
async function attemptLater(work) {
  if (!database) return null;
  try {
    return (await work()) ?? null;
  } catch (error) {
    refused(error);
    return null;
  }
}

const headOf = ({ id, title, updated }) => ({ id, title, updated });

// Titles with ids, the one that was used last first.
export async function list() {
  const known = (await attemptLater(() => transaction("readonly", (heads) => settled(heads.getAll())))) ?? [];
  const heads = new Map([...known, ...[...unkept.values()].map(headOf)].map((head) => [head.id, head]));
  return [...heads.values()].sort((a, b) => b.updated - a.updated);
}

export async function load(id) {
  if (unkept.has(id)) return unkept.get(id);
  return attemptLater(() => transaction("readonly", (_, whole) => settled(whole.get(id))));
}

// What cannot be written stays in memory, as long as the page is open.
export async function save(conversation) {
  unkept.set(conversation.id, conversation);
  const isKept = await attemptLater(() =>
    transaction("readwrite", (heads, whole) => {
      heads.put(headOf(conversation));
      whole.put(conversation);
      return true;
    }),
  );
  if (isKept) unkept.delete(conversation.id);
}

export async function remove(id) {
  unkept.delete(id);
  await attemptLater(() =>
    transaction("readwrite", (heads, whole) => {
      heads.delete(id);
      whole.delete(id);
    }),
  );
}
