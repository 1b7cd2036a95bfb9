// Draws the report from its data. Text reaches the page through textContent alone, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;
const css = (share) => `${(100 * share).toFixed(2)}%`;
const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(4));
const LONG = 40; // tokens: longer texts are drawn in less room
const FEW = 8; // texts: more are chosen from a list with search
const NEAREST = 20; // texts whose cosines are listed
const byId = (id) => document.getElementById(id);

function el(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "rect", "title", "defs", "marker", "polygon"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) node.style.setProperty(key, value);
    else if (key === "left" || key === "width-share") node.style[key === "left" ? "left" : "width"] = value;
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null));
  return node;
}
// What cannot be seen is written out, as minitrans.words does: \x1b, \u202e. Joiners are part of the writing of some languages.
function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character, at, whole) => {
    const code = character.codePointAt(0);
    const joins = (code === 0x200c || code === 0x200d) && whole.charCodeAt(at - 1) > 0xff && whole.charCodeAt(at + 1) > 0xff;
    if (joins) return character;
    const named = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
    const [letter, digits] = code > 0xffff ? ["U", 8] : code > 0xff ? ["u", 4] : ["x", 2];
    return named ?? `\\${letter}${code.toString(16).padStart(digits, "0")}`;
  });
}
// Among other words: a text that runs from right to left must not turn them round. In an attribute marks do what bdi does.
const apart = (text) => el("bdi", {}, visible(text));
const marked = (text) => `\u2068${visible(text)}\u2069`;
// A name that may be broken after an underscore.
const breakable = (name) => el("bdi", {}, visible(name).split(/(?<=_)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part])));
const section = (id, title, ...children) =>
  el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...children);
const note = (text) => el("p", { class: "soft" }, text);

// Called at once and whenever the width of a node changes.
function onResize(node, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (node.clientWidth !== width && (width = node.clientWidth)) draw(width);
  }).observe(node);
}
const schemes = matchMedia("(prefers-color-scheme: dark)");
let onScheme = [];
schemes.addEventListener("change", () => onScheme.forEach((draw) => draw()));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The sentence, token by token

function fate(text, token) {
  if (token.dropped_at === null) return token.size > 1 ? `kept; stands for ${token.size} tokens` : "kept";
  if (token.merged_into !== null) return `merged into “${marked(text.tokens[token.merged_into].token)}” at layer ${token.dropped_at}`;
  return `dropped at layer ${token.dropped_at}` + (DATA.policy?.reduce === "restore" ? ", restored for the pooling" : "");
}

function specials(text) {
  const names = [...new Set(text.tokens.filter((token) => token.special).map((token) => visible(token.token)))];
  return names.length ? `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} put around every text.` : "";
}

function sentence(text) {
  let flow = null;
  const chips = text.tokens.map((token, i) => {
    const lit = (on) => () => flow.querySelectorAll("path.link").forEach((path) =>
      path.classList.toggle("lit", on && [path.dataset.from, path.dataset.to].includes(String(i))));
    const label = token.dropped_at === null ? (token.size > 1 ? `×${token.size}` : "") : `L${token.dropped_at}`;
    return el("li", { class: token.dropped_at === null ? "kept" : "dropped", title: fate(text, token),
      onpointerenter: lit(true), onpointerleave: lit(false) },
      el("span", { dir: "auto" }, visible(token.token)), el("span", { class: "hidden" }, ` ${fate(text, token)}`),
      el("small", { "aria-hidden": "true" }, label));
  });
  const merges = text.tokens.some((token) => token.merged_into !== null);
  flow = el("ol", { class: `flow${merges ? " linked" : ""}${merges && text.tokens.length > LONG ? " many" : ""}`, translate: "no", "aria-label": "Tokens in their order" }, chips);
  if (merges) onResize(flow, () => drawLinks(text, flow, chips));
  const parts = [el("blockquote", { dir: "auto" }, visible(text.text) || "(the empty text)"), flow];
  if (text.truncated) parts.splice(1, 0, note(`The text is longer than the model takes: ${text.tokens.length} of its tokens are left.`));
  return section("sentence", "The text, as the encoder sees it",
    note("Solid tokens reach the end; struck ones were taken out at the layer written below them (L2 is layer 2; layers count "
      + "from 0). “##” continues a word. " + specials(text)
      + (DATA.policy?.reduce === "merge" ? " An arrow leads from a merged token to the one that took it in"
        + (text.tokens.length > LONG ? "; point at a token to see its own." : ".") : "")),
    ...parts, tiles(text), text.warning && el("p", { class: "warning", id: "turned" }, `Warning: ${text.warning}.`));
}

