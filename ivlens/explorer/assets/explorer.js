// Draws the explorer of heads, on a page and in a notebook: `mount` is given what `encoding.py` makes.
"use strict";

const MOST_ATTENDED = 6;
const KINDS = { corrupted: "task corrupted", clean: "task shown", given: "given" };

// Elements. All text comes in as text: whatever is in a file is never read as markup.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function table(caption, columns, rows) {
  const head = columns.map((column, at) => {
    const isText = rows[0]?.[at] instanceof Element && rows[0][at].classList.contains("ivx-text");
    return make("th", { scope: "col", class: isText ? "ivx-text" : null }, column);
  });
  const body = rows.map(([name, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => (cell instanceof Element ? cell : make("td", {}, cell)))),
  );
  return make(
    "div",
    { class: "ivx-scroll", tabindex: "0", role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)),
  );
}

// Numbers. They come whole, with the number of digits behind the point: what is printed is what Python prints.

const written = (whole, digits) => (whole === null ? "not measured" : (whole / 10 ** digits).toFixed(digits));
const signed = (whole, digits) => (whole !== null && whole >= 0 ? "+" : "") + written(whole, digits);
const bounded = (grid, at, digits) =>
  signed(grid.mean[at], digits) +
  (grid.low[at] === null ? "" : ` [${signed(grid.low[at], digits)}, ${signed(grid.high[at], digits)}]`);
const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value ?? 0)), 0);

// A token as it is told: spaces and line breaks are seen.
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "·") || "(nothing)";

// Attention

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Attention {
  constructor(content, nHeads, nTokens) {
    const rows = nHeads * nTokens;
    this.nTokens = nTokens;
    this.last = content.subarray(0, rows);
    this.counts = content.subarray(rows, 2 * rows);
    this.starts = new Uint32Array(rows + 1);
    for (let at = 0; at < rows; at++) this.starts[at + 1] = this.starts[at] + this.counts[at];
    const kept = 2 * rows + this.starts[rows];
    this.weights = content.subarray(2 * rows, kept);
    this.keys = nTokens <= 256 ? content.subarray(kept) : new Uint16Array(content.slice(kept).buffer);
  }

  // Hundredths, from one token to all.
  row(head, token) {
    const first = head * this.nTokens;
    if (token === this.nTokens - 1) return this.last.subarray(first, first + this.nTokens);
    const row = new Uint8Array(this.nTokens);
    for (let at = this.starts[first + token]; at < this.starts[first + token + 1]; at++) row[this.keys[at]] = this.weights[at];
    return row;
  }
}

// Colours: places from 0 to 1 on the scale of all figures, white in the middle.

function painter(stops) {
  const parts = stops.map(([place, colour]) => [place, [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))]);
  return (share) => {
    const place = Math.min(1, Math.max(0, (share + 1) / 2));
    const after = Math.max(1, parts.findIndex(([stop]) => stop >= place));
    const [[low, from], [high, to]] = [parts[after - 1], parts[after]];
    const by = (place - low) / (high - low);
    return `rgb(${from.map((value, at) => Math.round(value + by * (to[at] - value))).join(" ")})`;
  };
}

