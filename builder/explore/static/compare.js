// Two orders of the judged products side by side, and how far each product moved from one to the other.

import { badge, imageBox, keyOf, titleOf } from "./cards.js";
import { byId, decimals, element } from "./dom.js";

// `choices`: names of methods; `choose(side, name)`, `open(card)`; `kept`: which cards pass the filters.
export function renderCompare(found, { choices, choose, open, kept }) {
  const target = byId("versus");
  const focused = document.activeElement?.dataset?.side;
  const sides = ["first", "second"].map((side) => {
    const other = found[side === "first" ? "second" : "first"];
    return column(side, found[side], other.ndcg, { choices, choose, open, kept });
  });
  target.replaceChildren(...sides);
  if (focused) target.querySelector(`select[data-side=${focused}]`)?.focus();
  target.onpointerover = target.onfocusin = (event) => highlight(target, event.target.closest("li")?.dataset.key);
  target.onpointerleave = () => highlight(target, null);
}

function signed(value) {
  return `${value < 0 ? "−" : value > 0 ? "+" : "±"}${decimals(Math.abs(value))}`;
}

function highlight(target, key) {
  for (const item of target.querySelectorAll("li")) item.classList.toggle("same", key != null && item.dataset.key === key);
}

function column(side, found, otherNdcg, { choices, choose, open, kept }) {
  const name = `The ${side} order`;
  const select = element("select", { "aria-label": name, "data-side": side, "data-testid": side });
  for (const choice of choices.includes(found.method) ? choices : [...choices, found.method]) {
    select.append(element("option", { value: choice, text: choice }));
  }
  select.value = found.method;
  select.addEventListener("change", () => choose(side, select.value));
  const mean = found.mean_ndcg === null ? "" : `all queries ${decimals(found.mean_ndcg)}`;
  const difference = found.ndcg === null ? 0 : found.ndcg - otherNdcg;
  const head = element(
    "header",
    {},
    select,
    element("p", { class: "result" }, element("span", { class: "eyebrow", text: "nDCG" }), element("span", { class: "ndcg", text: decimals(found.ndcg) })),
    element("p", { class: "muted mean" }, element("span", { class: difference > 0 ? "difference better" : "difference", text: signed(difference) }), element("span", { text: mean })),
  );
  const items = found.products.filter(kept).map((card) => item(card, open));
  return element("section", { class: "order", "aria-label": `${name}: ${found.method}` }, head, element("ol", {}, ...items));
}

function item(card, open) {
  const title = element("button", { type: "button", class: "title", dir: "auto", text: titleOf(card) });
  title.addEventListener("click", () => open(card));
  const [sign, words, kind] = moved(card);
  return element(
    "li",
    { class: "row", "data-testid": "card", "data-product-id": card.product_id, "data-key": keyOf(card) },
    element("span", { class: "rank", text: card.rank ?? "–" }),
    imageBox(card),
    element("div", { class: "words" }, title, badge(card)),
    element("span", { class: `moved ${kind}`, title: words }, element("span", { "aria-hidden": "true", text: sign }), element("span", { class: "hidden", text: words })),
  );
}

function moved({ rank, other_rank: other }) {
  if (rank === null) return ["·", "not retrieved", "lost"];
  if (other === null) return ["new", "not retrieved by the other order", "up"];
  const steps = other - rank;
  if (steps === 0) return ["=", `rank ${other} in the other order too`, "same-rank"];
  return [`${steps > 0 ? "▲" : "▼"} ${Math.abs(steps)}`, `rank ${other} in the other order`, steps > 0 ? "up" : "down"];
}
