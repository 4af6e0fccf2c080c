// The map: menus, and what the pointer or the arrow keys are at. Without this script the map is an image.
const { points, shown } = JSON.parse(document.getElementById("points").textContent);
const maps = document.querySelector(".maps");
const tip = document.getElementById("tip");
const controls = document.getElementById("map-controls");
const NEAR = 14; // units of the map

controls.hidden = false;
controls.addEventListener("submit", (event) => event.preventDefault());
controls.addEventListener("change", () => {
  maps.dataset.by = controls.elements.by.value;
  maps.dataset.kind = controls.elements.kind.value;
  hide();
});
maps.dataset.by = controls.elements.by.value; // a browser may have kept the choice
maps.dataset.kind = controls.elements.kind.value;

let marked = null;

function hide() {
  tip.hidden = true;
  if (marked) marked.classList.remove("marked");
  marked = null;
}

function show(circle, [title, brand, status, label, image]) {
  if (circle === marked) return;
  hide();
  marked = circle;
  circle.classList.add("marked");
  tip.replaceChildren();
  if (image) {
    const small = new Image();
    small.src = image;
    small.alt = "";
    tip.append(small);
  }
  const words = document.createElement("div");
  for (const [kind, text] of [["title", title || "(no title)"], ["facts", [brand, label, status].filter(Boolean).join(" · ")]]) {
    const line = document.createElement("bdi");
    line.className = kind;
    line.textContent = text;
    words.append(line);
  }
  tip.append(words);
  tip.hidden = false;
  const at = circle.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = at.right + 10 + width < document.documentElement.clientWidth ? at.right + 10 : at.left - 10 - width;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, Math.min(at.top - height / 2, innerHeight - height - 8))}px`;
}

for (const svg of document.querySelectorAll("svg.map")) {
  const rows = shown[svg.id.replace("map-", "")];
  const places = [...svg.querySelectorAll("circle")].map((circle, n) => ({
    circle, x: circle.cx.baseVal.value, y: circle.cy.baseVal.value, point: points[rows[n]],
  }));
  const across = [...places].sort((a, b) => a.x - b.x || a.y - b.y); // the order of the arrow keys
  const down = [...places].sort((a, b) => a.y - b.y || a.x - b.x);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = NEAR * NEAR;
    for (const place of places) {
      const distance = (place.x - x) ** 2 + (place.y - y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    }
    best ? show(best.circle, best.point) : hide();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [across, 1], ArrowLeft: [across, -1], ArrowDown: [down, 1], ArrowUp: [down, -1] }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    const [order, by] = step;
    const at = order.findIndex((place) => place.circle === marked);
    const next = order[at < 0 ? 0 : (at + by + order.length) % order.length];
    show(next.circle, next.point);
  });
}
