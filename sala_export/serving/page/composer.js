// Where a question is written: its text, the files that go with it, and the buttons beside it.
import { byId, bytes, el, iconButton, visible } from "./dom.js";

const MOST_HEIGHT = 0.4; // of the window

export class Composer {
  #chat;
  #field = byId("question");
  #attached = byId("attached");
  #files = [];
  #replaces = null;

  constructor(chat) {
    this.#chat = chat;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("stop").addEventListener("click", () => {
      chat.stop();
      this.#field.focus();
    });
    this.#field.addEventListener("input", () => this.update());
    this.#field.addEventListener("keydown", (event) => {
      // While an input method composes a character, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
  }

  // On a phone this would bring up the keyboard, which covers half of the page.
  focus() {
    if (matchMedia("(pointer: fine)").matches) this.#field.focus();
  }

  // Put the text of a file into the next message.
  attach(name, text) {
    this.#files.push({ name, text });
    this.update();
  }

  // Let a question be written anew.
  edit(message) {
    this.#replaces = message;
    this.#files = [...message.files];
    this.#field.value = message.text;
    this.update();
    this.#field.focus();
  }

  // Whether there was something to leave.
  leaveEdit() {
    if (!this.#replaces) return false;
    this.#replaces = null;
    this.#clear();
    return true;
  }

  #clear() {
    this.#files = [];
    this.#field.value = "";
    this.update();
  }

  #send() {
    const text = this.#field.value.trim();
    if (this.#chat.isBusy || !this.#chat.model || (!text && this.#files.length === 0)) return;
    const replaces = this.#chat.current.messages.includes(this.#replaces) ? this.#replaces : null;
    const files = this.#files;
    this.#replaces = null;
    this.#clear();
    this.#chat.ask(text, files, { replaces });
  }

  update() {
    const { isBusy, model } = this.#chat;
    const hadFocus = document.activeElement === byId("send") || document.activeElement === byId("stop");
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    byId("send").disabled = !model || (!this.#field.value.trim() && this.#files.length === 0);
    if (hadFocus && document.activeElement === document.body) this.#field.focus(); // the button has gone
    this.#field.style.height = "auto";
    this.#field.style.height = `${Math.min(this.#field.scrollHeight, innerHeight * MOST_HEIGHT)}px`;
    const chips = this.#files.map((file) => this.#fileChip(file));
    if (this.#replaces) chips.unshift(chip("Changing your question", "Do not change it", () => this.leaveEdit()));
    this.#attached.replaceChildren(...chips);
  }

  #fileChip(file) {
    const label = `${visible(file.name)}, ${bytes(file.text.length)}, goes with your question`;
    return chip(label, `Leave out ${file.name}`, () => {
      this.#files = this.#files.filter((each) => each !== file);
      this.update();
    });
  }
}

const chip = (text, label, drop) =>
  el("span", { class: "chip" }, el("bdi", {}, text), iconButton("close", label, drop));