function drawLinks(text, flow, chips) {
  flow.querySelector("svg")?.remove();
  const head = el("marker", { id: "arrowhead", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto" },
    el("path", { d: "M0 0 L8 4 L0 8 z" }));
  const taken = {};
  const links = text.tokens.flatMap((token, i) => {
    if (token.merged_into === null) return [];
    const [from, to] = [chips[i], chips[token.merged_into]];
    const [x, y] = [from.offsetLeft + from.offsetWidth / 2, from.offsetTop];
    // Arrows that end at one token end beside each other.
    const place = (taken[token.merged_into] = (taken[token.merged_into] ?? 0) + 1);
    const [u, v] = [to.offsetLeft + to.offsetWidth / 2 + (place % 2 ? 1 : -1) * Math.floor(place / 2) * 5, to.offsetTop];
    const lift = y - 10 - Math.min(16, Math.abs(u - x) / 8);
    // On one line an arc from above; to a line above, up to its lower edge; to one below, down from the lower edge.
    const [start, end] = v === y ? [y, v - 1] : v < y ? [y, v + to.offsetHeight + 17] : [y + from.offsetHeight + 16, v - 1];
    const [bend, turn] = v === y ? [lift, lift] : [(start + end) / 2, (start + end) / 2];
    return [el("path", { class: "link", "data-from": i, "data-to": token.merged_into, "marker-end": "url(#arrowhead)",
      d: `M${x} ${start} C${x} ${bend} ${u} ${turn} ${u} ${end}` })];
  });
  flow.append(el("svg", { "aria-hidden": "true" }, el("defs", {}, head), ...links));
}

function tiles(text) {
  const tile = (term, value, small) => el("div", {}, el("dt", {}, term), el("dd", {}, value, el("small", {}, small)));
  const saved = (share) => (share >= 0 ? `${percent(share)} less` : `${percent(-share)} more`);
  const million = (count) => (count / 1e6).toFixed(1);
  const list = [
    tile("Tokens", `${text.tokens.length} → ${text.kept.length}`, `rows after layers 0 to ${text.rows.length - 1}: ${text.rows.join(" ")}`),
    tile("Work", saved(text.work_saved), `${million(text.unpruned_multiply_adds)} → ${million(text.multiply_adds)} million multiply-adds`),
  ];
  text.timings.forEach((timing) => list.push(tile(timing.texts === 1 ? "Time, alone" : `Time, as one of ${timing.texts}`, timing.verdict,
    `${timing.unpruned_ms.toFixed(2)} → ${timing.pruned_ms.toFixed(2)} ms, medians of ${timing.rounds} runs`)));
  list.push(tile("Embedding", `${text.warning ? "⚠ " : ""}turned by ${text.angle.toFixed(1)}°`, text.meaning));
  if (text.prediction) {
    const [before, after] = [text.unpruned_prediction, text.prediction];
    const changed = before.label !== after.label;
    list.push(tile("Prediction", breakable(after.label), changed ? ["without pruning: ", breakable(before.label)] : "the same without pruning"));
  }
  return el("dl", { class: "tiles" }, list);
}

// Importance against the quantile

const kept = { source: 0, quantile: null, least: null, turn: null, layer: null, head: 0 }; // what was chosen, from text to text

function sources(text) {
  const all = text.tokens.map((_, i) => i);
  const own = text.stages.map((stage) => ({ name: `layer ${stage.layer}, this policy: ${DATA.ranked[stage.score]}`, layer: stage.layer, label: DATA.ranked[stage.score],
    quantile: stage.quantile, places: stage.entered, scores: stage.scores, turn: DATA.turn }));
  const attention = DATA.model.layers_list.map((layer) => ({ name: `layer ${layer}: ${DATA.ranked.attention}, unpruned`, layer, label: DATA.ranked.attention,
    quantile: DATA.policy?.quantile ?? 0.3, places: all, scores: text.tokens.map((token) => token.unpruned[layer]), turn: null }));
  return [...own, ...attention];
}

function explorer(text) {
  const choices = sources(text);
  const policy = DATA.policy ?? { min_tokens: 8, protect_special: false };
  const pick = el("select", { id: "source", onchange: () => choose(true) }, choices.map((each, i) => el("option", { value: i, selected: i === kept.source }, each.name)));
  const slider = el("input", { type: "range", id: "quantile", min: 0, max: 0.99, step: 0.01, oninput: () => choose(false) });
  const least = el("input", { type: "number", id: "least", min: 1, max: 512, step: 1, value: kept.least ?? policy.min_tokens, oninput: () => choose(false) });
  const turn = DATA.turn && el("input", { type: "number", id: "turn", min: 0.5, max: 90, step: 0.5, value: kept.turn ?? policy.max_turn, oninput: () => choose(false) });
  const value = el("output", { for: "quantile" });
  const decision = el("p", { class: "decision", id: "decision", "aria-live": "polite" });
  const bars = el("ol", { class: "bars", "aria-label": "Score of every token" });
  const caption = el("figcaption");
  const long = text.tokens.length > LONG; // the list scrolls by itself, below controls that stay in sight
  const curve = el("div");
  let [state, first, quantile] = [null, true, 0];
  function choose(reset) {
    const source = choices[pick.value];
    if (reset) quantile = first && kept.quantile !== null ? kept.quantile : source.quantile;
    else [quantile, kept.quantile, kept.least, kept.turn] = [Number(slider.value), Number(slider.value), least.value, turn && turn.value];
    slider.value = quantile; // has steps of 0.01; a policy may lie between them
    const asText = String(Math.round(quantile * 1e4) / 1e4);
    if (!first && reset) [kept.source, kept.quantile] = [Number(pick.value), null];
    first = false;
    const minTokens = Math.max(1, Math.floor(Number(least.value)) || 1);
    const guard = policy.protect_special ? DATA.special : { prefix: 0, suffix: 0 };
    const n = source.places.length;
    const degrees = turn && Number(turn.value) > 0 ? Number(turn.value) : policy.max_turn;
    if (turn) turn.disabled = !source.turn; // attention says nothing of the turn
    const result = select(source.scores, quantile, minTokens, { ...guard, budget: source.turn && budgetOf(source.turn, degrees, n) });
    const stay = source.places.filter((_, i) => result.stays[i]);
    const gone = source.places.filter((_, i) => !result.stays[i]).map((place) => apart(text.tokens[place].token));
    value.textContent = asText;
    const asked = Math.floor(quantile * n + 1e-9);
    const why = n <= minTokens ? `texts of up to s = ${minTokens} tokens are left alone`
      : gone.length === asked ? `⌊${asText} · ${n}⌋ = ${asked} go` : `⌊${asText} · ${n}⌋ = ${asked} should go, `
        + (stay.length > result.least ? `${gone.length} do: with more it would be expected to turn farther than ${degrees}°`
          : result.least === minTokens ? `s = ${minTokens} lets ${gone.length}` : `${gone.length} do: the others are protected`);
    const expected = source.turn && gone.length ? `; expected to turn the embedding by ${expectedTurn(source.turn, result.cost, n).toFixed(1)}°` : "";
    decision.replaceChildren(`${stay.length} of ${n} tokens stay: ${why}${expected}`, gone.length ? ". Gone:" : "",
      ...gone.slice(0, 30).flatMap((name) => [" ", name]), gone.length > 30 ? ` and ${gone.length - 30} more` : "");
    decision.dataset.kept = JSON.stringify(stay);
    decision.dataset.threshold = JSON.stringify(result.threshold);
    state = { text, source, quantile, asText, result };
    drawBars(bars, state);
    caption.textContent = "Bars begin at 0 or at the lowest score; one that ends in a point goes on beyond the picture."
      + (result.threshold === null ? "" : " Dashed line: the threshold, the lowest score that stays.");
    if (curve.clientWidth) drawCurve(curve, state);
  }
  choose(true);
  onResize(curve, () => drawCurve(curve, state));
  return section("explorer", "Which tokens stay? Move the quantile",
    note("The quantile q is the share of its tokens that a text gives up; those of the lowest scores go, but never below s tokens"
      + (DATA.turn ? ", and no more than are expected to turn the embedding by the degrees given. " : ". ")
      + "The page decides anew as you move it. What another choice would do to the layers after it is not computed here."),
    el("div", { class: "controls" }, el("label", { class: "wide" }, "Scores", pick),
      el("label", { class: "wide", for: "quantile" }, el("span", {}, "Quantile q: ", value), slider), el("label", {}, "Minimum length s", least),
      turn && el("label", {}, "Expected turn, at most (°)", turn)),
    decision,
    el("div", { class: "sides" },
      el("figure", {}, el("h3", {}, "Score of every token"),
        long ? el("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Score of every token" }, bars) : bars, caption),
      el("figure", {}, el("h3", {}, "The scores in order"), curve,
        el("figcaption", {}, "Left of the dashed line tokens go (hollow), right of it they stay. The dotted line is q: so far it may go. "
          + "A triangle lies above the picture."))));
}

