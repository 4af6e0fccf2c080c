// Keyboard shortcuts, and images that are dropped or pasted.

import { byId, show } from "./dom.js";

export function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=range]), select, textarea");
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
    if (typing || document.querySelector("dialog[open]")) return;
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

export function listenToImages(search) {
  const drop = byId("drop");
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    show(drop, true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && show(drop, false));
  document.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    show(drop, false);
    if (event.dataTransfer.files[0]) search(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file) search(file);
  });
  byId("search-file-button").addEventListener("click", () => byId("search-file").click());
  byId("search-file").addEventListener("change", (event) => {
    if (event.target.files[0]) search(event.target.files[0]);
    event.target.value = "";
  });
}
