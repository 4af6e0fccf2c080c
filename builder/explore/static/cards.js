// One product: its image or image status, label, texts and scores.

import { decimals, element } from "./dom.js";

export const keyOf = (card) => `${card.product_locale}:${card.product_id}`;
export const titleOf = (card) => card.title || "without a title";

// The labels of the release, best gain first; how full a badge is shows the place of its label among the gains.
let tiers = new Map();

export function setLabels(labels) {
  const gains = [...new Set(labels.map((label) => label.gain))].sort((a, b) => b - a);
  const steps = Math.max(gains.length - 1, 1);
  tiers = new Map(labels.map((label) => [label.label, 1 - gains.indexOf(label.gain) / steps]));
}

export function badge(card, judgedOnly = false) {
  if (card.label === null) {
    return judgedOnly ? null : element("span", { class: "badge unjudged", text: "not judged" });
  }
  const tier = tiers.get(card.label) ?? 0;
  const level = tier === 1 ? "full" : tier > 0 ? "part" : "none";
  const title = `label ${card.label}, gain ${card.gain}`;
  const gauge = element("span", { class: "gauge", "aria-hidden": "true" });
  gauge.style.setProperty("--tier", String(tier));
  const name = element("span", { class: "badge-text", text: card.label });
  return element("span", { class: `badge ${level}`, title }, element("span", { class: "hidden", text: "label " }), name, gauge);
}

export function imageBox(card, lazy = true) {
  const box = element("div", { class: "image" });
  if (card.image === null) {
    box.classList.add("blank");
    box.append(statusOf(card.image_status ?? "unknown status", card.has_image ? "no image URL" : "no image"));
    return box;
  }
  const image = element("img", { alt: "", decoding: "async", referrerpolicy: "no-referrer" });
  if (lazy) image.loading = "lazy";
  image.addEventListener("load", () => box.classList.add("loaded"));
  image.addEventListener("error", () => {
    const status = card.image_status ?? "unknown status";
    box.classList.add("blank");
    image.replaceWith(statusOf(status === "ok" || status === "generic" ? `${status}, but not loaded` : status));
  });
  image.src = card.image;
  box.append(image);
  return box;
}

function statusOf(text, first = "no image") {
  const shown = element("p", { class: "status" });
  shown.append(element("span", { text: first }), element("span", { class: "status-name", text: text.replaceAll("_", " ") }));
  return shown;
}

export function makeCard(card, { open, judgedOnly = false } = {}) {
  const made = element("li", { class: "card", "data-testid": "card", "data-product-id": card.product_id, "data-key": keyOf(card) });
  const title = element("button", { type: "button", class: "title", dir: "auto", text: titleOf(card) });
  if (card.title) title.title = card.title;
  title.addEventListener("click", () => open(card));
  made.append(
    element(
      "div",
      { class: "face" },
      imageBox(card),
      element("span", { class: "rank", "aria-hidden": "true" }),
      element("span", { class: "place-of-badge" }),
    ),
    element(
      "div",
      { class: "words" },
      element(
        "div",
        { class: "first-line" },
        element("p", { class: "maker", dir: "auto", text: card.brand ?? "" }),
        element("p", { class: "total", title: "score" }),
      ),
      title,
    ),
    element("dl", { class: "scores" }, score("text"), score("image")),
  );
  updateCard(made, card, judgedOnly);
  return made;
}

function score(name) {
  return element(
    "div",
    { class: `score by-${name}` },
    element("dt", { text: name }),
    element("dd", {}, element("span", { class: "track", "aria-hidden": "true" }), element("span", { class: "number" })),
  );
}

// What an order changes of a card that is already there.
export function updateCard(made, card, judgedOnly = false) {
  made.querySelector(".rank").textContent = card.rank ?? "";
  const label = badge(card, judgedOnly);
  made.querySelector(".place-of-badge").replaceChildren(...(label ? [label] : []));
  const both = card.text_score !== undefined && card.image_score !== undefined;
  made.querySelector(".total").textContent = both && card.score !== null ? decimals(card.score, 3) : "";
  for (const name of ["text", "image"]) {
    const value = card[`${name}_score`];
    const part = made.querySelector(`.score.by-${name}`);
    part.hidden = value === undefined;
    if (value === undefined) continue;
    const none = name === "image" && !card.has_image;
    part.classList.toggle("absent", none);
    part.querySelector(".number").textContent = none ? "none" : decimals(value, 3);
    part.querySelector(".track").style.setProperty("--value", String(Math.min(Math.max(value, 0), 1)));
  }
}
