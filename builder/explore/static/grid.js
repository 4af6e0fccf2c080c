// A list of cards that keeps its elements when their order changes, and moves them to their new places.

import { keyOf, makeCard, updateCard } from "./cards.js";

const MOVED = { duration: 220, easing: "cubic-bezier(.2, .7, .2, 1)" };
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Grid {
  #list;
  #open;
  #made = new Map();

  constructor(list, open) {
    this.#list = list;
    this.#open = open;
    list.addEventListener("keydown", (event) => this.#step(event));
  }

  render(cards, { judgedOnly = false, animate = true } = {}) {
    const places = animate && !still.matches ? this.#places() : new Map();
    const before = this.#made;
    this.#made = new Map();
    const wanted = cards.map((card) => {
      const key = keyOf(card);
      const known = before.get(key);
      if (known) updateCard(known, card, judgedOnly);
      const made = known ?? makeCard(card, { open: this.#open, judgedOnly });
      this.#made.set(key, made);
      return made;
    });
    const focused = this.#list.contains(document.activeElement) ? document.activeElement : null;
    if (wanted.length !== this.#list.children.length || wanted.some((made, n) => this.#list.children[n] !== made)) {
      this.#list.replaceChildren(...wanted);
      if (focused?.isConnected) focused.focus({ preventScroll: true });
    }
    this.#move(places);
  }

  clear() {
    this.#made = new Map();
    this.#list.replaceChildren();
  }

  #places() {
    return new Map([...this.#made].map(([key, made]) => [key, made.getBoundingClientRect()]));
  }

  #move(places) {
    const seen = (box) => box.bottom > -200 && box.top < innerHeight + 200;
    const moves = [];
    for (const [key, made] of this.#made) {
      const from = places.get(key);
      if (!from) continue;
      const to = made.getBoundingClientRect();
      if ((from.left !== to.left || from.top !== to.top) && (seen(from) || seen(to))) {
        moves.push([made, `translate(${from.left - to.left}px, ${from.top - to.top}px)`]);
      }
    }
    for (const [made, from] of moves) made.animate([{ transform: from }, { transform: "none" }], MOVED);
  }

  #step(event) {
    const titles = [...this.#list.querySelectorAll(".title")];
    const at = titles.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const top = this.#list.children[0].offsetTop;
    const columns = [...this.#list.children].filter((child) => child.offsetTop === top).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    titles[at + step]?.focus();
  }
}
