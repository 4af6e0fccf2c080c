// Elements. Texts of a release only ever become text nodes.

export const byId = (name) => document.getElementById(name);

export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function show(target, shown) {
  target.hidden = !shown;
}

export function press(buttons, chosen) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(chosen(button)));
}

export const decimals = (value, digits = 4) => (value === null ? "–" : value.toFixed(digits));
export const count = (value) => value.toLocaleString("en-US");
