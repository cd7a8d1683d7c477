// The calculator of "Memory and time": what the sweep over heads takes on a model of given sizes.
// It reckons as ivlens/patching/cost.py does, which a test holds it to.
"use strict";

const GIB = 2 ** 30;
const TOKENS_TOGETHER = 128, PART_OF_UNEMBEDDING = 2 ** 24, SCORE_COPIES = 4, MLP_COPIES = 6;

function ivlensCost({layers, heads, kv, width, head, mlp, gated, vocabulary, prompts, tokens, size, bits, memory}) {
  const rows = 1 + layers * heads, intoHeads = width * head * (heads + 2 * kv), output = width * head * heads;
  const perMlp = (gated ? 3 : 2) * width * mlp, blocks = layers * (intoHeads + output + perMlp);
  const unembedding = width * vocabulary, reading = tokens * blocks;
  const carried = blocks + layers * intoHeads + (rows - 1) * (output + perMlp) +
    Math.floor(heads * (layers - 1) * blocks / 2) + rows * unembedding;
  const perToken = MLP_COPIES * mlp + 8 * width;
  const kept = size * (2 * layers * kv * head * tokens + 2 * rows * width);
  const read = size * tokens * (perToken + SCORE_COPIES * heads * tokens);
  const oneRow = size * (perToken + SCORE_COPIES * heads * (tokens + TOKENS_TOGETHER));
  const taken = size === 2 ? 4 * Math.min(PART_OF_UNEMBEDDING, unembedding) : size * unembedding;
  const half = Math.floor((memory - taken) / 2);
  return {
    weights: Math.round(blocks * (bits / 8 || size)) + 2 * size * unembedding,
    kept,
    atOnce: Math.max(0, Math.min(prompts, Math.floor(half / (kept + read + oneRow)))),
    reading,
    products: prompts * (reading + carried),
  };
}

const MODELS = {
  "SmolLM2-135M": {layers: 30, heads: 9, kv: 3, width: 576, head: 64, mlp: 1536, gated: true, vocabulary: 49152},
  "GPT-2 small": {layers: 12, heads: 12, kv: 12, width: 768, head: 64, mlp: 3072, gated: false, vocabulary: 50257},
  "Llama 3.2 1B": {layers: 16, heads: 32, kv: 8, width: 2048, head: 64, mlp: 8192, gated: true, vocabulary: 128256},
  "Llama 2 7B": {layers: 32, heads: 32, kv: 32, width: 4096, head: 128, mlp: 11008, gated: true, vocabulary: 32000},
  "Llama 3.1 8B": {layers: 32, heads: 32, kv: 8, width: 4096, head: 128, mlp: 14336, gated: true, vocabulary: 128256},
  "Llama 3.1 70B": {layers: 80, heads: 64, kv: 8, width: 8192, head: 128, mlp: 28672, gated: true, vocabulary: 128256},
};
const SIZES = {
  layers: "layers", heads: "heads of a layer", kv: "heads of keys and values", width: "width (d_model)",
  head: "width of a head (d_head)", mlp: "width of the MLP", vocabulary: "vocabulary",
};
const WORK = {
  prompts: ["prompts that rank heads", 25], clean: ["clean prompts, for the means", 100], tokens: ["tokens of a prompt", 100],
  gib: ["--memory, GiB", 2], speed: ["10⁹ operations a second", 80],
};
const PRECISIONS = {"float32": [4, 0], "16 bits": [2, 0], "4 bits (4.5 with scales), computed in 16": [2, 4.5]};

const digits = (value) => value >= 100 ? value.toFixed(0) : value.toPrecision(3);
const bytes = (value) => value < GIB ? `${digits(value / 2 ** 20)} MiB` : `${digits(value / GIB)} GiB`;

function time(seconds) {
  if (seconds < 90) return `${digits(seconds)} s`;
  return seconds < 5400 ? `${digits(seconds / 60)} min` : `${digits(seconds / 3600)} h`;
}

function showCalculator(place) {
  const form = document.createElement("form"), table = document.createElement("table");
  const field = (key, words, control) => {
    const label = document.createElement("label");
    control.name = key;
    label.append(words, control);
    form.append(label);
    return control;
  };
  const choice = (key, words, names) => {
    const select = field(key, words, document.createElement("select"));
    select.append(...names.map((name) => new Option(name)));
    return select;
  };
  const number = (key, words, value) => {
    const input = field(key, words, document.createElement("input"));
    Object.assign(input, {type: "number", min: key === "gib" ? "0.1" : "1", step: "any", required: true, value});
  };
  const model = choice("model", "shape of", Object.keys(MODELS));
  choice("precision", "precision", Object.keys(PRECISIONS));
  for (const [key, words] of Object.entries(SIZES)) number(key, words, MODELS[model.value][key]);
  const gated = field("gated", "gated MLP (three matrices)", document.createElement("input"));
  Object.assign(gated, {type: "checkbox", checked: true});
  for (const [key, [words, value]] of Object.entries(WORK)) number(key, words, value);
  table.setAttribute("aria-live", "polite");
  place.append(form, table);

  const reckon = () => {
    const given = Object.fromEntries([...form.elements].map((one) => [one.name, Number(one.value)]));
    const [size, bits] = PRECISIONS[form.elements.precision.value];
    const cost = ivlensCost({...given, gated: gated.checked, size, bits, memory: given.gib * GIB});
    const means = given.clean * cost.reading, pace = given.speed * 1e9 / 2;
    const perHead = given.prompts * given.layers * given.heads * cost.reading;
    const lines = form.checkValidity() ? {
      "weights": bytes(cost.weights),
      "kept of a prompt: keys, values, rows": bytes(cost.kept),
      "prompts of a batch": cost.atOnce || "none fits: give more memory, or shorter prompts",
      "multiply-adds of the sweep": `${digits(cost.products / 1e12)} · 10¹²`,
      "one run per head instead": `${digits(perHead / cost.products)} times as many`,
      "sweep": time(cost.products / pace),
      "means and sweep, as --only heads": time((cost.products + means) / pace),
    } : {"": "every size is to be a number above 0"};
    table.replaceChildren(...Object.entries(lines).map(([name, value]) => {
      const row = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
      Object.assign(head, {textContent: name, scope: "row"});
      cell.textContent = value;
      row.append(head, cell);
      return row;
    }));
  };
  model.addEventListener("input", () => {
    for (const key of Object.keys(SIZES)) form.elements[key].value = MODELS[model.value][key];
    gated.checked = MODELS[model.value].gated;
  });
  form.addEventListener("input", reckon);
  form.addEventListener("submit", (event) => event.preventDefault());
  reckon();
}

document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("ivlens-calculator");
  if (place) showCalculator(place);
});
