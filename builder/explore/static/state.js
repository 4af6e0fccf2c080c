// What is looked at, in the address of the page, so that a link restores it.

const DEFAULTS = {
  query: null, // id of a query
  view: "judged", // judged, catalogue, compare, search or browse
  weight: 0.5,
  q: "", // text of a search
  first: "clip_text",
  second: "clip_image",
  labels: [],
  status: "",
  brand: "",
  product: null, // whose neighbours are shown
  locale: null,
  by: "text",
  top: 40,
};

export const VIEWS = ["judged", "catalogue", "compare"];

export function readState(search) {
  const given = new URLSearchParams(search);
  const state = { ...DEFAULTS, labels: given.getAll("label") };
  for (const name of ["query", "q", "first", "second", "status", "brand", "product", "locale"]) {
    state[name] = given.get(name) ?? state[name];
  }
  const view = given.get("view");
  if ([...VIEWS, "search", "browse"].includes(view)) state.view = view;
  if (given.get("by") === "image") state.by = "image";
  const weight = Number.parseFloat(given.get("weight"));
  if (weight >= 0 && weight <= 1) state.weight = Math.round(weight * 100) / 100;
  const top = Number.parseInt(given.get("top"), 10);
  if (top > DEFAULTS.top && top <= 500) state.top = top;
  return state;
}

export function writeState(state) {
  const given = new URLSearchParams();
  const compared = state.view === "compare";
  const product = state.product !== null;
  const kept = {
    query: true, view: true, weight: true, q: state.view === "search", first: compared, second: compared,
    status: true, brand: true, product, locale: product, by: product, top: true,
  };
  for (const [name, wanted] of Object.entries(kept)) {
    if (wanted && state[name] !== DEFAULTS[name] && state[name] !== null) given.set(name, String(state[name]));
  }
  for (const label of state.labels) given.append("label", label);
  const text = given.toString();
  return text ? `?${text}` : ".";
}
