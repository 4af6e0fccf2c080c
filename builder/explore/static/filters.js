// Filters of the cards that are shown: by label, image status and brand.

import { byId, count, element, press, show } from "./dom.js";

const NO_STATUS = "(none)";
const NO_BRAND = "(no brand)";
const UNJUDGED = "not judged";
const labelOf = (card) => card.label ?? UNJUDGED;
const statusOf = (card) => card.image_status ?? NO_STATUS;
const brandOf = (card) => card.brand || NO_BRAND;

export class Filters {
  #state;
  #order; // labels, best first
  #changed;

  constructor(state, labels, changed) {
    [this.#state, this.#changed] = [state, changed];
    this.#order = [...labels.map(({ label }) => label), UNJUDGED];
    for (const name of ["status", "brand"]) {
      byId(`${name}-filter`).addEventListener("change", (event) => {
        state[name] = event.target.value;
        changed();
      });
    }
    byId("clear-filters").addEventListener("click", () => {
      Object.assign(state, { labels: [], status: "", brand: "" });
      changed();
    });
  }

  // The cards that pass; the choices are those that the given cards have.
  apply(cards) {
    const state = this.#state;
    this.#fillLabels(cards);
    this.#fill("status", "Any image status", cards, statusOf);
    this.#fill("brand", "Any brand", cards, brandOf);
    const any = state.labels.length > 0 || state.status !== "" || state.brand !== "";
    show(byId("clear-filters"), any);
    const kept = cards.filter(
      (card) =>
        (state.labels.length === 0 || state.labels.includes(labelOf(card))) &&
        (state.status === "" || state.status === statusOf(card)) &&
        (state.brand === "" || state.brand === brandOf(card)),
    );
    byId("shown").textContent = cards.length === 0 ? "" : any ? `${count(kept.length)} of ${count(cards.length)} shown` : `${count(cards.length)} products`;
    return kept;
  }

  #fillLabels(cards) {
    const counts = tally(cards, labelOf);
    const there = this.#order.filter((label) => counts.has(label) || this.#state.labels.includes(label));
    const target = byId("label-filter");
    show(target, there.length > 1 || this.#state.labels.length > 0);
    if (target.dataset.shown !== there.join("\n")) {
      target.dataset.shown = there.join("\n");
      target.replaceChildren(
        ...there.map((label) => {
          const chip = element("button", { type: "button", class: "chip", "data-label": label }, label);
          chip.append(element("span", { class: "muted" }));
          chip.addEventListener("click", () => {
            const chosen = new Set(this.#state.labels);
            if (!chosen.delete(label)) chosen.add(label);
            this.#state.labels = [...chosen];
            this.#changed();
          });
          return chip;
        }),
      );
    }
    for (const chip of target.children) chip.lastChild.textContent = ` ${counts.get(chip.dataset.label) ?? 0}`;
    press(target.children, (chip) => this.#state.labels.includes(chip.dataset.label));
  }

  #fill(name, any, cards, valueOf) {
    const target = byId(`${name}-filter`);
    const counts = tally(cards, valueOf);
    const chosen = this.#state[name];
    if (chosen && !counts.has(chosen)) counts.set(chosen, 0);
    const values = [...counts].sort(([a, n], [b, m]) => m - n || a.localeCompare(b));
    const options = values.map(([value, n]) => element("option", { value, text: `${value.replaceAll("_", " ").slice(0, 60)} (${n})` }));
    target.replaceChildren(element("option", { value: "", text: any }), ...options);
    target.value = chosen;
    target.classList.toggle("chosen", chosen !== "");
    show(target, values.length > 1 || chosen !== "");
  }
}

function tally(cards, valueOf) {
  const counts = new Map();
  for (const card of cards) counts.set(valueOf(card), (counts.get(valueOf(card)) ?? 0) + 1);
  return counts;
}
