// The field that a query is typed into or picked from: a combobox with a list of matching queries.

import { get } from "./api.js";
import { byId, element, show } from "./dom.js";

const SHOWN = 60;

export class Picker {
  #input = byId("query");
  #list = byId("query-list");
  #options = []; // {query} or {search: text}
  #active = -1;
  #chosen = "";
  #asked = null;
  #choose;
  #search;
  #report;

  constructor({ choose, search, report }) {
    [this.#choose, this.#search, this.#report] = [choose, search, report];
    const input = this.#input;
    input.addEventListener("focus", () => {
      input.select();
      this.#open("");
    });
    input.addEventListener("click", () => this.#list.hidden && this.#open(""));
    input.addEventListener("input", () => this.#open(input.value.trim()));
    for (const left of ["change", "blur"]) input.addEventListener(left, () => this.#leave());
    input.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("mousedown", (event) => {
      event.preventDefault(); // the field keeps the focus until the click
      const option = event.target.closest("[role=option]");
      if (option) this.#pick(Number(option.dataset.number));
    });
  }

  enable(enabled) {
    this.#input.disabled = !enabled;
    this.#input.placeholder = enabled ? "Type or pick a query" : "This release has no queries";
  }

  set(text) {
    this.#chosen = text;
    this.#input.value = text;
    this.#input.title = text;
  }

  #open(text) {
    const asked = get("api/queries", { text: text || undefined, top: SHOWN })
      .then((found) => asked === this.#asked && this.#fill(found, text))
      .catch(this.#report);
    this.#asked = asked;
    return asked;
  }

  #fill(found, text) {
    if (document.activeElement !== this.#input) return;
    this.#options = found.queries.map((query) => ({ query }));
    if (text) this.#options.push({ search: text });
    const items = this.#options.map(({ query, search }, number) => {
      const words = query
        ? [element("span", { text: query.query, dir: "auto" }), element("span", { class: "muted", text: `${query.judged} judged` })]
        : [element("span", { text: `Search all products for “${search}”` })];
      return element("li", { role: "option", id: `option-${number}`, "data-number": number, "aria-selected": "false" }, ...words);
    });
    const hidden = found.total - found.queries.length;
    if (hidden > 0) {
      items.push(element("li", { class: "muted rest", role: "presentation", text: `${hidden.toLocaleString("en-US")} more: type to find them` }));
    }
    this.#list.replaceChildren(...items);
    this.#list.scrollTop = 0;
    show(this.#list, items.length > 0);
    this.#input.setAttribute("aria-expanded", String(items.length > 0));
    const exact = this.#options.findIndex(({ query }) => query?.query === text || query?.id === text);
    this.#activate(exact >= 0 ? exact : text ? 0 : -1);
  }

  #activate(number) {
    this.#active = number;
    for (const item of this.#list.children) item.setAttribute("aria-selected", String(item.id === `option-${number}`));
    for (const item of this.#list.querySelectorAll(".rest")) item.removeAttribute("aria-selected");
    if (number < 0) return this.#input.removeAttribute("aria-activedescendant");
    this.#input.setAttribute("aria-activedescendant", `option-${number}`);
    byId(`option-${number}`).scrollIntoView({ block: "nearest" });
  }

  async #key(event) {
    const { key } = event;
    if (event.isComposing) return; // Enter ends the input of Japanese characters
    if (key === "ArrowDown" || key === "ArrowUp") {
      event.preventDefault();
      if (this.#list.hidden) return this.#open("");
      const step = key === "ArrowDown" ? 1 : -1;
      const length = this.#options.length;
      this.#activate(this.#active < 0 ? (step > 0 ? 0 : length - 1) : (this.#active + step + length) % length);
    } else if (key === "Enter") {
      event.preventDefault();
      await this.#asked; // the list of what was typed last
      if (this.#active >= 0) this.#pick(this.#active);
    } else if (key === "Escape" && !this.#list.hidden) {
      event.stopPropagation();
      this.#close();
    }
  }

  // A query that was typed as a whole is chosen; anything else is put back.
  #leave() {
    const typed = this.#input.value.trim();
    const number = typed === this.#chosen ? -1 : this.#options.findIndex(({ query }) => query?.query === typed);
    if (number >= 0) this.#pick(number);
    else this.#close();
  }

  #pick(number) {
    const { query, search } = this.#options[number];
    this.#close();
    this.#input.blur();
    if (query) this.#choose(query);
    else this.#search(search);
  }

  #close() {
    this.#asked = null;
    show(this.#list, false);
    this.#activate(-1);
    this.#input.setAttribute("aria-expanded", "false");
    this.#input.value = this.#chosen;
  }
}