function span(text, source) {
  const ordinary = source.scores.filter((_, i) => !text.tokens[source.places[i]].special);
  const low = Math.min(0, ...source.scores);
  return { low, high: Math.max(...(ordinary.length ? ordinary : source.scores), low + 1e-9) };
}

function drawBars(list, { text, source, result }) {
  const { low, high } = span(text, source);
  const share = (score) => Math.min(1, Math.max(0, (score - low) / (high - low)));
  const at = result.threshold === null ? null : el("b", { left: css(share(result.threshold)), "aria-hidden": "true" });
  list.replaceChildren(...source.places.map((place, i) => {
    const [token, score, stays] = [text.tokens[place], source.scores[i], result.stays[i]];
    return el("li", { class: stays ? "" : "dropped", "data-place": place },
      el("span", { class: stays ? "name" : "name dropped", title: marked(token.token), translate: "no" }, visible(token.token)),
      el("span", { class: "track" }, el("i", { class: score > high ? "over" : "", "width-share": css(share(score)) }), at?.cloneNode() ?? null),
      el("span", { class: "number" }, number(score), el("span", { class: "hidden" }, stays ? " stays" : " goes")));
  }));
}

function drawCurve(box, { text, source, quantile, asText, result }) {
  const [width, height, left, bottom, top] = [box.clientWidth, 270, 46, 36, 24];
  const { low, high } = span(text, source);
  const order = [...result.order].reverse(); // the first to go first; what is protected comes last
  const x = (share) => left + share * (width - left - 12);
  const y = (score) => top + (1 - Math.min(1, (score - low) / (high - low))) * (height - bottom - top);
  const n = order.length;
  const points = order.map((i, rank) => [x((rank + 0.5) / n), y(source.scores[i]), i]);
  const gone = result.stays.filter((stays) => !stays).length;
  const cut = x(gone / n);
  const tick = (value) => el("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value === 0 ? "0" : value.toPrecision(2));
  box.replaceChildren(el("svg", { width, height, role: "img", "aria-label":
      `Scores in ascending order; at q = ${asText} the lowest ${gone} of ${n} go` },
    el("rect", { class: "loss", x: left, y: top, width: Math.max(0, cut - left), height: height - bottom - top }),
    el("line", { class: "axis", x1: left, x2: width - 12, y1: height - bottom, y2: height - bottom }),
    el("line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom }),
    tick(high), tick(low), low < 0 && high > 0 ? tick(0) : null,
    [0, 0.25, 0.5, 0.75, 1].map((share) => el("text", { x: x(share), y: height - bottom + 16, "text-anchor": "middle" }, String(share))),
    el("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "share of the tokens, lowest scores first"),
    el("path", { class: "curve", d: points.map(([u, v], i) => `${i ? "L" : "M"}${u} ${v}`).join(" ") }),
    points.map(([u, v, i]) => {
      const [look, title] = [result.stays[i] ? "stay" : "go", el("title", {}, `${marked(text.tokens[source.places[i]].token)} ${number(source.scores[i])}`)];
      if (source.scores[i] > high) return el("path", { class: look, d: `M${u} ${v - 7} L${u + 6} ${v + 4} L${u - 6} ${v + 4} z` }, title);
      return el("circle", { class: look, cx: u, cy: v, r: n > 60 ? 2.5 : 4.5 }, title);
    }),
    el("line", { class: "asked", x1: x(quantile), x2: x(quantile), y1: top, y2: height - bottom }),
    el("text", { x: x(quantile) + 4, y: height - bottom - 6 }, `q = ${asText}`),
    el("text", { x: left, y: top - 10 }, source.label),
    el("line", { class: "cut", x1: cut, x2: cut, y1: top, y2: height - bottom })));
}

// Layer by layer

function journey(text) {
  const layers = DATA.model.layers_list;
  const ordinary = text.tokens.filter((token) => !token.special).flatMap((token) => token.importance.filter((value) => value !== null));
  const most = Math.max(...ordinary, 1e-9);
  const stageAt = Object.fromEntries(text.stages.map((stage) => [stage.layer, stage]));
  const rows = text.tokens.map((token) => el("tr", {}, el("th", { scope: "row", class: token.dropped_at === null ? "name" : "name dropped", translate: "no", title: marked(token.token) }, visible(token.token)),
    layers.map((layer) => {
      const value = token.importance[layer];
      if (value === null) return el("td", { class: "gone" }, "–", el("span", { class: "hidden" }, "gone"));
      return el("td", { class: "heat", "--heat": css(0.6 * Math.min(1, value / most)) }, percent(value, 1));
    }), el("td", { class: "left" }, fate(text, token))));
  const head = layers.map((layer) => el("th", { scope: "col" }, `layer ${layer}${stageAt[layer] ? " ✂" : ""}`, el("span", { class: "hidden" }, stageAt[layer] ? " prunes" : "")));
  return section("journey", "Layer by layer: how much attention each token receives",
    note("Averaged over all heads and over the tokens that look: a column adds up to 100%. At a layer with ✂ tokens are taken out "
      + "after its attention; from the next layer on they are gone. The colour is full at the most that an ordinary token receives."),
    el("p", { class: "soft narrow" }, "The table scrolls sideways."),
    el("div", { class: text.tokens.length > LONG ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": "Attention received per layer" },
      el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "token"), head, el("th", { scope: "col", class: "left" }, "what became of it"))), el("tbody", {}, rows))));
}

