import { Answer } from "./answer.js";
import { events } from "./sse.js";

const NUM_ALTERNATIVES = 5;
const KEY = "pluribus-api-key";
const MS_BETWEEN_LOOKS = 1000; // at a model that loads
const ENDINGS = {
  length: "the limit is reached",
  stop: "the model ended its text, or came to a stop text",
};

const at = (id) => document.getElementById(id);
const parts = { output: at("answer"), rows: at("rows"), table: at("table") };

let running = null; // the AbortController of the answer under way
let answer = new Answer(parts);

/** An answer of the server, or no answer, that a person has to be told about. */
class Refusal extends Error {}

/** Ask the server; throw a Refusal that says why it would not. */
async function ask(path, options = {}) {
  const key = at("key").value.trim();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached. Is it still running?");
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const advice = wait ? ` Try again in ${wait} s.` : "";
  if (response.status === 401) at("key").focus();
  throw new Refusal((error?.message ?? `The server answered ${response.status}.`) + advice);
}

function requestBody() {
  const numbers = [...at("form").querySelectorAll("input[name]")].filter((input) => input.value);
  const stop = at("stop_texts").value.split("\n").filter(Boolean);
  return {
    model: at("model").textContent || undefined,
    prompt: at("prompt").value,
    ...Object.fromEntries(numbers.map((input) => [input.name, input.valueAsNumber])),
    stop: stop.length ? stop.map((text) => text.replaceAll("\\n", "\n")) : undefined,
    logprobs: NUM_ALTERNATIVES,
    stream: true,
    stream_options: { include_usage: true },
  };
}

async function run() {
  if (running) return;
  running = new AbortController();
  answer = new Answer(parts);
  const clock = new Clock();
  begin();
  try {
    const ending = await stream(clock, running.signal);
    say(`Finished after ${clock.count}: ${ending}.`);
  } catch (error) {
    if (error.name === "AbortError") {
      say(`Stopped after ${clock.count}.`);
    } else {
      fail(error instanceof Refusal ? error.message : `The answer broke off: ${error.message}`);
    }
  } finally {
    running = null;
    end();
  }
}

/** Show the answer while it comes; return why it ended. */
async function stream(clock, signal) {
  const response = await ask("v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(requestBody()),
    signal,
  });
  let reason = "";
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const { choices, usage, error, note } = JSON.parse(data);
    if (error) throw new Refusal(error.message);
    if (note) show("note", note);
    if (usage) clock.correct(usage.completion_tokens);
    for (const choice of choices) {
      answer.append(choice);
      reason = ENDINGS[choice.finish_reason] ?? reason;
      clock.show(answer.numTokens);
    }
    if (answer.numTokens && !reason) say("Generating …");
  }
  if (!reason) throw new Refusal("The answer broke off: the server ended it without a reason.");
  return reason;
}

/** Measures an answer from the moment it is asked for. */
class Clock {
  #asked = performance.now();
  #first = null;
  #numFirst = 0;
  #numTokens = 0;

  get count() {
    return `${this.#numTokens} ${this.#numTokens === 1 ? "token" : "tokens"}`;
  }

  /** Show what is known now that `numTokens` are here. */
  show(numTokens) {
    const now = performance.now();
    this.correct(numTokens);
    if (this.#first === null && numTokens) {
      this.#first = now;
      this.#numFirst = numTokens;
      at("first").textContent = seconds(now - this.#asked);
    }
    // What came with the first event took no time of its own.
    const rate = (1000 * (numTokens - this.#numFirst)) / (now - this.#first);
    at("total").textContent = seconds(now - this.#asked);
    if (Number.isFinite(rate) && rate > 0) at("speed").textContent = rate.toFixed(1);
  }

  /** Show another number of tokens: logprobs also tell of the one that ends a text. */
  correct(numTokens) {
    this.#numTokens = numTokens;
    at("tokens").textContent = numTokens;
  }
}

const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(2)} s`);

function begin() {
  at("run").setAttribute("aria-disabled", "true");
  at("stop").disabled = false;
  at("continue").disabled = true;
  at("answer").setAttribute("aria-busy", "true");
  for (const id of ["error", "note"]) at(id).hidden = true;
  for (const id of ["tokens", "speed", "first", "total"]) at(id).textContent = "–";
  say("Waiting for the first token …");
}

function end() {
  if (document.activeElement === at("stop")) at("run").focus();
  at("run").removeAttribute("aria-disabled");
  at("stop").disabled = true;
  at("continue").disabled = !answer.text;
  at("answer").removeAttribute("aria-busy");
}

function say(text) {
  if (at("status").textContent !== text) at("status").textContent = text; // said once, not at every event
}

function fail(text) {
  say("");
  show("error", text);
}

function show(id, text) {
  at(id).textContent = text;
  at(id).hidden = false;
}

function moveToPrompt() {
  at("prompt").value += answer.text;
  answer = new Answer(parts);
  at("continue").disabled = true;
  at("prompt").focus();
}

/** Show which model is served, once it is. */
async function introduce() {
  const response = await fetch("readyz").catch(() => null);
  const { state = "unreachable", detail = "" } = (await response?.json()) ?? {};
  at("state").dataset.state = state;
  at("state").textContent = state;
  at("state").title = detail;
  if (state !== "ready") {
    setTimeout(introduce, MS_BETWEEN_LOOKS);
    return;
  }
  const { data } = await (await ask("v1/models")).json();
  show("model", data[0].id);
}

function pairSliders() {
  for (const slider of document.querySelectorAll("input[type=range]")) {
    const number = at(slider.dataset.for);
    // A second way to the same value, for the mouse alone.
    slider.tabIndex = -1;
    slider.ariaHidden = "true";
    slider.value = number.value;
    slider.addEventListener("input", () => (number.value = slider.value));
    number.addEventListener("input", () => (slider.value = number.value));
  }
}

function listen() {
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  at("stop").addEventListener("click", () => running?.abort());
  at("continue").addEventListener("click", moveToPrompt);
  at("colour").addEventListener("change", (event) => {
    at("answer").classList.toggle("coloured", event.target.checked);
    at("legend").hidden = !event.target.checked;
  });
  at("table").addEventListener("toggle", () => answer.drawTable());
  at("key").addEventListener("change", (event) => {
    sessionStorage.setItem(KEY, event.target.value);
    introduce().catch((error) => fail(error.message));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      at("form").requestSubmit();
    }
  });
}

at("key").value = sessionStorage.getItem(KEY) ?? "";
pairSliders();
listen();
introduce().catch((error) => fail(error.message));
