// nDCG by weight, as a line over the slider, with a dot at the weight of now.

import { byId } from "./dom.js";

const [WIDTH, HEIGHT, EDGE] = [200, 56, 6];
const SVG = "http://www.w3.org/2000/svg";

export function drawCurve(points, weight, ndcg) {
  const target = byId("curve");
  if (!points.length || ndcg === null) return target.replaceChildren();
  const values = [...points.map(([, value]) => value), ndcg];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const spread = Math.max(most - least, 0.02); // a flat curve is not drawn as noise
  const x = (w) => w * WIDTH;
  const y = (value) => HEIGHT - EDGE - ((value - least) / spread) * (HEIGHT - 2 * EDGE);
  const all = [...points.filter(([w]) => w !== weight), [weight, ndcg]].sort(([a], [b]) => a - b);
  const path = all.map(([w, value]) => `${x(w).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  target.replaceChildren(
    svg("polygon", { class: "under", points: `0,${HEIGHT} ${path} ${WIDTH},${HEIGHT}` }),
    svg("polyline", { class: "line", points: path }),
    svg("line", { class: "now", x1: x(weight), x2: x(weight), y1: y(ndcg), y2: HEIGHT }),
    // a line without length and with round ends is a dot that keeps its shape when the drawing is stretched
    svg("line", { class: "dot", x1: x(weight), x2: x(weight), y1: y(ndcg), y2: y(ndcg) }),
  );
}

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
