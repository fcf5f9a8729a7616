// Dialogs. They close with Escape, and give the focus back to where it was.
import * as store from "./store.js";
import { byId } from "./dom.js";

function whenClosed(dialog) {
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

// Show a dialog until it is left. Args: accept: says whether what stands in the form is good.
async function show(dialog, accept) {
  const form = dialog.querySelector("form");
  form.onsubmit = (event) => {
    event.preventDefault();
    if (accept(form)) dialog.close("done");
  };
  form.querySelector("[value=cancel]").onclick = () => dialog.close("");
  dialog.returnValue = "";
  const closed = whenClosed(dialog);
  dialog.showModal();
  return (await closed) === "done";
}

// Ask for a yes, or for a text if `field` is its label. Gives {answer, remember}, or null.
export async function ask({ title, text = "", field = null, value = "", isSecret = false, action }) {
  const dialog = byId("ask");
  const form = dialog.querySelector("form");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-field").hidden = field === null;
  byId("ask-field").querySelector("span").textContent = field ?? "";
  form.answer.value = value;
  form.answer.type = isSecret ? "password" : "text";
  form.answer.required = field !== null;
  form.remember.checked = false;
  form.querySelector(".check").hidden = !isSecret;
  form.querySelector("[type=submit]").textContent = action;
  const isDone = await show(dialog, () => true);
  const answer = form.answer.value.trim();
  form.answer.value = "";
  return isDone ? { answer, remember: form.remember.checked } : null;
}

let asked = null;

// Ask for a key, once even if several requests were refused. Gives whether there is one now.
export function askForKey() {
  asked ??= (async () => {
    const text = store.key()
      ? "The server does not know the key that you gave."
      : "This server answers those who have a key.";
    const given = await ask({ title: "API key", text, field: "Key", isSecret: true, action: "Use it" });
    asked = null;
    if (!given || !store.isPossibleKey(given.answer)) return false;
    store.saveKey(given.answer, given);
    return true;
  })();
  return asked;
}

export function applyTheme() {
  const { theme } = store.settings();
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

export function switchTheme() {
  const isDark = store.settings().theme
    ? store.settings().theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  store.saveSettings({ theme: isDark ? "light" : "dark" });
  applyTheme();
}

const numberOf = (field) => (field.value === "" ? null : field.valueAsNumber);

export async function editSettings() {
  const dialog = byId("settings");
  const form = dialog.querySelector("form");
  const fault = form.querySelector(".fault");
  const settings = store.settings();
  for (const name of ["system", "temperature", "topP", "maxTokens", "thinking", "theme"])
    form[name].value = settings[name] ?? "";
  form.key.value = store.key();
  form.remember.checked = store.isKeyRemembered();
  fault.textContent = "";
  const isDone = await show(dialog, () => {
    const isGood = store.isPossibleKey(form.key.value.trim());
    if (!isGood) fault.textContent = "A key has ASCII characters and no spaces: look at the one that you copied.";
    return isGood;
  });
  if (!isDone) return;
  store.saveSettings({
    system: form.system.value.trim(),
    temperature: numberOf(form.temperature),
    topP: numberOf(form.topP),
    maxTokens: numberOf(form.maxTokens),
    thinking: form.thinking.value,
    theme: form.theme.value,
  });
  store.saveKey(form.key.value.trim(), { remember: form.remember.checked });
  applyTheme();
}