// Attention

function maps(layer) {
  const bytes = Uint8Array.from(atob(layer.data), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const n = layer.entered.length;
  return (map, from, to) => view.getUint16(2 * ((map * n + from) * n + to), true) / 65535;
}

function attention(text) {
  if (!text.attention.length)
    return section("attention", "What every token looks at", note("Left out for this text, so that the page stays small: explain it by itself to see it."));
  const pick = el("select", { id: "layer", onchange: show }, text.attention.map((layer, i) => el("option", { value: i, selected: i === (kept.layer ?? text.stages[0]?.layer ?? 0) }, `layer ${i}`)));
  const heads = el("select", { id: "head", onchange: show, disabled: text.maps === 1 }, [...Array(text.maps).keys()].map((map) => el("option", { value: map, selected: map === kept.head }, map ? `head ${map - 1}` : "average of the heads")));
  const query = el("select", { id: "query", onchange: () => { row = Number(query.value); column = -1; show(); } });
  const canvas = el("canvas", { tabindex: 0, role: "img", onkeydown: move, onpointermove: point, onclick: point });
  const readout = el("div", { class: "readout", id: "readout", "aria-live": "polite" });
  const box = el("div", {}, canvas);
  let [row, column, cell, margin, drawn] = [Math.min(DATA.special.prefix, text.tokens.length - 1), -1, 10, 0, -1];
  function move(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const last = text.attention[pick.value].entered.length - 1;
    row = Math.min(last, Math.max(0, row + step[0]));
    column = Math.min(last, Math.max(0, column + step[1]));
    show();
  }
  function point(event) {
    const inside = canvas.getBoundingClientRect();
    const [i, j] = [Math.floor((event.clientY - inside.top - margin) / cell), Math.floor((event.clientX - inside.left - margin) / cell)];
    const n = text.attention[pick.value].entered.length;
    if (i < 0 || j < 0 || i >= n || j >= n || (i === row && j === column)) return;
    [row, column] = [i, j];
    show();
  }
  function show(event) {
    if (event?.target === pick) kept.layer = Number(pick.value);
    if (event?.target === heads) kept.head = Number(heads.value);
    const layer = text.attention[pick.value];
    const n = layer.entered.length;
    row = Math.min(row, n - 1);
    column = Math.min(column, n - 1);
    if (drawn !== pick.value) {
      query.replaceChildren(...layer.entered.map((place, i) => el("option", { value: i }, `${place} ${marked(text.tokens[place].token)}`)));
      drawn = pick.value;
    }
    query.value = row;
    const at = maps(layer);
    const name = (i) => visible(text.tokens[layer.entered[i]].token);
    const best = [...Array(n).keys()].sort((i, j) => at(heads.value, row, j) - at(heads.value, row, i)).slice(0, 5);
    const line = (i) => el("li", {}, el("span", { class: "name", translate: "no" }, name(i)),
      el("span", { class: "track", "aria-hidden": "true" }, el("i", { "width-share": css(at(heads.value, row, i)) })), el("span", { class: "number" }, percent(at(heads.value, row, i), 1)));
    readout.replaceChildren(el("p", {}, "“", apart(name(row)), `” (token ${layer.entered[row]}) looks most at`), el("ol", { class: "bars" }, best.map(line)),
      el("p", { class: "soft" }, column < 0 ? "" : ["and at “", apart(name(column)), `” (token ${layer.entered[column]}), the cell that is marked, ${percent(at(heads.value, row, column), 1)}`]));
    canvas.setAttribute("aria-label", `Attention of layer ${pick.value}, ${n} by ${n} tokens. Rows look, columns are looked at. Move with the arrow keys.`);
    draw(layer, at, n, name);
  }
  function draw(layer, at, n, name) {
    if (!box.clientWidth) return;
    margin = n <= LONG ? Math.min(96, box.clientWidth * 0.25) : 0;
    cell = Math.max(1, Math.min(30, (box.clientWidth - margin) / n));
    const [side, ratio] = [Math.ceil(margin + cell * n), devicePixelRatio || 1];
    canvas.width = canvas.height = side * ratio;
    canvas.style.width = canvas.style.height = `${side}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `${Math.max(8, Math.min(12, cell))}px ui-monospace, Menlo, Consolas, monospace`;
    const [ink, accent, focus] = [colour("--ink"), colour("--accent"), colour("--focus")];
    let most = 0;
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) most = Math.max(most, at(heads.value, i, j));
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        pen.globalAlpha = Math.sqrt(at(heads.value, i, j) / (most || 1));
        pen.fillStyle = accent;
        pen.fillRect(margin + j * cell, margin + i * cell, cell > 4 ? cell - 1 : cell, cell > 4 ? cell - 1 : cell);
      }
      pen.globalAlpha = 1;
      pen.fillStyle = ink;
      if (!margin) continue;
      const label = [...name(i)].slice(0, Math.floor(margin / (cell > 11 ? 7.4 : 6))).join("");
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      pen.fillText(label, margin - 4, margin + (i + 0.5) * cell);
      pen.save();
      pen.translate(margin + (i + 0.5) * cell, margin - 4);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(label, 0, 0);
      pen.restore();
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = focus;
    pen.lineWidth = 2;
    pen.strokeRect(margin + (column < 0 ? 0 : column * cell), margin + row * cell, column < 0 ? n * cell : cell, cell);
  }
  onResize(box, () => show());
  onScheme.push(() => show());
  return section("attention", "What every token looks at",
    note("Each row is a token that looks (the query), each column one that is looked at (the key); the stronger the colour, the more (the square root of the share, "
      + "so that small shares can be seen). Point at a cell, or move with the arrow keys."
      + (text.maps > 1 ? "" : " Of this text the page holds the average of the heads only, to stay small.")),
    el("div", { class: "controls" }, el("label", {}, "Layer", pick), el("label", {}, "Head", heads), el("label", {}, "Token that looks (query)", query)),
    el("div", { class: "sides" }, box, readout));
}

// The embedding, and what is predicted from it

function strip(values, most) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const box = el("div", {}, canvas);
  function draw() {
    if (!box.clientWidth) return;
    const [width, height] = [box.clientWidth, 46];
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    values.forEach((value, i) => {
      pen.fillStyle = colour(value < 0 ? "--drop" : "--accent");
      const tall = Math.min(1, Math.abs(value) / most) * (height / 2);
      pen.fillRect((i * width) / values.length, value < 0 ? height / 2 : height / 2 - tall, Math.max(0.6, width / values.length), tall);
    });
  }
  onResize(box, draw);
  onScheme.push(draw);
  return box;
}

function embedding(text) {
  const turn = (text.angle * Math.PI) / 180;
  const long = 190;
  const [across, up] = [long * Math.cos(turn), long * Math.sin(turn)];
  const [x, y] = [16 + Math.max(0, -across), up + 30]; // where both begin
  const arrow = el("svg", { width: x + long + 20, height: y + 26, role: "img", "aria-label": `The embedding turned by ${text.angle.toFixed(1)} degrees` },
    el("line", { class: "before", x1: x, y1: y, x2: x + long, y2: y }),
    el("line", { class: "after", x1: x, y1: y, x2: x + across, y2: y - up }),
    el("text", { x: x + long / 2, y: y + 18, "text-anchor": "middle" }, "without pruning"),
    el("text", { x: Math.max(4, x + across - 130), y: 14 }, `with pruning, ${text.angle.toFixed(1)}°`));
  const change = text.embedding.map((value, i) => value - text.unpruned_embedding[i]);
  const most = Math.max(...text.embedding.map(Math.abs), ...text.unpruned_embedding.map(Math.abs));
  return section("embedding", "What it does to the embedding",
    note(`The embedding is a direction in ${text.embedding.length} dimensions, drawn as one bar each. Pruning turned it by ${text.angle.toFixed(1)}° `
      + `(cosine ${text.cosine.toFixed(4)})` + (text.expected_angle === null ? "" : `, where ${text.expected_angle.toFixed(1)}° were expected`)
      + ". Texts are compared by such cosines, so a turn matters where it is not small beside the angle between texts."
      + (text.apart ? ` Of this model that is some ${text.apart[0]}° for two texts of one intent, and ${text.apart[1]}° for two of different ones (banking77, means).` : "")),
    nearest(text),
    el("div", { class: "sides" }, el("figure", {}, arrow),
      el("figure", {}, el("figcaption", {}, "without pruning"), strip(text.unpruned_embedding, most),
        el("figcaption", {}, "with pruning"), strip(text.embedding, most), el("figcaption", {}, "the change, on the same scale"), strip(change, most))),
    neighbours(text));
}

function nearest(text) {
  if (!text.nearest) return null;
  const { others, examples, angle, same } = text.nearest;
  const named = (name) => (name === null ? "a text that was not saved" : ["“", el("bdi", {}, short(name)), "”"]);
  return el("p", { id: "nearest" }, `Of ${others} ${examples ? "training examples" : "other texts"} the nearest without pruning is `, named(text.nearest.unpruned),
    `, ${angle.toFixed(1)}° away. `, same ? "With pruning it stays the nearest." : ["With pruning the nearest is ", named(text.nearest.pruned), "."]);
}

function neighbours(text) {
  if (DATA.texts.length < 2) return null;
  const cosine = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const others = DATA.texts.filter((other) => other !== text).map((other) => ({ name: short(other.text),
    before: cosine(text.unpruned_embedding, other.unpruned_embedding), after: cosine(text.embedding, other.embedding) }));
  others.sort((a, b) => b.before - a.before);
  const rows = others.slice(0, NEAREST).map((other) => el("tr", {}, el("th", { scope: "row", class: "left", dir: "auto" }, other.name),
    el("td", {}, other.before.toFixed(3)), el("td", {}, other.after.toFixed(3))));
  const title = others.length > NEAREST ? `Cosine to the ${NEAREST} nearest of the ${others.length} other texts` : "Cosine to the other texts of this report";
  return el("div", {}, el("h3", {}, title), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Cosines to the other texts" },
    el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "text"), el("th", { scope: "col" }, "without"), el("th", { scope: "col" }, "with pruning"))), el("tbody", {}, rows))));
}
function short(text) {
  const characters = [...visible(text)];
  return characters.length > 60 ? `${characters.slice(0, 59).join("")}…` : characters.join("") || "(the empty text)";
}

function prediction(text) {
  if (!text.prediction) return null;
  const side = (title, said) => el("div", {}, el("h3", {}, title),
    el("p", {}, said.rejected ? [apart(said.label), ": rejected, it belongs to no class; it would have been"] : ""),
    el("ol", { class: "answers" }, said.probabilities.map(([label, share]) => el("li", {}, breakable(label),
      el("div", { class: "share" }, el("span", { class: "track" }, el("i", { "width-share": css(share) })), percent(share, 1))))),
    el("h3", {}, "Nearest training examples"),
    el("ol", { class: "neighbours" }, said.nearest.map((near) =>
      el("li", {}, near.text === null ? "(saved without its text)" : apart(near.text), el("span", { class: "soft" }, " – ", apart(near.label), `, cosine ${near.cosine.toFixed(3)}`)))));
  return section("prediction", "What is predicted from it",
    el("div", { class: "sides" }, side("Without pruning", text.unpruned_prediction), side("With pruning", text.prediction)));
}

function glossary() {
  const words = {
    "Head": "Attention is computed several times side by side, each time on a part of the hidden state of its own: a head may look for one kind of relation.",
    "Layer": "One of the encoder's equal steps: every token looks at the others (attention), then is transformed by itself (feed-forward). Layers count from 0.",
    "Importance": "1 / (heads · n) · the sum over heads and over the n tokens that look of the attention which a token receives. A learned policy ranks by a fitted linear function of the token's hidden state instead: the learned score.",
    "Turn": "The angle between the embedding with pruning and the one without. A policy may foresee it from the learned scores of what goes and the length of the text, "
      + "and let each text give up tokens only up to an expected turn.",
    "Threshold": "The lowest score among the tokens that stay on their merit.",
    "Merge, restore": "What becomes of a token that goes: nothing; or it is averaged into the most similar token that stays (merge); or what it is expected to have "
      + "become is still counted in the mean (restore).",
    "Embedding": `One vector for the text, made of the rows that reach the end (the pooling: ${DATA.model.pooling}).`,
    "Quantile q, minimum length s": "A text of n tokens keeps max(s, n − ⌊q · n⌋) of them, the most important ones; of equals the earlier. Texts of up to s tokens are left alone.",
    "Work and time": "Work counts the multiply-adds of the layers' products and of attention. A text alone takes most of its time for fetching the weights "
      + "from memory, which pruning does not change; among many texts that time is shared, and saved work becomes saved time.",
  };
  return section("glossary", "Words", el("dl", { class: "words" }, Object.entries(words).flatMap(([word, means]) => [el("dt", {}, word), el("dd", {}, means)])));
}

function policyInWords(policy) {
  if (!policy) return "Nothing is pruned.";
  const stages = (policy.stages ?? [[policy.layer, policy.quantile]]).map(([layer, quantile]) => `${percent(quantile)} of the tokens at layer ${layer}`);
  const rest = { drop: "Tokens that go are gone for good", merge: "Each that goes is averaged into the most similar token that stays",
    restore: "What those that go are expected to have become still enters the pooling" };
  const share = policy.max_turn === null ? "" : "at most ";
  return `Pruning gives up ${share}${stages.join(", then ")}, the last by ${DATA.ranked[policy.score]}, but never goes below ${policy.min_tokens} tokens`
    + (policy.max_turn === null ? "" : `, and of each text only what is expected to turn its embedding by ${policy.max_turn}° or less`)
    + (policy.protect_special ? "; what the tokenizer puts around a text always stays" : "") + `. ${rest[policy.reduce]} (${DATA.policy_text}).`;
}

// Two ways to choose a text. Each gives a function that shows which one is open.

function buttons(nav) {
  const all = DATA.texts.map((text, i) => el("button", { type: "button", dir: "auto", onclick: () => open(i) }, short(text.text)));
  if (all.length > 1) nav.append(el("ol", {}, all.map((button) => el("li", {}, button))));
  return (index) => all.forEach((button, i) => (i === index ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current")));
}

function picker(nav) {
  const names = DATA.texts.map((text, i) => `${i + 1}. ${text.warning ? "⚠ " : ""}\u2068${short(text.text)}\u2069`);
  const searched = DATA.texts.map((text) => `${text.text}\n${text.prediction ? text.prediction.label : ""}`.toLowerCase());
  const list = el("select", { id: "pick", size: 8, onchange: () => open(Number(list.value)) });
  const search = el("input", { type: "search", id: "search", autocomplete: "off", spellcheck: "false", oninput: fill,
    onkeydown: (event) => { if (event.key === "Enter" && list.options.length) open(Number(list.options[0].value)); } });
  const found = el("p", { class: "soft", id: "found", role: "status" });
  let current = 0;
  const step = (by) => () => {
    const at = Math.min(list.options.length - 1, Math.max(0, list.selectedIndex + by));
    if (list.options.length) open(Number(list.options[at].value));
  };
  function fill() {
    const wanted = search.value.trim().toLowerCase();
    const matches = names.map((_, i) => i).filter((i) => searched[i].includes(wanted));
    list.replaceChildren(...matches.map((i) => el("option", { value: i }, names[i])));
    list.value = current;
    const warned = matches.filter((i) => DATA.texts[i].warning).length;
    found.textContent = `${matches.length} of ${names.length} texts` + (warned ? `; ⚠ pruning turned ${warned} of them far` : "");
  }
  nav.append(el("div", { class: "picker" }, el("label", {}, "Search in texts" + (DATA.texts[0].prediction ? " and predictions" : ""), search), found,
    el("label", {}, "Text", list), el("div", { class: "controls" }, el("button", { type: "button", id: "previous", onclick: step(-1) }, "Previous"),
      el("button", { type: "button", id: "next", onclick: step(1) }, "Next"))));
  fill();
  return (index) => { list.value = current = index; };
}

function open(index) {
  onScheme = [];
  const text = DATA.texts[index];
  byId("main").replaceChildren(...[sentence, explorer, journey, attention, embedding, prediction].map((part) => part(text)).filter(Boolean), glossary());
  markOpen(index);
}

byId("about").append(apart(DATA.model.name), `, ${DATA.model.precision}, ${DATA.model.backend} backend: ${DATA.model.layers_list.length} layers of ${DATA.model.heads} heads. `
  + policyInWords(DATA.policy));
byId("made").textContent = `Written by minitrans ${DATA.version} explain. This page holds all of its data and loads nothing.`;
const markOpen = DATA.texts.length > FEW ? picker(byId("texts")) : buttons(byId("texts"));
open(0);
