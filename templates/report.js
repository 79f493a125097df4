"use strict";
(() => {
  // The same set as _HIDDEN in rapidin_cli/output/sanitise.py.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{d800}-\u{dfff}\u{e0000}-\u{e0fff}]/gu;
  const SHOWN = 10;
  const SNIPPET = 280;
  const LEAD = 90; // characters before the strongest token of a snippet
  const STRONGEST = 10;
  const RAW = 200_000; // characters of raw JSON that are shown
  const SIDES = ["raised", "lowered"];
  // Lower edges of the colour bins, as shares of the largest token score of the query.
  const BIN_EDGES = [0.03, 0.15, 0.4, 0.7];
  const SVG = "http://www.w3.org/2000/svg";

  const byId = (id) => document.getElementById(id);
  let report = null;
  let floats = null;
  let bytes = null;
  let model = null;
  let cards = new Map();
  const models = new Map();
  // from and to: the first and last chosen token, numbered from 0 as in the data and by `rin report
  // --token`; both null when all tokens count. anchor: where a span began. open, pinned: digests of
  // examples. all: columns that are shown in full. find: what the shown examples contain.
  const state = { query: 0, from: null, to: null, anchor: null, open: new Set(), pinned: [], all: new Set(), find: "" };
  let listed = []; // numbers of the queries in the list, in its order

  // ---- text: everything from the data goes through here, and only as text nodes

  const mark = (character) =>
    `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  const visible = (text) => text.replace(HIDDEN, mark);

  function put(parent, text) {
    let end = 0;
    for (const match of text.matchAll(HIDDEN)) {
      if (match.index > end) parent.append(text.slice(end, match.index));
      parent.append(element("span", "ctl", mark(match[0])));
      end = match.index + match[0].length;
    }
    if (end < text.length) parent.append(text.slice(end));
    return parent;
  }

  function element(name, className, ...content) {
    const node = document.createElement(name);
    if (className) node.className = className;
    node.append(...content);
    return node;
  }

  function svg(name, attributes, ...content) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...content);
    return node;
  }

  function number(value) {
    const size = Math.abs(value);
    const small = size !== 0 && (size < 1e-3 || size >= 1e5);
    const digits = size === 0 ? "0" : small ? size.toExponential(2).replace("e-", "e−").replace("e+", "e") : size.toPrecision(3);
    return (value > 0 ? "+" : value < 0 ? "−" : "") + digits;
  }
  const plain = (value) => String(value).replace(/-/g, "−");
  const count = (value) => value.toLocaleString("en-US");
  const percent = (value) => value.toFixed(value > 99 || value < 1 ? 2 : 1);
  const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
  const signOf = (value) => (value > 0 ? "plus" : value < 0 ? "minus" : "");
  // Never between the two halves of a character.
  const whole = (text, at) => (at > 0 && at < text.length && /[\udc00-\udfff]/.test(text[at]) ? at - 1 : at);
  const head = (text, length) => text.slice(0, whole(text, length));
  const clip = (text) => (text.length > SNIPPET ? `${head(text, SNIPPET)}…` : text);
  // Line breaks and outer spaces as signs, so that a token made of them can be seen and clicked.
  const word = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +$/, (spaces) => "␣".repeat(spaces.length)) || "∅";
  const quoted = (text) => `“${visible(word(text)).trim()}”`;

  // ---- numbers: the orders that the page shows

  // The reverse of rapidin_cli/report/page_data.py, but for the examples' numbers and texts.
  function unpack(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const { floats: amount, ...body } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    floats = new Float32Array(buffer, 4 + length, amount);
    bytes = new Int8Array(buffer, 4 + length + 4 * amount);
    return body;
  }

  // The shortest number that is this float32: what the JSON of the report says.
  function exactly(value) {
    for (let digits = 6; digits < 9; digits += 1) {
      const short = Number(value.toPrecision(digits));
      if (Math.fround(short) === value) return short;
    }
    return Number(value.toPrecision(9));
  }

  function unpackExample({ text, step, ...example }, width) {
    const { learnt, cuts, ...texts } = report.texts[text];
    if (Array.isArray(texts.response)) texts.response = learnt.slice(...texts.response);
    const whole = { ...texts, ...example, rounded: step !== undefined };
    if (example.tokens !== null) whole.tokens = Array.from(floats.subarray(example.tokens, example.tokens + width), exactly);
    if (example.training === null) return whole;
    let end = 0;
    whole.training = cuts.map((cut, s) => {
      end += cut;
      const at = example.training + s;
      return [learnt.slice(end - cut, end), whole.rounded ? step * bytes[at] : exactly(floats[at])];
    });
    return whole;
  }

  function prepare(packed) {
    const explained = packed.tokens.filter((token) => token.explained);
    const query = { ...packed, examples: packed.examples.map((example) => unpackExample(example, explained.length)) };
    const clickable = explained.length > 0 && query.examples.length > 0 &&
      query.examples.every((example) => example.tokens !== null && example.tokens.length === explained.length);
    const made = { query, explained, clickable, scale: 0, trainingScale: 0, strongest: [], home: new Map() };
    for (const example of query.examples) {
      for (const [, value] of example.training || []) made.trainingScale = Math.max(made.trainingScale, Math.abs(value));
    }
    if (clickable) {
      for (let i = 0; i < explained.length; i += 1) {
        const ends = { raised: null, lowered: null };
        for (const example of query.examples) {
          const value = example.tokens[i];
          made.scale = Math.max(made.scale, Math.abs(value));
          if (value > 0 && (!ends.raised || value > ends.raised.tokens[i])) ends.raised = example;
          if (value < 0 && (!ends.lowered || value < ends.lowered.tokens[i])) ends.lowered = example;
        }
        made.strongest.push(ends);
      }
    }
    const order = ranking(made, null, null);
    for (const side of SIDES) {
      order[side].forEach((entry, index) => made.home.set(entry.example.digest, { side, rank: index + 1 }));
    }
    return made;
  }

  function scoreOf(example, from, to) {
    if (from === null) return example.score;
    let sum = 0;
    for (let i = from; i <= to; i += 1) sum += example.tokens[i];
    return sum;
  }

  function ranking(of, from, to) {
    const entries = of.query.examples.map((example) => ({ example, score: scoreOf(example, from, to) }));
    const tie = (a, b) => (a.example.digest < b.example.digest ? -1 : 1);
    return {
      raised: entries.filter((entry) => entry.score > 0).sort((a, b) => b.score - a.score || tie(a, b)),
      lowered: entries.filter((entry) => entry.score < 0).sort((a, b) => a.score - b.score || tie(a, b)),
    };
  }

  function bin(value, scale) {
    const share = scale > 0 ? Math.abs(value) / scale : 0;
    const level = BIN_EDGES.filter((edge) => share >= edge).length;
    return level === 0 ? "z0" : `${value > 0 ? "p" : "n"}${level}`;
  }

  function strongestOf(i) {
    const { raised, lowered } = model.strongest[i];
    const up = raised ? raised.tokens[i] : 0;
    const down = lowered ? lowered.tokens[i] : 0;
    return up >= -down ? up : down;
  }

  // ---- the query and its generation

  function showQuery() {
    if (!models.has(state.query)) models.set(state.query, prepare(report.queries[state.query]));
    model = models.get(state.query);
    const { query } = model;
    cards = new Map();
    byId("query").value = String(state.query);
    const source = { given: "given with the question", generated: "generated by this checkpoint", row: "a row of the data" }[query.source];
    const residual = query.residual === null ? "" : ` · token scores add up to the total within ${query.residual.toPrecision(2)}`;
    byId("query-facts").textContent = `${source} · ${plural(model.explained.length, "token")} · loss ${query.loss.toFixed(3)} nats${residual}`;
    byId("exactness").textContent = exactness(query);
    byId("words").replaceChildren();
    put(byId("words"), wordsText(query.words));
    showStrip();
    showCharts();
    byId("raw").replaceWith(rawView());
  }

  function rawView() {
    const details = element("details", "provenance", element("summary", "", "Raw JSON of this query"));
    details.id = "raw";
    details.addEventListener("toggle", () => {
      if (!details.open || details.querySelector("pre")) return;
      const text = JSON.stringify(model.query, null, 1);
      const shown = put(element("pre", "command scroll"), text.length > RAW ? `${head(text, RAW)}\n… ${count(text.length - RAW)} more characters: rin report ${report.id} --json` : text);
      shown.tabIndex = 0;
      shown.setAttribute("role", "region");
      shown.setAttribute("aria-label", "Raw JSON");
      details.append(shown);
    });
    return details;
  }

  function exactness({ exact, distribution }) {
    if (exact === null) return "Scores are read from compressed gradients: small differences between neighbours mean nothing.";
    const share = distribution.std > 0 ? ` (${(100 * exact.sketch_error / distribution.std).toPrecision(2)}% of the spread of all scores)` : "";
    const doubt = exact.doubtful > 0 ? `${plural(exact.doubtful, "other example")} may be among the best too, given that error: the same question with a longer --within finds out. ` : "";
    const sketched = model.query.examples.filter((example) => example.sketched === null).length;
    const which = sketched === 0 ? "Scores of the kept examples are exact" : `Scores of ${sketched.toLocaleString("en")} of the kept examples, marked ~, are from compressed gradients; the others are exact`;
    return `${which}: the best ${plural(exact.shortlist, "example")} by compressed gradients were scored from whole ones, which moved totals by ${exact.sketch_error.toPrecision(2)}${share}. ${doubt}Training tokens add up to the total within ${exact.residual.toPrecision(2)}.`;
  }

  function wordsText({ of, agree, matches }) {
    if (of === 0) return "";
    const text = `The top 10 by shared words alone (BM25) has ${agree} of the top ${of} raised examples.`;
    const only = matches.filter((match) => match.percentile > 10 && match.percentile < 90).slice(0, 3).map((match) => match.id);
    return only.length > 0 ? `${text} Similar words, but no special influence: ${only.join(", ")}.` : text;
  }

  function showStrip() {
    const { query, clickable } = model;
    const strip = byId("strip");
    const first = query.tokens.findIndex((token) => token.explained);
    const lead = first < 0 ? query.tokens.length : first;
    const prompt = byId("prompt");
    prompt.replaceChildren();
    put(prompt, query.tokens.slice(0, lead).map((token) => token.text).join("") || query.prompt);
    strip.replaceChildren();
    if (clickable) {
      strip.setAttribute("role", "toolbar");
      strip.setAttribute("aria-label", "Generated tokens: rank both columns by one of them");
      strip.append(stop(element("button", "token every", "all tokens"), null));
    } else {
      strip.removeAttribute("role");
      strip.removeAttribute("aria-label");
    }
    const highest = clickable ? Math.max(...model.strongest.map((_, i) => Math.abs(strongestOf(i)))) : 0;
    let i = 0;
    let other = false;
    for (const token of query.tokens.slice(lead)) {
      if (token.contrast && !token.explained) continue; // the prompt once more
      if (token.contrast && !other) {
        strip.append(element("br"), element("span", "token fixed instead", "instead of"));
        other = true;
      }
      if (!token.explained) {
        strip.append(put(element("span", "token fixed"), word(token.text)));
      } else {
        strip.append(clickable ? tokenButton(token, i, highest) : put(element("span", "token"), word(token.text)));
        i += 1;
      }
      if (token.text.includes("\n")) strip.append(element("br"));
    }
    preview(null);
  }

  function tokenButton(token, i, highest) {
    const value = strongestOf(i);
    const height = highest > 0 ? 19 * Math.abs(value) / highest : 0;
    const bar = svg("svg", { class: "bar", viewBox: "0 0 10 20", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: value > 0 ? "f-plus" : "f-minus", x: 1, width: 8, y: 20 - height, height }));
    const label = put(element("span", `word ${value === 0 ? "" : `u-${signOf(value)}`}`), word(token.text));
    const button = element("button", "token", bar, label);
    button.setAttribute("aria-label", `token ${i}, ${quoted(token.text)}, strongest influence ${number(value)}`);
    return stop(button, i);
  }

  function stop(button, i) {
    button.type = "button";
    button.dataset.token = i === null ? "all" : String(i);
    button.addEventListener("click", (event) => choose(i, event.shiftKey));
    button.addEventListener("mouseenter", () => preview(i));
    button.addEventListener("mouseleave", () => preview(null));
    button.addEventListener("focus", () => { rove(button); preview(i); });
    button.addEventListener("blur", () => preview(null));
    return button;
  }

  const stops = () => [...byId("strip").querySelectorAll("button")];

  function rove(target) {
    for (const button of stops()) button.tabIndex = button === target ? 0 : -1;
  }

  function choose(i, extend) {
    if (i !== null && extend && state.from !== null) {
      const anchor = state.anchor;
      state.from = Math.min(anchor, i);
      state.to = Math.max(anchor, i);
    } else {
      state.from = state.to = state.anchor = i;
    }
    showRanking();
    remember();
  }

  function preview(pointed) {
    const line = byId("preview");
    line.replaceChildren();
    for (const card of cards.values()) card.hint(pointed);
    const i = pointed === null && state.from === state.to ? state.from : pointed;
    if (!model.clickable) {
      line.append("No token scores were kept for this query, so it cannot be ranked by single tokens.");
    } else if (i === null) {
      line.append("Bar: the strongest single influence on each token, filled ▮ if it raised it, hollow ▯ if it lowered it. Click a token to rank by it, Shift-click for a span.");
    } else {
      const { raised, lowered } = model.strongest[i];
      const { text, logprob } = model.explained[i];
      put(line, `Token ${i} ${quoted(text)}`);
      if (logprob !== null) line.append(` · log-probability ${logprob.toFixed(3).replace("-", "−")}`);
      if (raised) put(line, ` · raised most by ${raised.id} ${number(raised.tokens[i])}`);
      if (lowered) put(line, ` · lowered most by ${lowered.id} ${number(lowered.tokens[i])}`);
    }
  }

  // ---- the two columns

  function choice() {
    const { from, to } = state;
    if (from === null) return "all tokens";
    if (from === to) return `token ${from} ${quoted(model.explained[from].text)}`;
    const text = model.explained.slice(from, to + 1).map((token) => token.text).join("");
    return `tokens ${from} to ${to} ${quoted(clip(text))}`;
  }

  function showRanking() {
    const order = ranking(model, state.from, state.to);
    const held = document.activeElement;
    for (const side of SIDES) fillColumn(side, order[side]);
    showPinned();
    // Moving a focused element in the document takes the focus from it.
    if (held && held !== document.activeElement && held.isConnected) held.focus({ preventScroll: true });
    const kept = count(model.query.examples.length);
    const scored = count(model.query.scored);
    const matching = (side) => order[side].filter(({ example }) => matches(example)).length;
    const sides = `${count(order.raised.length)} raised, ${count(order.lowered.length)} lowered${state.find ? `; ${count(matching("raised") + matching("lowered"))} with ${quoted(state.find)}` : ""}`;
    byId("status").textContent = state.from === null
      ? `Ranked by all tokens: ${kept} kept of ${scored} scored. ${sides}.`
      : `By ${choice()}: re-ranked among ${kept} kept of ${scored} scored. ${sides}.`;
    byId("reset").hidden = state.from === null;
    byId("bars").textContent = model.clickable
      ? `Small bars in a card: its influence on each generated token in order, up if it raised the token, down if it lowered it; full height ±${model.scale.toPrecision(3)} on every card.`
      : "";
    preview(null);
    for (const button of stops()) {
      const i = button.dataset.token === "all" ? null : Number(button.dataset.token);
      const pressed = i === null ? state.from === null : state.from !== null && i >= state.from && i <= state.to;
      button.setAttribute("aria-pressed", String(pressed));
    }
    const current = state.from === null ? "all" : String(state.anchor);
    if (!byId("strip").contains(document.activeElement)) rove(stops().find((button) => button.dataset.token === current));
  }

  const holds = (text) => text.toLowerCase().includes(state.find.toLowerCase());
  const matches = ({ id, prompt, response }) => state.find === "" || holds(id) || holds(prompt) || holds(response);

  function fillColumn(side, ranked) {
    const entries = ranked.map((entry, index) => ({ ...entry, rank: index + 1 })).filter(({ example }) => matches(example));
    const open = entries.findLastIndex((entry) => state.open.has(entry.example.digest));
    const limit = state.all.has(side) ? entries.length : Math.max(SHOWN, open + 1);
    const list = byId(side);
    list.replaceChildren(...entries.slice(0, limit).map((entry) => {
      const { digest } = entry.example;
      if (!cards.has(digest)) cards.set(digest, makeCard(entry.example));
      const card = cards.get(digest);
      card.update(side, entry.rank, entry.score);
      return card.node;
    }));
    byId(`${side}-none`).hidden = entries.length > 0;
    byId(`${side}-none`).textContent = ranked.length > 0 ? "No example of this sign has that text." : "No kept example has this sign here.";
    const more = byId(`${side}-all`);
    more.hidden = entries.length <= limit;
    more.textContent = `Show all ${count(entries.length)}`;
  }

  function changeText(digest, side, rank) {
    if (state.from === null) return ["", ""];
    const home = model.home.get(digest);
    if (!home) return ["new", "no sign by all tokens"];
    if (home.side !== side) return [`${home.side} #${home.rank} by all`, `${home.side}, rank ${home.rank}, by all tokens`];
    const steps = home.rank - rank;
    if (steps === 0) return ["=", "same rank by all tokens"];
    return [`${steps > 0 ? "▲" : "▼"} ${Math.abs(steps)}`, `${steps > 0 ? "up" : "down"} ${Math.abs(steps)} from all tokens`];
  }

  function makeCard(example) {
    const rank = element("span", "rank");
    const score = element("span", "score");
    const change = element("span", "change");
    const percentile = element("span", "percentile");
    const chevron = element("span", "chevron", "▸");
    const head = element("button", "card-head", chevron, rank, score, change, percentile);
    head.type = "button";
    const body = element("div", "body");
    const pin = element("button", "pin", "Pin");
    pin.type = "button";
    pin.addEventListener("click", () => togglePin(example.digest));
    const where = place(example);
    where.append(pin);
    const node = element("li", "card", head, where);
    node.dataset.digest = example.digest;
    body.id = `body-${example.digest}`;
    head.setAttribute("aria-controls", body.id);
    const asked = put(element("p", "snippet said-to"), clip(example.prompt));
    const said = snippet(example);
    for (const snippet of [asked, said]) {
      snippet.dir = "auto";
      snippet.addEventListener("click", () => { if (getSelection().isCollapsed) toggle(example.digest); });
    }
    node.append(asked, said);
    const mini = model.clickable ? miniChart(example) : null;
    if (mini) node.append(mini.node);
    node.append(body);
    head.addEventListener("click", () => toggle(example.digest));

    function show() {
      const open = state.open.has(example.digest);
      const pinned = state.pinned.includes(example.digest);
      pin.setAttribute("aria-pressed", String(pinned));
      pin.setAttribute("aria-label", `Pin ${visible(example.id)} for comparison`);
      node.classList.toggle("open", open);
      head.setAttribute("aria-expanded", String(open));
      chevron.textContent = open ? "▾" : "▸";
      body.hidden = !open;
      if (open && !body.firstChild) fillBody(body, example);
      for (const cell of body.querySelectorAll(".cell[data-token]")) {
        const i = Number(cell.dataset.token);
        cell.classList.toggle("chosen", state.from !== null && i >= state.from && i <= state.to);
      }
    }

    // Beside exact scores: of the total, or of the tokens that are chosen.
    function isSketched(one) {
      if (model.query.exact === null) return false;
      return state.from !== null && one.tokens_exact !== undefined ? !one.tokens_exact : one.sketched === null;
    }

    function update(side, place_, value) {
      const [short, long] = changeText(example.digest, side, place_);
      rank.textContent = String(place_);
      score.textContent = `${isSketched(example) ? "~" : ""}${number(value)}`;
      score.className = `score ${signOf(value)}`;
      change.textContent = short;
      percentile.textContent = `${state.from === null ? "" : `total ${number(example.score)} · `}percentile ${percent(example.percentile)} · words ${example.bm25.rank === null ? "none" : `#${count(example.bm25.rank)}`}`;
      head.setAttribute("aria-label", visible(`${side} ${place_}, ${number(value)}${long ? `, ${long}` : ""}, percentile ${percent(example.percentile)}, row ${example.id}`));
      if (mini) mini.choose();
      show();
    }

    return { node, head, show, update, hint: (i) => mini && mini.hint(i) };
  }

  // The text around the token that had the largest influence.
  function snippet(example) {
    const node = element("p", "snippet");
    if (example.training === null || example.training.length === 0) return put(node, clip(example.response));
    const at = example.training.reduce((best, [, value], s) => (Math.abs(value) > Math.abs(example.training[best][1]) ? s : best), 0);
    const before = example.training.slice(0, at).map(([text]) => text).join("");
    const after = example.training.slice(at + 1).map(([text]) => text).join("");
    const start = whole(before, Math.max(0, before.length - LEAD));
    put(node, (start > 0 ? "…" : "") + before.slice(start));
    node.append(put(element("span", `peak u-${signOf(example.training[at][1])}`), example.training[at][0]));
    return put(node, clip(after));
  }

  function place(example) {
    const [row] = example.rows;
    const at = `${row.file}:${row.line}`; // the name of a row without an id
    const where = element("p", "where", put(element("bdi", "id"), example.id));
    if (example.id !== at) where.append(put(element("bdi", ""), at));
    if (example.rows.length > 1) where.append(element("span", "copies", `× ${count(example.rows.length)} rows`));
    return where;
  }

  function miniChart(example) {
    const n = example.tokens.length;
    const bars = { up: "", down: "" };
    example.tokens.forEach((value, i) => {
      const height = model.scale > 0 ? 12 * Math.abs(value) / model.scale : 0;
      if (value > 0) bars.up += `M${i + 0.1} 13v${-height}h.8v${height}z`;
      if (value < 0) bars.down += `M${i + 0.1} 13v${height}h.8v${-height}z`;
    });
    const band = svg("rect", { class: "band", y: 0, height: 26, x: 0, width: 0 });
    const hint = svg("rect", { class: "hint", y: 0.5, height: 25, x: 0, width: 0, visibility: "hidden" });
    const node = svg("svg", { class: "mini", width: 12 * n, height: 26, viewBox: `0 0 ${n} 26`, preserveAspectRatio: "none", "aria-hidden": "true" },
      band, svg("path", { class: "up", d: bars.up }), svg("path", { class: "down", d: bars.down }),
      svg("path", { class: "axis", d: `M0 13h${n}` }), hint);
    return {
      node,
      choose() {
        band.setAttribute("x", state.from === null ? 0 : state.from);
        band.setAttribute("width", state.from === null ? 0 : state.to - state.from + 1);
      },
      hint(i) {
        hint.setAttribute("visibility", i === null ? "hidden" : "visible");
        hint.setAttribute("x", i === null ? 0 : i);
        hint.setAttribute("width", i === null ? 0 : 1);
      },
    };
  }

  // ---- an open example

  function fillBody(body, example) {
    for (const [title, text, extra] of [["Prompt", example.prompt, "asked"], ["Response", example.response, ""]]) {
      const block = put(element("div", `text scroll ${extra}`), text);
      block.dir = "auto";
      block.tabIndex = 0;
      block.setAttribute("role", "region");
      block.setAttribute("aria-label", `${title} of ${visible(example.id)}`);
      body.append(element("div", "", element("h3", "", title), block));
    }
    const reply = model.clickable ? tokenScores(example) : null;
    if (example.training !== null) body.append(trainingTokens(example, reply));
    else body.append(element("p", "muted", `Which of its words had that influence was not worked out: the same question with ${model.query.exact === null ? "exact scores (leave out --exact 0)" : "a longer --within"} shows it.`));
    if (reply) body.append(reply.node);
    const { mean, std } = model.query.distribution;
    const facts = element("dl", "exact");
    const fact = (name, ...values) => facts.append(element("div", "", element("dt", "", name), ...values.map((value) => put(element("dd", ""), value))));
    fact("Total score", plain(example.score) + (std > 0 ? ` (${number((example.score - mean) / std)} standard deviations from the mean of all scored examples)` : ""));
    if (example.sketched !== null) fact("By its compressed gradient", plain(example.sketched));
    fact("Percentile", `${example.percentile} of ${count(model.query.scored)} scored`);
    fact(example.rows.length > 1 ? "Rows" : "Row", example.rows.map((row) => (row.id === `${row.file}:${row.line}` ? row.id : `${row.file}:${row.line} (${row.id})`)).join("\n"));
    facts.lastChild.lastChild.className = "lines";
    fact("Digest", example.digest);
    body.append(facts);
    if (example.layers !== null) body.append(layerBars(example.layers));
  }

  function bar(value, most) {
    const width = most > 0 ? 50 * Math.abs(value) / most : 0;
    return svg("svg", { class: "bar-cell", width: 102, height: 12, viewBox: "0 0 102 12", "aria-hidden": "true" },
      svg("rect", { class: value > 0 ? "f-plus" : "f-minus", x: value > 0 ? 51 : 51 - width, y: 1, width, height: 10 }),
      svg("path", { class: "axis", d: "M51 0v12" }));
  }

  function barTable(className, caption, titles, rows) {
    const most = Math.max(...rows.map(([, value]) => Math.abs(value)));
    const line = ([cells, value]) => element("tr", "", ...cells.map((cell) => put(element("td", "words"), cell)), element("td", "", bar(value, most)), element("td", "", number(value)));
    const heading = (text, kind = "words") => { const cell = element("th", kind, text); cell.scope = "col"; return cell; };
    return element("div", `table ${className}`, element("table", "", element("caption", "", caption),
      element("thead", "", element("tr", "", ...titles.map((title) => heading(title)), element("td"), heading("score", ""))), element("tbody", "", ...rows.map(line))));
  }

  function layerBars({ strongest, rest }) {
    const rows = strongest.map(([layer, value]) => [[report.layers[layer]], value]);
    const others = report.layers.length - strongest.length;
    if (others > 0) rows.push([[plural(others, "other layer")], rest]);
    return barTable("layers", "Its score by layer, the strongest first", ["layer"], rows);
  }

  function strongestTokens({ training }) {
    const order = training.map((_, s) => s).sort((a, b) => Math.abs(training[b][1]) - Math.abs(training[a][1]) || a - b);
    const rows = order.slice(0, STRONGEST).map((s) => [[String(s), word(training[s][0])], training[s][1]]);
    return barTable("strongest", `Its ${plural(rows.length, "token")} with the most influence`, ["#", "token"], rows);
  }

  function trainingTokens(example, reply) {
    const values = example.training.map(([, value]) => value);
    const linked = reply !== null && example.cells !== null;
    const heat = heatMap(example.training.map(([text]) => text), values, model.trainingScale);
    if (linked) linkTokens(heat, example, reply);
    const rows = () => example.training.map(([text, value], i) => [String(i), word(text), plain(value)]);
    const table = lazyTable(element("details", "table", element("summary", "", "as a table")), "Influence of each token that was learnt from this example", ["#", "token", "score"], rows, 1);
    const block = element("div", "trained", element("h3", "", `Which of its tokens had that influence${linked ? " (click one to see on which generated tokens)" : ""}`), heat, legendOf(model.trainingScale));
    if (example.rounded) block.append(element("p", "legend", "This file is large, so scores of training tokens are rounded to 1/127 of the example's largest."));
    if (example.training.length > 0) block.append(strongestTokens(example));
    block.append(table);
    if (example.cells !== null) {
      const pairs = () => example.cells.map(([t, s, value]) => [word(example.training[s][0]), word(model.explained[t].text), plain(value)]);
      block.append(lazyTable(element("details", "table pairs", element("summary", "", "strongest pairs of tokens")), "Influence of a training token on a generated one", ["training token", "generated token", "score"], pairs, 0));
    }
    return block;
  }

  // A click on a learnt token shows what that token did to each generated one.
  function linkTokens(heat, example, reply) {
    const buttons = [...heat.children];
    heat.setAttribute("role", "toolbar");
    heat.setAttribute("aria-label", "Learnt tokens: show what one did to each generated token");
    const press = (chosen) => {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
      reply.of(chosen ? buttons.indexOf(chosen) : null);
    };
    const focus = (button) => {
      for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
    };
    buttons.forEach((button, s) => {
      const [text, value] = example.training[s];
      button.setAttribute("role", "button"); // a real one would not break across lines
      button.setAttribute("aria-label", `learnt token ${s}, ${quoted(text)}, ${number(value)}`);
      button.addEventListener("focus", () => focus(button));
      button.addEventListener("click", () => press(button.getAttribute("aria-pressed") === "true" ? null : button));
    });
    heat.addEventListener("keydown", (event) => {
      const at = buttons.indexOf(event.target);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
      if (event.key === "Escape") press(null);
      else if (event.key === "Enter" || event.key === " ") event.target.click();
      else if (to !== undefined) buttons[Math.min(buttons.length - 1, Math.max(0, to))].focus();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    focus(buttons[0]);
    press(null);
  }

  function heatMap(words, values, scale) {
    const heat = element("div", "heat");
    heat.dir = "auto";
    words.forEach((text) => heat.append(put(element("span", "cell"), text.replace(/\n/g, "↵\n"))));
    colour(heat, values, scale);
    return heat;
  }

  // values: undefined where a pair of tokens is not among the strongest, which are all that is kept.
  function colour(heat, values, scale) {
    [...heat.children].forEach((cell, i) => {
      const value = values[i];
      const level = value === undefined ? "z0" : bin(value, scale);
      cell.className = `cell ${level} ${level === "z0" ? "" : `u-${signOf(value)}`}`;
      cell.title = `token ${i}: ${value === undefined ? "weaker than the pairs that were kept" : number(value)}`;
    });
  }

  function legendOf(scale, whole = true) {
    const edges = BIN_EDGES.map((edge) => (edge * scale).toPrecision(2)).join(", ");
    return element("p", "legend", element("span", "", element("span", "u-plus", "solid"), " raised, ", element("span", "u-minus", "dotted"), " lowered"), element("span", "", `colour steps at ±${edges}, the same for every ${whole ? "example of this query" : "token of this example"}`));
  }

  function tokenScores(example) {
    const heat = heatMap(model.explained.map((token) => token.text), example.tokens, model.scale);
    [...heat.children].forEach((cell, i) => { cell.dataset.token = String(i); });
    const rows = () => model.explained.map((token, i) => [String(i), word(token.text), plain(example.tokens[i])]);
    const table = lazyTable(element("details", "table", element("summary", "", "as a table")), "Influence of this example on each generated token", ["#", "token", "score"], rows, 1);
    const title = element("h3", "", "Its influence on each generated token");
    const linked = element("p", "linked");
    linked.setAttribute("role", "status");
    const legend = element("div");
    const node = element("div", "moved", title, linked, heat, legend, table);

    function of(learnt) {
      const pairs = new Map(learnt === null ? [] : example.cells.filter(([, s]) => s === learnt).map(([t, , value]) => [t, value]));
      const scale = learnt === null ? model.scale : Math.max(...example.cells.map(([, , value]) => Math.abs(value)));
      const values = example.tokens.map((value, i) => (learnt === null ? value : pairs.get(i)));
      colour(heat, values, scale);
      linked.replaceChildren();
      if (learnt !== null) put(linked, `Only from its token ${learnt} ${quoted(example.training[learnt][0])}: ${pairs.size} of ${plural(values.length, "token")}; the others are not among the strongest pairs.`);
      legend.replaceChildren(legendOf(scale, learnt === null));
      cards.get(example.digest)?.show();
    }
    of(null);
    return { node, of };
  }

  function lazyTable(details, caption, titles, rows, words) {
    details.addEventListener("toggle", () => {
      if (!details.open || details.querySelector("table")) return;
      const kind = (i) => (i === words ? "words" : "");
      const head = element("tr", "", ...titles.map((title, i) => { const cell = element("th", kind(i), title); cell.scope = "col"; return cell; }));
      const body = rows().map((row) => element("tr", "", ...row.map((value, i) => put(element("td", kind(i)), value))));
      details.append(element("table", "", element("caption", "", caption), element("thead", "", head), element("tbody", "", ...body)));
    });
    return details;
  }

  function toggle(digest) {
    if (!state.open.delete(digest)) state.open.add(digest);
    cards.get(digest).show();
    drawCharts();
    remember();
  }

  // ---- two examples on one scale

  function togglePin(digest) {
    const others = state.pinned.filter((other) => other !== digest);
    state.pinned = others.length < state.pinned.length ? others : [...others, digest].slice(-2);
    for (const card of cards.values()) card.show();
    showPinned();
    remember();
  }

  function showPinned() {
    const box = byId("pinned");
    const pinned = state.pinned.map((digest) => model.query.examples.find((example) => example.digest === digest));
    byId("compare").hidden = pinned.length === 0;
    box.replaceChildren(...pinned.map((example, n) => pinnedCard(example, n)));
    byId("compare-table").replaceChildren();
    if (pinned.length < 2 || !model.clickable) return;
    const [a, b] = pinned.map((example) => example.tokens);
    const rows = () => model.explained.map((token, i) => [String(i), word(token.text), number(a[i]), number(b[i]), number(a[i] - b[i])]);
    byId("compare-table").append(lazyTable(element("details", "table", element("summary", "", "as a table")), "Influence of both on each generated token", ["#", "token", "first", "second", "difference"], rows, 1));
  }

  function pinnedCard(example, n) {
    const score = scoreOf(example, state.from, state.to);
    const away = element("button", "quiet", "Unpin");
    away.type = "button";
    away.setAttribute("aria-label", `Unpin ${visible(example.id)}`);
    away.addEventListener("click", () => { togglePin(example.digest); cards.get(example.digest)?.head.focus({ preventScroll: true }); });
    const line = element("p", "line", element("strong", "", n === 0 ? "First" : "Second"), element("span", `score ${signOf(score)}`, number(score)), element("span", "change", state.from === null ? "" : `total ${number(example.score)}`), away);
    const node = element("section", "card", line, place(example), put(element("p", "snippet said-to"), clip(example.prompt)));
    node.setAttribute("aria-label", `${n === 0 ? "First" : "Second"} pinned example`);
    if (example.training === null) node.append(put(element("p", "snippet"), clip(example.response)));
    else node.append(heatMap(example.training.map(([text]) => text), example.training.map(([, value]) => value), model.trainingScale));
    if (model.clickable) {
      const mini = miniChart(example);
      mini.choose();
      node.append(mini.node);
    }
    return node;
  }

  // ---- charts: all scores, how concentrated they are, and each generated token

  function showCharts() {
    const { distribution, examples, scored } = model.query;
    const { edges, counts, ranks, shares, mean, std } = distribution;
    byId("chart-text").textContent = `Total scores of all ${count(scored)} examples, from ${number(distribution.min)} to ${number(distribution.max)}; mean ${number(mean)}, standard deviation ${number(std)}. Below the axis: the ${count(examples.length)} kept examples, solid if raised, dashed if lowered. Both axes are logarithmic, the horizontal one linear within a standard deviation of zero.`;
    chartTable("chart-table", "Examples by total score", ["from", "to", "examples"], () => counts.map((value, i) => [number(edges[i]), number(edges[i + 1]), count(value)]), -1);
    const half = ranks[shares.findIndex((share) => share >= 0.5)] ?? 0;
    byId("curve-text").textContent = `Share of the sum of all absolute scores that the strongest examples have: the first ${count(half)} of ${count(scored)} (${scored > 0 ? (100 * half / scored).toPrecision(2) : 0}%) have half of it. A line that rises early means that few examples matter; equal scores would give the dotted line.`;
    chartTable("curve-table", "Cumulative share of absolute influence", ["strongest", "share"], () => ranks.map((rank, i) => [count(rank), `${(100 * shares[i]).toFixed(1)}%`]), -1);
    byId("token-chart-section").hidden = !model.clickable;
    if (model.clickable) {
      byId("token-chart-text").textContent = `For each generated token, the highest influence of any kept example, upward, and the lowest, downward, up to ±${model.scale.toPrecision(3)}.`;
      const end = (example, i) => (example ? number(example.tokens[i]) : "0");
      chartTable("token-chart-table", "Strongest influences on each generated token", ["#", "token", "raised by", "lowered by"], () => model.explained.map((token, i) => [String(i), word(token.text), end(model.strongest[i].raised, i), end(model.strongest[i].lowered, i)]), 1);
    }
    drawCharts();
  }

  function chartTable(id, caption, titles, rows, words) {
    const table = lazyTable(element("details", "table", element("summary", "", "as a table")), caption, titles, rows, words);
    table.id = id;
    byId(id).replaceWith(table);
  }

  function drawCharts() {
    const { edges, counts, ranks } = model.query.distribution;
    const draw = (id, wanted, drawing) => {
      const box = byId(id);
      box.replaceChildren(...(wanted ? [drawing(Math.max(240, box.clientWidth))] : []));
    };
    draw("chart", counts.length > 0 && edges.length === counts.length + 1, histogram);
    draw("curve", ranks.length > 1, curve);
    draw("token-chart", model.clickable, tokenChart);
  }

  function frame(id, text, width, height) {
    const title = svg("title", { id }, text);
    return svg("svg", { role: "img", "aria-labelledby": id, width, height, viewBox: `0 0 ${width} ${height}` }, title);
  }

  function curve(width) {
    const { ranks, shares } = model.query.distribution;
    const [left, right, top, bottom] = [44, 12, 8, 160];
    const most = Math.log(ranks.at(-1));
    const x = (rank) => left + (width - left - right) * Math.log(rank) / most;
    const y = (share) => bottom - (bottom - top) * share;
    const chart = frame("curve-svg-title", "Cumulative share of the absolute influence of the strongest examples", width, bottom + 24);
    for (const share of [0, 0.5, 1]) {
      chart.append(svg("path", { class: "grid", d: `M${left} ${y(share)}H${width - right}` }),
        svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${100 * share}%`));
    }
    const line = (values) => values.map(([rank, share], i) => `${i === 0 ? "M" : "L"}${x(rank).toFixed(1)} ${y(share).toFixed(1)}`).join("");
    chart.append(svg("path", { class: "even", d: line(ranks.map((rank) => [rank, rank / ranks.at(-1)])) }),
      svg("path", { class: "line-share", d: line(ranks.map((rank, i) => [rank, shares[i]])) }),
      svg("path", { class: "axis", d: `M${left} ${bottom}H${width - right}` }));
    for (let rank = 1; rank <= ranks.at(-1); rank *= 10) {
      const near = x(rank) > width - 60 && rank * 10 > ranks.at(-1) && rank !== ranks.at(-1);
      if (!near) chart.append(svg("text", { x: x(rank), y: bottom + 16, "text-anchor": rank === 1 ? "start" : "middle" }, count(rank)));
    }
    chart.append(svg("text", { x: width - 2, y: bottom + 16, "text-anchor": "end" }, count(ranks.at(-1))));
    return chart;
  }

  function tokenChart(width) {
    const [left, right, top, middle, bottom] = [64, 4, 8, 84, 160];
    const n = model.explained.length;
    const step = (width - left - right) / n;
    const height = (value) => (model.scale > 0 ? (middle - top) * Math.abs(value) / model.scale : 0);
    const chart = frame("token-chart-svg-title", "Strongest influences on each generated token", width, bottom + 24);
    for (const [at, value] of [[top, model.scale], [middle, 0], [bottom, -model.scale]]) {
      chart.append(svg("path", { class: value === 0 ? "axis" : "grid", d: `M${left} ${at}H${width - right}` }),
        svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, number(value)));
    }
    model.strongest.forEach(({ raised, lowered }, i) => {
      const [up, down] = [raised ? height(raised.tokens[i]) : 0, lowered ? height(lowered.tokens[i]) : 0];
      const place = { x: left + step * i + step * 0.1, width: step * 0.8 };
      chart.append(svg("rect", { ...place, class: "f-plus", y: middle - up, height: up }),
        svg("rect", { ...place, class: "f-minus", y: middle, height: down }));
    });
    const every = Math.max(1, Math.ceil(30 / step));
    for (let i = 0; i < n; i += every) chart.append(svg("text", { x: left + step * (i + 0.5), y: bottom + 16, "text-anchor": "middle" }, String(i)));
    return chart;
  }

  function histogram(width) {
    const { edges, counts, std } = model.query.distribution;
    const [left, right, top, bottom, rug] = [44, 12, 8, 160, 18];
    const unit = std > 0 ? std : 1;
    const bend = (value) => Math.asinh(value / unit);
    const low = bend(Math.min(edges[0], 0));
    const high = Math.max(bend(Math.max(edges[edges.length - 1], 0)), low + 1e-9);
    const x = (value) => left + (width - left - right) * (bend(value) - low) / (high - low);
    const most = Math.max(...counts, 1);
    const y = (value) => bottom - (bottom - top) * Math.log1p(value) / Math.log1p(most);
    const chart = frame("chart-svg-title", "Histogram of the total scores of all scored examples", width, bottom + rug + 24);
    for (let power = 1; power <= most; power *= 10) {
      chart.append(svg("path", { class: "grid", d: `M${left} ${y(power)}H${width - right}` }),
        svg("text", { x: left - 6, y: y(power) + 4, "text-anchor": "end" }, count(power)));
    }
    counts.forEach((value, i) => {
      if (value === 0) return;
      const start = x(edges[i]);
      chart.append(svg("rect", { class: "column-bar", x: start, y: y(value), width: Math.max(1, x(edges[i + 1]) - start - 0.75), height: bottom - y(value) }));
    });
    chart.append(svg("path", { class: "axis", d: `M${left} ${bottom}H${width - right}M${x(0)} ${top}V${bottom}` }));
    for (const example of model.query.examples) {
      const name = state.open.has(example.digest) ? "open" : signOf(example.score) || "zero";
      chart.append(svg("path", { class: `rug-${name}`, d: `M${x(example.score)} ${bottom + 3}v${rug - 4}` }));
    }
    for (const [at, text] of ticks(x, edges)) {
      const anchor = at > width - 40 ? "end" : at < left + 20 ? "start" : "middle";
      chart.append(svg("text", { x: anchor === "end" ? width - 2 : at, y: bottom + rug + 16, "text-anchor": anchor }, text));
    }
    return chart;
  }

  function ticks(x, edges) {
    const [low, high] = [edges[0], edges[edges.length - 1]];
    const wanted = [0, high, low];
    const size = Math.max(Math.abs(low), Math.abs(high));
    for (let power = Math.floor(Math.log10(size || 1)), i = 0; i < 6; i += 1, power -= 1) wanted.push(10 ** power, -(10 ** power));
    const placed = [];
    for (const value of wanted) {
      const at = x(value);
      if (value !== 0 && (value < low || value > high)) continue;
      if (placed.every(([other]) => Math.abs(other - at) > 70)) placed.push([at, number(value)]);
    }
    return placed;
  }

  // ---- the address: ids, so that a link means the same in a file made again

  function remember() {
    const parts = new URLSearchParams();
    if (report.queries.length > 1) parts.set("q", model.query.id);
    if (state.from !== null) parts.set("t", state.from === state.to ? `${state.from}` : `${state.from}:${state.to}`);
    if (state.open.size > 0) parts.set("e", [...state.open].map((digest) => digest.slice(0, 16)).join("."));
    if (state.pinned.length > 0) parts.set("p", state.pinned.map((digest) => digest.slice(0, 16)).join("."));
    if (state.find !== "") parts.set("f", state.find);
    const hash = parts.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const found = report.queries.findIndex((query) => query.id === parts.get("q"));
    fresh(found < 0 ? 0 : found);
    state.find = byId("find").value = parts.get("f") || "";
    showQuery();
    const span = /^(\d{1,6})(?::(\d{1,6}))?$/.exec(parts.get("t") || "");
    if (span && model.clickable) {
      const [from, to] = [Number(span[1]), Number(span[2] || span[1])];
      if (from <= to && to < model.explained.length) [state.from, state.to, state.anchor] = [from, to, from];
    }
    const named = (name) => (parts.get(name) || "").split(".").filter((part) => part.length >= 12)
      .flatMap((start) => model.query.examples.filter(({ digest }) => digest.startsWith(start)).map(({ digest }) => digest));
    state.open = new Set(named("e"));
    state.pinned = named("p").slice(0, 2);
    showRanking();
    if (state.open.size > 0) {
      drawCharts();
      for (const digest of state.open) cards.get(digest)?.node.scrollIntoView({ block: "nearest" });
    }
  }

  function fresh(query) {
    Object.assign(state, { query, from: null, to: null, anchor: null, open: new Set(), pinned: [], all: new Set() });
  }

  function goToQuery(index) {
    if (index === undefined) return;
    fresh(index);
    showQuery();
    showRanking();
    remember();
  }

  // Neighbour of the shown query in the list, which may not hold the shown one.
  const neighbour = (by) => {
    const at = listed.indexOf(state.query);
    return at < 0 ? listed[0] : listed[at + by];
  };

  function listQueries() {
    const wanted = byId("query-search").value.trim().toLowerCase();
    const order = {
      given: () => 0,
      loss: (a, b) => b.loss - a.loss,
      strongest: (a, b) => b.distribution.max - a.distribution.max,
    }[byId("query-sort").value];
    listed = report.queries.map((_, index) => index)
      .filter((index) => [report.queries[index].id, report.queries[index].prompt, report.queries[index].response].some((text) => text.toLowerCase().includes(wanted)))
      .sort((a, b) => order(report.queries[a], report.queries[b]) || a - b);
    const select = byId("query");
    select.replaceChildren(...listed.map((index) => {
      const query = report.queries[index];
      const option = element("option", "", `${index + 1}. ${visible(clip(query.prompt).slice(-100)).trim()} → ${visible(head(query.response, 80)).trim()}`);
      option.value = String(index);
      return option;
    }));
    select.value = String(state.query);
    byId("query-count").textContent = `${count(listed.length)} of ${count(report.queries.length)}`;
  }

  // ---- what is shown, as a file

  // RFC 4180; a quotation mark keeps a spreadsheet from reading text as a formula.
  const quotedCell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replace(/"/g, '""')}"`;

  function shownRows() {
    const order = ranking(model, state.from, state.to);
    return SIDES.flatMap((side) => order[side].map(({ example, score }, index) => ({ side, rank: index + 1, score, example })).filter(({ example }) => matches(example)));
  }

  function asCsv() {
    const titles = ["side", "rank", "score", "total", "percentile", "bm25_rank", "id", "file", "line", "rows", "digest", "prompt", "response"];
    const lines = shownRows().map(({ side, rank, score, example: { rows, ...example } }) => [
      side, rank, score, example.score, example.percentile, example.bm25.rank ?? "", quotedCell(example.id), quotedCell(rows[0].file),
      rows[0].line, rows.length, example.digest, quotedCell(example.prompt), quotedCell(example.response)].join(","));
    return [titles.join(","), ...lines, ""].join("\r\n");
  }

  function asJson() {
    const { query, explained } = model;
    const examples = shownRows().map(({ example: { rounded, ...example }, ...place }) => ({ ...place, ...example, total: example.score, score: place.score }));
    const chosen = state.from === null ? null : { from: state.from, to: state.to, text: explained.slice(state.from, state.to + 1).map((token) => token.text).join("") };
    return JSON.stringify({ schema: "rin.report-view/1", report: report.id, checkpoint: report.checkpoint, score: report.score, query: query.id, prompt: query.prompt, response: query.response, tokens: chosen, find: state.find, examples }, null, 1);
  }

  function download(kind) {
    const [text, type] = kind === "csv" ? [asCsv(), "text/csv"] : [asJson(), "application/json"];
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = `rin-${report.id}-${model.query.id.replace(/[^\w.-]+/g, "_").slice(0, 60)}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    byId("status").textContent = `Saved ${link.download}: what is shown, ${plural(shownRows().length, "example")}.`;
  }

  // ---- keys and controls

  function step(buttons, by) {
    if (buttons.length === 0) return;
    const at = buttons.indexOf(document.activeElement);
    const next = at < 0 ? (by > 0 ? 0 : buttons.length - 1) : Math.min(buttons.length - 1, Math.max(0, at + by));
    buttons[next].focus();
  }

  function stepToken(by) {
    const buttons = stops();
    const inside = buttons.includes(document.activeElement);
    if (!inside) (buttons.find((button) => button.tabIndex === 0) || buttons[0])?.focus();
    else step(buttons, by);
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (event.target.closest("select, input, textarea")) return;
    const heads = () => [...document.querySelectorAll("#app .card-head")];
    const inStrip = byId("strip").contains(event.target);
    const actions = {
      ArrowRight: () => stepToken(1),
      ArrowLeft: () => stepToken(-1),
      Home: inStrip && (() => stops()[0].focus()),
      End: inStrip && (() => stops().at(-1).focus()),
      Escape: () => choose(null, false),
      j: () => step(heads(), 1),
      k: () => step(heads(), -1),
      "[": () => goToQuery(neighbour(-1)),
      "]": () => goToQuery(neighbour(1)),
      "/": () => byId("find").focus(),
      h: toggleHeat,
      p: () => { const card = event.target.closest(".card[data-digest]"); if (card) togglePin(card.dataset.digest); },
      "?": () => byId("help").showModal(),
    };
    const action = Object.hasOwn(actions, event.key) && actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  function toggleHeat() {
    const off = document.documentElement.classList.toggle("flat");
    byId("heat").setAttribute("aria-pressed", String(!off));
    byId("status").textContent = off ? "Token colours are off." : "Token colours are on.";
  }

  function nextTheme() {
    const root = document.documentElement;
    const next = { auto: "light", light: "dark", dark: "auto" }[root.dataset.theme || "auto"];
    root.dataset.theme = next;
    byId("theme").textContent = `Theme: ${next}`;
  }

  function connect() {
    listQueries();
    byId("queries").hidden = report.queries.length < 2;
    byId("query").addEventListener("change", () => goToQuery(Number(byId("query").value)));
    byId("query-back").addEventListener("click", () => goToQuery(neighbour(-1)));
    byId("query-next").addEventListener("click", () => goToQuery(neighbour(1)));
    byId("query-search").addEventListener("input", () => {
      listQueries();
      if (!listed.includes(state.query)) goToQuery(listed[0]);
    });
    byId("query-sort").addEventListener("change", listQueries);
    byId("find").addEventListener("input", () => { state.find = byId("find").value; showRanking(); remember(); });
    byId("find").addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      state.find = byId("find").value = "";
      showRanking();
      remember();
      document.querySelector("#app .card-head")?.focus();
    });
    byId("heat").addEventListener("click", toggleHeat);
    for (const kind of ["csv", "json"]) byId(`save-${kind}`).addEventListener("click", () => download(kind));
    byId("reset").addEventListener("click", () => { choose(null, false); stops()[0].focus({ preventScroll: true }); });
    for (const side of SIDES) {
      byId(`${side}-all`).addEventListener("click", () => {
        const before = byId(side).children.length;
        state.all.add(side);
        showRanking();
        // The button is gone, so the focus goes on to the first card that it brought.
        byId(side).children[before]?.querySelector("button").focus();
      });
    }
    byId("theme").addEventListener("click", nextTheme);
    byId("help-open").addEventListener("click", () => byId("help").showModal());
    byId("help-close").addEventListener("click", () => byId("help").close());
    document.addEventListener("keydown", onKey);
    // The skip link leads to #main, which is no state of the page.
    addEventListener("hashchange", () => (location.hash === "#main" ? remember() : recall()));
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCharts(); } });
    byId("tools").hidden = false;
  }

  async function load() {
    const text = atob(byId("report-data").textContent);
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    report = unpack(await new Response(stream).arrayBuffer());
    byId("app").hidden = false;
    if (report.queries.length === 0) throw new Error("the report has no queries");
    connect();
    recall();
    performance.mark("ready");
    document.documentElement.dataset.ready = "yes";
  }

  document.documentElement.classList.add("js");
  load().catch((error) => {
    document.documentElement.classList.remove("js");
    byId("app").hidden = true;
    byId("problem").hidden = false;
    byId("problem").textContent = `The interactive part could not start (${error.message}). Below are the totals and the strongest examples.`;
  });
})();