export async function mount(root, data, live = null) {
  const prefix = `ivx${Math.random().toString(36).slice(2, 8)}`;
  const { heads: nHeads, layers: nLayers, models } = data;
  const isTwo = models.length === 2;
  const names = isTwo ? ["before", "after"] : [""];
  const total = nLayers * nHeads;
  const paint = painter(data.colours);
  const address = (at) => `L${Math.floor(at / nHeads)}H${at % nHeads}`;
  const marked = new Set(data.marked.map(([layer, head]) => layer * nHeads + head));
  const isOwn = data.shown.some((prompt) => prompt.kind === "given");
  const effect = data.unit === "nats" ? "nats" : "P(answer)";
  const patterns = await Promise.all(
    models.map((model) =>
      Promise.all(model.attention.map(async (text, at) => new Attention(await unpack(text), total, data.shown[at].tokens.length))),
    ),
  );
  const state = { model: 0, head: 0, prompt: 0, token: null, hovered: null };
  root.replaceChildren();

  // What the heat map can show

  const maps = models.flatMap((model, number) => [
    { name: isTwo ? `AIE ${names[number]}` : "AIE", grid: model.aie, digits: data.digits, unit: data.unit },
    { name: isTwo ? `lost when ablated, ${names[number]}` : "lost when ablated", grid: model.lost, digits: data.probability_digits, unit: "P(answer)" },
  ]);
  if (data.change !== null) maps.push({ name: "AIE, change", grid: data.change, digits: data.digits, unit: data.unit });
  for (const map of maps) {
    const alike = maps.filter((other) => other.unit === map.unit);
    map.bound = Math.max(...alike.map((other) => largest(other.grid.mean))) || 1;
  }
  let map = maps[0];

  // Heat map

  const note = make("p", { class: "ivx-note", id: `${prefix}-note` });
  const cells = [];
  const grid = make("div", { class: "ivx-grid", role: "grid", "aria-label": "Heads: layers down, heads across", "aria-describedby": `${prefix}-keys` });
  grid.style.setProperty("--ivx-heads", nHeads);
  grid.style.setProperty("--ivx-layers", nLayers);
  const stepOf = (count, most) => [1, 2, 4, 5, 8, 16, 32].find((step) => count <= most * step) ?? 64;
  for (let layer = 0; layer < nLayers; layer++) {
    const row = make("div", { role: "row", class: "ivx-row" });
    row.append(make("span", { role: "rowheader", class: "ivx-axis", "aria-label": `layer ${layer}` }, layer % stepOf(nLayers, 16) ? "" : String(layer)));
    for (let head = 0; head < nHeads; head++) {
      const at = layer * nHeads + head;
      const cell = make("div", { role: "gridcell", tabindex: "-1", class: marked.has(at) ? "ivx-cell ivx-marked" : "ivx-cell" });
      cell.dataset.at = at;
      cells.push(cell);
      row.append(cell);
    }
    grid.append(row);
  }
  const across = make("div", { class: "ivx-row", "aria-hidden": "true" }, make("span", { class: "ivx-axis" }));
  for (let head = 0; head < nHeads; head++) across.append(make("span", { class: "ivx-axis" }, head % stepOf(nHeads, 16) ? "" : String(head)));
  grid.append(across);

  const bar = make("div", { class: "ivx-bar", "aria-hidden": "true" });
  const stops = Array.from({ length: 33 }, (_, at) => paint((at - 16) / 16));
  bar.append(make("i", {}), make("span", {}), make("span", {}, "0"), make("span", {}));
  bar.firstChild.style.background = `linear-gradient(to right, ${stops.join(", ")})`;

  const say = (at) => {
    const value = map.grid.mean[at] === null ? "not measured" : bounded(map.grid, at, map.digits);
    return `${address(at)}: ${map.name} ${value}${marked.has(at) ? ", writes the vector" : ""}`;
  };
  const colour = () => {
    cells.forEach((cell, at) => {
      const value = map.grid.mean[at];
      cell.style.background = value === null ? "" : paint(value / map.bound);
      cell.setAttribute("aria-label", say(at));
    });
    const [, low, , high] = bar.children;
    low.textContent = signed(-map.bound, map.digits);
    high.textContent = `${signed(map.bound, map.digits)} ${map.unit}`;
  };
  const tell = (at) => { note.textContent = say(at); };

  const pick = make("select", { id: `${prefix}-map` }, ...maps.map((one, at) => make("option", { value: at }, one.name)));
  pick.addEventListener("change", () => { map = maps[pick.value]; colour(); tell(state.head); });
  const typed = make("input", { id: `${prefix}-head`, size: "7", autocomplete: "off", spellcheck: "false", "aria-describedby": `${prefix}-keys` });
  const find = () => {
    const match = /^\s*L?(\d+)[\s,]*H?(\d+)\s*$/i.exec(typed.value);
    const at = match ? Number(match[1]) * nHeads + Number(match[2]) : -1;
    const is = match !== null && Number(match[1]) < nLayers && Number(match[2]) < nHeads;
    typed.setAttribute("aria-invalid", String(!is));
    if (is) choose(at);
    else note.textContent = `There is no head ${typed.value}: write it as L${nLayers - 1}H${nHeads - 1}, counted from 0.`;
  };
  typed.addEventListener("change", find);
  // In JupyterLab Enter changes nothing by itself.
  typed.addEventListener("keydown", (event) => { if (event.key === "Enter") find(); });
  typed.addEventListener("focus", () => typed.select());

  const choose = (at, focus = false) => {
    cells[state.head].tabIndex = -1;
    cells[state.head].setAttribute("aria-selected", "false");
    state.head = at;
    cells[at].tabIndex = 0;
    cells[at].setAttribute("aria-selected", "true");
    if (focus) cells[at].focus();
    typed.value = address(at);
    typed.setAttribute("aria-invalid", "false");
    tell(at);
    show();
  };
  const headOf = (event) => (event.target.dataset?.at === undefined ? null : Number(event.target.dataset.at));
  grid.addEventListener("click", (event) => { const at = headOf(event); if (at !== null) choose(at, true); });
  grid.addEventListener("mouseover", (event) => { const at = headOf(event); if (at !== null) tell(at); });
  grid.addEventListener("mouseleave", () => tell(state.head));
  grid.addEventListener("keydown", (event) => {
    const at = state.head;
    const row = at - (at % nHeads);
    const moves = {
      ArrowLeft: at % nHeads ? at - 1 : at,
      ArrowRight: at % nHeads < nHeads - 1 ? at + 1 : at,
      ArrowUp: at >= nHeads ? at - nHeads : at,
      ArrowDown: at + nHeads < total ? at + nHeads : at,
      Home: event.ctrlKey ? 0 : row,
      End: event.ctrlKey ? total - 1 : row + nHeads - 1,
      PageUp: at % nHeads,
      PageDown: total - nHeads + (at % nHeads),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(moves[event.key], true);
  });

  // One head

  const title = make("h3", { class: "ivx-title", id: `${prefix}-title`, "aria-live": "polite" });
  const facts = make("dl", { class: "ivx-facts" });
  const byPrompt = make("div", {});
  const writes = make("div", { class: "ivx-writes" });

  const which = make("select", { id: `${prefix}-model` }, ...models.map((model, at) => make("option", { value: at }, `${names[at]}: ${model.name}`)));
  which.addEventListener("change", () => { state.model = Number(which.value); show(); });
  const promptName = (prompt) => `${prompt.query} → ${prompt.answer} (${KINDS[prompt.kind]})`;
  const prompts = make("select", { id: `${prefix}-prompt` }, ...data.shown.map((prompt, at) => make("option", { value: at }, promptName(prompt))));
  prompts.addEventListener("change", () => { state.prompt = Number(prompts.value); layTokens(); showAttention(); });

  const from = make("p", { class: "ivx-note" });
  const tokens = make("div", { class: "ivx-tokens", role: "toolbar", "aria-label": "Tokens of the prompt: attention from each", "aria-describedby": `${prefix}-tokens` });
  const attended = make("div", {});
  let chips = [];

  const layTokens = () => {
    const texts = data.shown[state.prompt].tokens;
    state.token = texts.length - 1;
    state.hovered = null;
    chips = texts.map((text, at) => {
      const chip = make("button", { type: "button", tabindex: at === state.token ? "0" : "-1", class: "ivx-token" }, visible(text));
      chip.dataset.token = at;
      return chip;
    });
    tokens.replaceChildren(...chips);
    tokens.scrollTop = tokens.scrollHeight;
  };
  const showAttention = () => {
    const texts = data.shown[state.prompt].tokens;
    const token = state.hovered ?? state.token;
    const row = patterns[state.model][state.prompt].row(state.head, token);
    const isLast = token === texts.length - 1;
    chips.forEach((chip, at) => {
      chip.style.setProperty("--ivx-weight", Math.sqrt(row[at] / 100).toFixed(3));
      chip.classList.toggle("ivx-from", at === token);
      chip.classList.toggle("ivx-behind", at > token);
      chip.setAttribute("aria-label", `token ${at} ${visible(texts[at])}: ${at > token ? "comes later" : `attention ${written(row[at], 2)}`}`);
      chip.setAttribute("aria-pressed", String(at === state.token));
    });
    from.textContent = `${address(state.head)} from token ${token} ${visible(texts[token])}${isLast ? ", the last one" : ""}:`;
    const order = Array.from(row.keys()).filter((at) => row[at] > 0).sort((a, b) => row[b] - row[a] || a - b);
    attended.replaceChildren(
      table(
        "Attended most",
        ["token", "", "weight"],
        order.slice(0, MOST_ATTENDED).map((at) => [String(at), make("td", { class: "ivx-text" }, visible(texts[at])), written(row[at], 2)]),
      ),
      make("p", { class: "ivx-note" }, isLast || data.least <= 1 ? "Weights are rounded to 0.01." : `Weights are rounded to 0.01; from this token those below ${written(data.least, 2)} are left out.`),
    );
  };
  const tokenOf = (event) => {
    const chip = event.target.closest?.(".ivx-token");
    return chip ? Number(chip.dataset.token) : null;
  };
  const hover = (token) => { if (state.hovered !== token) { state.hovered = token; showAttention(); } };
  tokens.addEventListener("mouseover", (event) => { const token = tokenOf(event); if (token !== null) hover(token); });
  tokens.addEventListener("mouseleave", () => hover(null));
  tokens.addEventListener("focusin", (event) => hover(tokenOf(event)));
  tokens.addEventListener("focusout", () => hover(null));
  const pin = (token, focus) => {
    chips[state.token].tabIndex = -1;
    state.token = token;
    chips[token].tabIndex = 0;
    if (focus) chips[token].focus();
    showAttention();
  };
  tokens.addEventListener("click", (event) => { const token = tokenOf(event); if (token !== null) pin(token, true); });
  tokens.addEventListener("keydown", (event) => {
    const at = tokenOf(event);
    const last = chips.length - 1;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last, ArrowUp: at - 1, ArrowDown: at + 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    pin(Math.min(last, Math.max(0, moves[event.key])), true);
  });

  const ranks = models.map((model) => {
    const order = Array.from(model.aie.mean.keys()).sort((a, b) => (model.aie.mean[b] ?? -Infinity) - (model.aie.mean[a] ?? -Infinity) || a - b);
    const rank = new Array(total);
    order.forEach((at, place) => { rank[at] = place + 1; });
    return rank;
  });
  const bars = (whole, bound, text) => {
    const cell = make("td", { class: "ivx-number" }, make("i", { class: whole < 0 ? "ivx-less" : "ivx-more", "aria-hidden": "true" }), text);
    cell.firstChild.style.width = `${((2.6 * Math.abs(whole ?? 0)) / bound).toFixed(2)}rem`;
    return cell;
  };
  const ofModels = (column) => (isTwo ? names.map((name) => `${column}, ${name}`) : [column]);

  const showFacts = () => {
    const at = state.head;
    const lines = models.flatMap((model, number) => [
      [ofModels(`AIE (${data.unit})`)[number], `${bounded(model.aie, at, data.digits)}, rank ${ranks[number][at]} of ${total}`],
      [ofModels("P(answer) lost when ablated")[number], model.lost.mean[at] === null ? "not measured" : bounded(model.lost, at, data.probability_digits)],
    ]);
    if (data.change !== null) lines.push([`AIE, change (${data.unit})`, bounded(data.change, at, data.digits)]);
    if (marked.has(at)) lines.push(["Vector", "this head is one of those that write it"]);
    facts.replaceChildren(...lines.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  };
  const showPrompts = () => {
    const part = (caption, queries, whole, wholeDigits, values, digits, of) => {
      const bound = Math.max(...models.map((model) => largest(model[values].flat()))) || 1;
      const rows = queries.map((query, number) => [
        `${query.query} → ${query.answer}`,
        ...models.flatMap((model) => [
          written(model[whole][number], wholeDigits),
          bars(model[values][number][state.head], bound, signed(model[values][number][state.head], digits)),
        ]),
      ]);
      const columns = ["prompt", ...names.flatMap((name) => [of[0], of[1]].map((column) => (name ? `${column}, ${name}` : column)))];
      return make("details", { open: true }, make("summary", {}, `${caption} (${queries.length} prompts)`), table(caption, columns, rows));
    };
    const open = [...byPrompt.querySelectorAll("details")].map((details) => details.open);
    byPrompt.replaceChildren(
      part(`Effect of its clean output${isOwn ? "" : ", task corrupted"}`, data.corrupted, "unpatched", data.digits, "cie", data.digits, [effect, "CIE"]),
      part(`Loss when ablated${isOwn ? "" : ", task shown"}`, data.clean, "whole", data.probability_digits, "lost_by_prompt", data.probability_digits, ["P(answer)", "lost"]),
    );
    byPrompt.querySelectorAll("details").forEach((details, at) => { details.open = open[at] ?? at === 0; });
  };
  const showWriting = () => {
    const { writing } = models[state.model];
    if (writing === null) {
      writes.replaceChildren(make("p", { class: "ivx-note" }, "What heads of this model compute does not reach the residual stream by weights alone."));
      return;
    }
    const places = writing.top.length / total;
    const lines = (ids, logits) => Array.from({ length: places }, (_, place) => {
      const at = state.head * places + place;
      return [visible(data.texts[ids[at]]), signed(logits[at], data.logit_digits)];
    });
    writes.replaceChildren(
      table("Written most", ["token", "logit"], lines(writing.top, writing.top_logits)),
      table("Written least", ["token", "logit"], lines(writing.bottom, writing.bottom_logits)),
    );
  };
  const show = () => {
    const at = state.head;
    title.textContent = `Head ${address(at)}`;
    showFacts();
    showAttention();
    showPrompts();
    showWriting();
  };

  // The vector

  const { steering } = data;
  const slider = (name, values, chosen, text) => {
    const at = Math.max(0, values.indexOf(chosen));
    const input = make("input", { type: "range", id: `${prefix}-${name}`, min: "0", max: String(values.length - 1), step: "1", value: String(at) });
    const output = make("output", { for: `${prefix}-${name}` });
    const write = () => {
      output.textContent = text(values[input.value]);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => { write(); steer(); });
    write();
    return { input, field: make("div", { class: "ivx-slider" }, make("label", { for: `${prefix}-${name}` }, name), input, output) };
  };
  const layer = slider("layer", steering.layers, steering.layer, (value) => `after block ${value}`);
  const strength = slider("strength", steering.scales, steering.scale, (value) => `${value} ×`);
  const replies = make("div", { "aria-live": "polite" });
  const drawReplies = (found) => {
    const reply = (of, at) =>
      make("td", { class: "ivx-text" }, of ? of.replies[at] || "(nothing)" : "…", make("br"), make("small", {}, of ? written(of.probability[at], data.probability_digits) : "…"));
    const rows = steering.prompts.map(({ query, answer }, at) => [`${query} → ${answer}`, reply(steering.without, at), reply(found, at)]);
    replies.replaceChildren(table("Replies, and P(answer)", ["prompt", "without", "with the vector"], rows));
  };
  let isAsking = false;
  const steer = () => {
    const [at, times] = [layer.input.value, strength.input.value];
    if (steering.cells.length) drawReplies(steering.cells[at][times]);
    else if (live !== null) ask(at, times);
  };
  // One question at a time: what the sliders pass over while the kernel is at work is not asked.
  const ask = async (at, times) => {
    drawReplies(null);
    if (isAsking) return;
    isAsking = true;
    const found = await live(steering.layers[at], steering.scales[times]);
    isAsking = false;
    if (layer.input.value === at && strength.input.value === times) drawReplies(found);
    else steer();
  };

  // All of it

  const label = (name, text) => make("label", { for: `${prefix}-${name}` }, text);
  const first = Array.from(models[0].aie.mean.keys()).reduce((best, at) => ((models[0].aie.mean[at] ?? -Infinity) > (models[0].aie.mean[best] ?? -Infinity) ? at : best), 0);
  const body = make("div", { class: "ivx-body" });
  root.append(body);
  const left = make("div", { class: "ivx-left" });
  left.append(
    make(
      "section",
      { class: "ivx-heads", "aria-label": "Heads" },
      make("div", { class: "ivx-fields" }, make("span", {}, label("map", "Colour"), pick), make("span", {}, label("head", "Head"), typed)),
      grid,
      bar,
      note,
      make("p", { class: "ivx-note", id: `${prefix}-keys` }, `Layers down, heads across; outlined: the ${marked.size} heads that write the vector. Colours grow with the square root. Click a head, move with the arrow keys, or type its address.`),
    ),
    make(
      "section",
      { class: "ivx-vector", "aria-label": "The vector" },
      make("h3", { class: "ivx-title" }, "Add the vector"),
      make("p", { class: "ivx-note" }, `What the outlined heads write, added to the residual stream at the last token of the prompt${isTwo ? `; on ${models[0].name}` : ""}.`),
      layer.field,
      strength.field,
      replies,
    ),
  );
  body.append(
    left,
    make(
      "section",
      { class: "ivx-head", "aria-labelledby": `${prefix}-title` },
      title,
      facts,
      isTwo ? make("div", { class: "ivx-fields" }, make("span", {}, label("model", "Model"), which)) : null,
      make("h4", {}, "Attention"),
      make("div", { class: "ivx-fields" }, make("span", {}, label("prompt", "Prompt"), prompts)),
      from,
      tokens,
      make("p", { class: "ivx-note", id: `${prefix}-tokens` }, "Point at a token, or move to it with the arrow keys, and the attention is from there; a click keeps it."),
      attended,
      make("h4", {}, "What its mean output writes"),
      make("p", { class: "ivx-note" }, "Through the final norm and the unembedding, as if it were the whole residual stream."),
      writes,
      make("h4", {}, "Prompt by prompt"),
      byPrompt,
    ),
  );
  colour();
  layTokens();
  choose(first);
  steer();
}

// In a notebook: anywidget calls `render`; the kernel answers what the sliders ask.

function render({ model, el }) {
  const root = make("div", { class: "ivx ivx-notebook" });
  el.append(root);
  const waiting = new Map();
  let number = 0;
  const hear = (message) => {
    waiting.get(message.number)?.(message);
    waiting.delete(message.number);
  };
  model.on("msg:custom", hear);
  mount(root, JSON.parse(model.get("data")), (layer, scale) => new Promise((resolve) => {
    waiting.set(++number, resolve);
    model.send({ number, layer, scale });
  }));
  // JupyterLab looks at keys first, and to it a "d" pressed twice deletes the cell: it leaves alone what has this mark.
  const keep = (event) => {
    const isTheirs = event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
    if (root.contains(event.target)) event.target.toggleAttribute("data-lm-suppress-shortcuts", !isTheirs);
  };
  window.addEventListener("keydown", keep, true);
  return () => {
    model.off("msg:custom", hear);
    window.removeEventListener("keydown", keep, true);
  };
}

export default { render };
