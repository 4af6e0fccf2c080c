// The JSON of the server. Addresses are relative, so that the page also works below a path of a proxy.

export const MAX_UPLOAD = 20 * 1024 * 1024;

export class ApiError extends Error {}

export function get(path, parameters = {}, signal = undefined) {
  return ask(address(path, parameters), { signal });
}

export function searchImage(image, parameters, signal = undefined) {
  return ask(address("api/search", parameters), { method: "POST", body: image, signal });
}

export function productPath(card, end) {
  return `api/product/${encodeURIComponent(card.product_id)}/${end}`;
}

function address(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null);
  const search = new URLSearchParams(given).toString();
  return search ? `${path}?${search}` : path;
}

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Start it again with: sqid explore");
  }
  let body = null;
  try {
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!answer.ok) throw new ApiError(body?.error ?? `The server answered ${answer.status}.`);
  return body;
}

// Runs one request at a time; of those that come meanwhile only the last is run.
export class Latest {
  #running = null;
  #waiting = null;
  #stop = null;

  // `now`: the request that runs is given up, not waited for.
  run(task, now = false) {
    this.#waiting = task;
    if (now) this.#stop?.abort();
    this.#running ??= this.#drain();
    return this.#running;
  }

  async #drain() {
    try {
      while (this.#waiting) {
        const task = this.#waiting;
        this.#waiting = null;
        this.#stop = new AbortController();
        await task(() => this.#waiting !== null, this.#stop.signal);
      }
    } finally {
      this.#running = null;
    }
  }
}
