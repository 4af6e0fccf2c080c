// One product and its nearest products, by text or by image.

import { get, productPath } from "./api.js";
import { imageBox, titleOf } from "./cards.js";
import { byId, element, press, show } from "./dom.js";
import { Grid } from "./grid.js";

export class Detail {
  #dialog = byId("detail");
  #state;
  #changed;
  #grid;
  #shown = "";

  constructor(state, changed) {
    [this.#state, this.#changed] = [state, changed];
    this.#grid = new Grid(byId("detail-grid"), (card) => this.open(card));
    this.#dialog.addEventListener("close", () => {
      this.#grid.clear();
      this.#shown = "";
      if (state.product !== null) {
        Object.assign(state, { product: null, locale: null, by: "text" });
        changed();
      }
    });
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    for (const button of byId("by").children) {
      button.addEventListener("click", () => {
        state.by = button.dataset.by;
        changed();
      });
    }
  }

  open(card) {
    Object.assign(this.#state, { product: card.product_id, locale: card.product_locale });
    this.#changed({ push: true });
  }

  // Shows what the state says.
  async render(report) {
    const { product, locale, by } = this.#state;
    this.mark();
    if (product === null) return this.#dialog.open && this.#dialog.close();
    const wanted = JSON.stringify([product, locale, by]);
    if (wanted === this.#shown) return;
    this.#shown = wanted;
    press(byId("by").children, (button) => button.dataset.by === by);
    const ask = (side) => get(productPath({ product_id: product }, "neighbours"), { by: side, locale });
    try {
      const found = await ask(by).catch(async (error) => {
        if (by !== "image") throw error;
        this.#note(error.message); // the product itself can still be shown
        return { ...(await ask("text")), products: [], refused: true };
      });
      if (wanted !== this.#shown) return;
      if (!found.refused) this.#note("");
      this.#fill(found);
    } catch (error) {
      this.#state.product = null;
      this.#shown = "";
      this.mark();
      if (this.#dialog.open) this.#dialog.close();
      report(error);
    }
  }

  #note(text) {
    byId("detail-notes").textContent = text;
    show(byId("detail-notes"), text !== "");
  }

  #fill({ product, products }) {
    byId("detail-image").replaceChildren(imageBox(product, false));
    byId("detail-brand").textContent = product.brand ?? "";
    byId("detail-title").textContent = titleOf(product);
    const facts = [["id", product.product_id], ["locale", product.product_locale], ["image", product.image_status ?? "unknown"]];
    byId("detail-facts").replaceChildren(
      ...facts.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value.replaceAll("_", " ") }))),
    );
    byId("by").children[1].disabled = !product.has_image;
    this.#grid.render(products.map((card) => ({ ...card, [`${this.#state.by === "text" ? "image" : "text"}_score`]: undefined })), { judgedOnly: true, animate: false });
    this.#dialog.scrollTop = 0;
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  // The part "neighbours" of the page: this panel while it is wanted, else the button of each product that opens it.
  mark() {
    const open = this.#state.product !== null;
    this.#dialog.dataset.testid = open ? "neighbours" : "";
    for (const title of document.querySelectorAll("#results .title")) title.dataset.testid = open ? "" : "neighbours";
  }
}
