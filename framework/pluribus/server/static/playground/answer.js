const LEVELS = [0.05, 0.2, 0.5, 0.9]; // the legend's borders
const NEAR_THE_END = 40; // pixels within which a reader is taken to follow

/** Shows an answer as it grows: its text, each token's probability, and a table of them. */
export class Answer {
  #output;
  #rows;
  #table;
  #text = "";
  #logprobs = [];
  #spans = [];

  constructor({ output, rows, table }) {
    this.#output = output;
    this.#rows = rows;
    this.#table = table;
    output.replaceChildren();
    rows.replaceChildren();
  }

  get text() {
    return this.#text;
  }

  get numTokens() {
    return this.#logprobs.length;
  }

  /** Add a piece of the answer: a choice of a completion's chunk. */
  append({ text, logprobs }) {
    const unsettled = Math.max(0, this.#spans.length - 1); // the last may have grown
    this.#text += text;
    this.#logprobs.push(...tokensOf(logprobs));
    this.#draw(unsettled);
    if (this.#table.open) this.drawTable();
  }

  /** Bring the table up to date; worth it only while somebody looks at it. */
  drawTable() {
    const from = Math.max(0, this.#rows.children.length - 1);
    while (this.#rows.children.length > from) this.#rows.lastChild.remove();
    const pieces = this.#pieces(from);
    this.#rows.append(...this.#logprobs.slice(from).map((token, i) => rowOf(token, pieces[i])));
  }

  #draw(from) {
    const box = this.#output;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_THE_END;
    const pieces = this.#pieces(from);
    for (const [i, piece] of pieces.entries()) {
      const index = from + i;
      if (index === this.#spans.length) {
        this.#spans.push(spanOf(this.#logprobs[index]));
        this.#output.append(this.#spans[index]);
      }
      this.#spans[index].textContent = piece;
    }
    if (follows) box.scrollTop = box.scrollHeight;
  }

  /** Cut the text, which is counted in characters, at the tokens from index `from` on. */
  #pieces(from) {
    const characters = Array.from(this.#text);
    const start = this.#logprobs[0]?.offset ?? 0;
    const borders = this.#logprobs.slice(from).map(({ offset }) => offset - start);
    borders.push(characters.length);
    return borders.slice(1).map((end, i) => characters.slice(borders[i], end).join(""));
  }
}

/** Return "42 %", with as many digits as tell it from never and always. */
export function percent(probability) {
  const value = 100 * probability;
  if (value < 0.1) return "< 0.1 %";
  return `${value < 10 || value > 99 ? value.toFixed(1) : value.toFixed(0)} %`;
}

function tokensOf(logprobs) {
  return (logprobs?.tokens ?? []).map((token, i) => ({
    token,
    offset: logprobs.text_offset[i],
    probability: Math.exp(logprobs.token_logprobs[i]),
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {}),
  }));
}

function spanOf({ probability }) {
  const span = document.createElement("span");
  span.className = "token";
  span.dataset.level = LEVELS.filter((border) => probability >= border).length;
  span.title = percent(probability);
  return span;
}

function rowOf({ token, probability, top }, piece) {
  const row = document.createElement("tr");
  const others = top.filter(([other]) => other !== token).sort(([, a], [, b]) => b - a);
  const alternatives = document.createElement("td");
  for (const [other, logprob] of others) {
    alternatives.append(quoted(other), ` ${percent(Math.exp(logprob))} `);
  }
  const name = document.createElement("th");
  name.scope = "row";
  name.append(quoted(piece || token));
  const likely = document.createElement("td");
  likely.textContent = percent(probability);
  row.append(name, likely, alternatives);
  return row;
}

/** Make white space visible: a token is often nothing else. */
function quoted(text) {
  const code = document.createElement("code");
  code.textContent = text.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  return code;
}
