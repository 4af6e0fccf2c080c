// The page: what the state says is asked of the server and shown; every action changes the state.

import { ApiError, Latest, MAX_UPLOAD, get, searchImage } from "./api.js";
import { setLabels } from "./cards.js";
import { renderCompare } from "./compare.js";
import { drawCurve } from "./curve.js";
import { Detail } from "./detail.js";
import { byId, count, decimals, press, show } from "./dom.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { listenToImages, listenToKeys } from "./keys.js";
import { Picker } from "./picker.js";
import { VIEWS, readState, writeState } from "./state.js";

const MORE = 40;
const MOST = 500;

const state = readState(location.search);
const requests = new Latest();
const grid = new Grid(byId("grid"), (card) => detail.open(card));
const detail = new Detail(state, change);
const picker = new Picker({ choose: chooseQuery, search: searchText, report });
let release;
let filters;
let queries = []; // ids, in the order of the release
let image = null; // a File that is searched for
let found = null; // the last answer, and the view it is of
let failed = false; // whether the message is of this view
let writing = 0;

// -- what the server says --------------------------------------------------------------------------------------------

function ask(signal) {
  const { view, query, weight, top } = state;
  if (view === "search") {
    const parameters = { q: state.q, weight, top };
    return image ? searchImage(image, parameters, signal) : get("api/search", parameters, signal);
  }
  if (view === "browse") return get("api/products", { top }, signal);
  const path = `api/query/${encodeURIComponent(query)}`;
  if (view === "catalogue") return get(`${path}/catalogue`, { weight, top }, signal);
  if (view === "compare") return get(`${path}/compare`, { first: state.first, second: state.second }, signal);
  return get(path, { weight }, signal);
}

// One request at a time: while the slider moves, only its last place is asked for. Another view does not wait.
function load(now = false) {
  const slow = setTimeout(() => wait(true), 250);
  byId("results").setAttribute("aria-busy", "true");
  return requests
    .run(async (outdated, signal) => {
      const { view } = state;
      try {
        const answer = await ask(signal);
        if (outdated()) return;
        found = { view, ...answer };
        if (failed) report(null); // a message of the product that is looked at stays
        failed = false;
      } catch (error) {
        if (outdated()) return;
        report(error);
        failed = true;
        if (found?.view !== view) found = { view, products: [], failed: true };
      }
      render();
    }, now)
    .finally(() => {
      clearTimeout(slow);
      wait(false);
      byId("results").removeAttribute("aria-busy");
    });
}

// A slow answer: its view is there already, the products of the last one are pale.
function wait(waiting) {
  show(byId("progress"), waiting);
  byId("results").classList.toggle("old", waiting);
  if (!waiting) return;
  renderView();
  if (found) return;
  byId("empty").textContent = "Loading…";
  show(byId("empty"), true);
}

function report(error) {
  if (error !== null && !(error instanceof ApiError)) throw error;
  byId("error-text").textContent = error?.message ?? "";
  show(byId("error"), error !== null);
}

// -- changes ---------------------------------------------------------------------------------------------------------

// Write the state to the address; `reload` asks the server, otherwise only what is here is shown again.
function change({ push = false, reload = false } = {}) {
  clearTimeout(writing);
  if (push) report(null);
  if (push) history.pushState(null, "", writeState(state));
  else writing = setTimeout(() => history.replaceState(null, "", writeState(state)), 120); // browsers limit how often
  detail.render(report);
  if (reload) load(push);
  else if (found) render();
}

function chooseQuery({ id }) {
  Object.assign(state, { query: id, top: MORE, labels: [], status: "", brand: "" });
  if (!VIEWS.includes(state.view)) state.view = "judged";
  change({ push: true, reload: true });
}

function step(by) {
  if (!queries.length || !VIEWS.includes(state.view)) return;
  const at = queries.indexOf(state.query);
  chooseQuery({ id: queries[(at + by + queries.length) % queries.length] });
}

function setWeight(weight) {
  state.weight = Math.min(Math.max(Math.round(weight * 100) / 100, 0), 1);
  byId("weight").value = String(state.weight);
  byId("weight-value").textContent = decimals(state.weight, 2);
  change({ reload: state.view !== "compare" && state.view !== "browse" });
}

function setView(view) {
  if (state.query === null) return;
  Object.assign(state, { view, top: MORE });
  change({ push: true, reload: true });
}

function searchText(text) {
  if (!text && !image) return;
  Object.assign(state, { view: "search", q: text, top: MORE, labels: [], status: "", brand: "" });
  change({ push: true, reload: true });
}

function searchFile(file) {
  if (file.size > MAX_UPLOAD) {
    return report(new ApiError(`The image is too large: at most ${count(MAX_UPLOAD)} bytes.`));
  }
  setImage(file);
  searchText(byId("search").value.trim());
}

function setImage(file) {
  const preview = byId("search-preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  image = file;
  show(preview, file !== null);
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
}

function leaveSearch() {
  setImage(null);
  Object.assign(state, { view: state.query === null ? "browse" : "judged", q: "", top: MORE });
  byId("search").value = "";
  change({ push: true, reload: true });
}

// -- what is shown ---------------------------------------------------------------------------------------------------

function render() {
  renderView();
  if (found.query) renderQuery(found.query);
  renderMeasure();
  renderProducts();
}

function renderView() {
  const { view } = state;
  const searched = view === "search";
  const asked = VIEWS.includes(view);
  show(byId("query-part"), asked || view === "browse");
  show(byId("search-part"), searched);
  show(byId("back"), searched);
  byId("back").textContent = state.query === null ? "Back to all products" : "Back to the query";
  show(byId("tabs"), asked);
  press(byId("tabs").children, (button) => button.dataset.view === view);
  show(byId("measure"), asked && view !== "compare");
  document.querySelector(".meter").hidden = view === "browse" || view === "compare";
  if (searched) {
    byId("search-kind").textContent = image ? (state.q ? "Search by text and image" : "Search by image") : "Search by text";
    byId("search-title").textContent = state.q || image?.name || "";
  }
  if (!asked) byId("meta").textContent = view === "browse" ? "Products in the order of the release" : `best of ${count(release.products)} products`;
}

function renderQuery(query) {
  picker.set(query.query);
  const at = queries.indexOf(query.id) + 1;
  const parts = [`${count(at)} of ${count(queries.length)}`, `${count(query.judged)} judged`, query.source?.replaceAll("_", " "), `id ${query.id}`];
  byId("meta").textContent = parts.filter(Boolean).join("  ·  ");
  document.title = `${query.query} · SQID explorer`;
}

function renderMeasure() {
  if (found.view === "compare" || found.ndcg === undefined) return;
  const output = byId("ndcg");
  output.textContent = decimals(found.ndcg);
  output.dataset.value = found.ndcg ?? "";
  drawCurve(found.curve, found.weight, found.ndcg);
}

function renderProducts() {
  const compared = found.view === "compare";
  const cards = compared ? (found.failed ? [] : found.second.products) : found.products;
  const kept = new Set(filters.apply(cards));
  show(byId("grid"), !compared);
  show(byId("versus"), compared && !found.failed);
  if (compared && !found.failed) {
    grid.clear();
    const keys = new Set([...kept].map((card) => `${card.product_locale}:${card.product_id}`));
    const choices = [...new Set([...release.methods, `fusion:${state.weight}`])];
    const choose = (side, name) => {
      state[side] = name;
      change({ push: true, reload: true });
    };
    renderCompare(found, { choices, choose, open: (card) => detail.open(card), kept: (card) => keys.has(`${card.product_locale}:${card.product_id}`) });
  } else {
    byId("versus").replaceChildren();
    grid.render([...kept], { judgedOnly: found.view !== "catalogue" });
  }
  detail.mark();
  byId("notes").textContent = (found.notes ?? []).join(" ");
  show(byId("notes"), (found.notes ?? []).length > 0);
  const more = ["catalogue", "search", "browse"].includes(found.view) && cards.length >= state.top && state.top < MOST;
  show(byId("more"), more);
  const nothing = found.failed ? "" : cards.length ? "No product passes the filters." : found.view === "judged" || compared ? "No product is judged for this query. Look at the whole catalogue." : "No products.";
  byId("empty").textContent = nothing;
  show(byId("empty"), kept.size === 0 && nothing !== "");
}

// -- start -----------------------------------------------------------------------------------------------------------

function listen() {
  byId("weight").addEventListener("input", (event) => setWeight(event.target.valueAsNumber));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("back").addEventListener("click", leaveSearch);
  byId("more").addEventListener("click", () => {
    state.top = Math.min(state.top + MORE, MOST);
    change({ reload: true });
  });
  byId("error-close").addEventListener("click", () => report(null));
  for (const button of byId("tabs").children) button.addEventListener("click", () => setView(button.dataset.view));
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    searchText(byId("search").value.trim());
  });
  byId("search").addEventListener("search", (event) => {
    if (event.target.value === "" && state.view === "search") leaveSearch();
  });
  byId("keys-button").addEventListener("click", () => byId("keys").showModal());
  listenToImages(searchFile);
  listenToKeys({
    "/": () => byId("search").focus(),
    q: () => byId("query").focus(),
    j: () => step(1),
    k: () => step(-1),
    "[": () => setWeight(state.weight - 0.05),
    "]": () => setWeight(state.weight + 0.05),
    1: () => setView("judged"),
    2: () => setView("catalogue"),
    3: () => setView("compare"),
    "?": () => byId("keys").showModal(),
  });
  addEventListener("popstate", () => {
    Object.assign(state, readState(location.search));
    place();
    detail.render(report);
    load(true);
  });
}

// A state that this release can show, in the fields of the page.
function place() {
  if (!queries.includes(state.query)) state.query = queries[0] ?? null;
  if (!queries.length && state.view !== "search") state.view = "browse";
  if (queries.length && state.view === "browse") state.view = "judged";
  if (!release.judgments && state.view === "judged") state.view = "catalogue";
  if (state.view === "search" && !state.q && !image) state.view = queries.length ? "judged" : "browse"; // an image is in no link
  for (const side of ["first", "second"]) {
    if (!release.methods.includes(state[side]) && !/^fusion:(0?\.\d+|[01])$/.test(state[side])) state[side] = release.methods[0] ?? state[side];
  }
  byId("weight").value = String(state.weight);
  byId("weight-value").textContent = decimals(state.weight, 2);
  byId("search").value = state.view === "search" ? state.q : "";
}

async function start() {
  listen();
  try {
    release = await get("api/release");
    queries = release.query_ids;
  } catch (error) {
    return report(error);
  }
  setLabels(release.labels);
  filters = new Filters(state, release.labels, change);
  byId("release-name").textContent = release.name || "SQID";
  byId("counts").textContent = `${count(release.products)} products · ${count(release.images)} with an image · ${count(release.queries)} queries · ${count(release.judgments)} judgments`;
  picker.enable(queries.length > 0);
  byId("previous").disabled = byId("next").disabled = queries.length < 2;
  place();
  renderView();
  detail.render(report);
  await load();
}

start();
