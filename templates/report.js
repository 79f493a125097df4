"use strict";
(() => {
  // The same set as _HIDDEN in rapidin_cli/report/html.py.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{d800}-\u{dfff}\u{e0000}-\u{e0fff}]/gu;
  const SHOWN = 10;
  const SNIPPET = 280;
  const SIDES = ["raised", "lowered"];
  // Lower edges of the colour bins, as shares of the largest token score of the query.
  const BIN_EDGES = [0.03, 0.15, 0.4, 0.7];
  const SVG = "http://www.w3.org/2000/svg";

  const byId = (id) => document.getElementById(id);
  let report = null;
  let model = null;
  let cards = new Map();
  const models = new Map();
  // from and to: the first and last chosen token; both null when all tokens count. anchor: where
  // a span began. open: digests of the open examples. all: columns that are shown in full.
  const state = { query: 0, from: null, to: null, anchor: null, open: new Set(), all: new Set() };

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
  const clip = (text) => (text.length > SNIPPET ? `${text.slice(0, SNIPPET)}…` : text);
  // Line breaks and outer spaces as signs, so that a token made of them can be seen and clicked.
  const word = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +$/, (spaces) => "␣".repeat(spaces.length)) || "∅";
  const quoted = (text) => `“${visible(word(text)).trim()}”`;

  // ---- numbers: the orders that the page shows

  function prepare(query) {
    const explained = query.tokens.filter((token) => token.explained);
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
    const query = report.queries[state.query];
    if (!models.has(state.query)) models.set(state.query, prepare(query));
    model = models.get(state.query);
    cards = new Map();
    byId("query").value = String(state.query);
    const source = { given: "given with the question", generated: "generated by this checkpoint", row: "a row of the data" }[query.source];
    const residual = query.residual === null ? "" : ` · token scores add up to the total within ${query.residual.toPrecision(2)}`;
    byId("query-facts").textContent = `${source} · ${plural(model.explained.length, "token")} · loss ${query.loss.toFixed(3)} nats${residual}`;
    byId("exactness").textContent = exactness(query);
    byId("words").replaceChildren();
    put(byId("words"), wordsText(query.words));
    showStrip();
    showChart();
  }

  function exactness({ exact, distribution }) {
    if (exact === null) return "Scores are read from compressed gradients: small differences between neighbours mean nothing.";
    const share = distribution.std > 0 ? ` (${(100 * exact.sketch_error / distribution.std).toPrecision(2)}% of the spread of all scores)` : "";
    const doubt = exact.doubtful > 0 ? `${plural(exact.doubtful, "other example")} may be among the best too, by that error: a larger --exact settles it. ` : "";
    return `Scores of the kept examples are exact: the best ${plural(exact.shortlist, "example")} by compressed gradients were scored from whole ones, which moved totals by ${exact.sketch_error.toPrecision(2)}${share}. ${doubt}Training tokens add up to the total within ${exact.residual.toPrecision(2)}.`;
  }

  function wordsText({ of, agree, matches }) {
    const text = `Shared words alone (BM25) would put ${agree} of the ${of} most raising examples among its first 10.`;
    const only = matches.filter((match) => match.percentile > 10 && match.percentile < 90).slice(0, 3).map((match) => match.id);
    return only.length > 0 ? `${text} Alike in words, but of no special influence: ${only.join(", ")}.` : text;
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
    button.setAttribute("aria-label", `token ${i + 1}, ${quoted(token.text)}, strongest influence ${number(value)}`);
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
      put(line, `Token ${i + 1} ${quoted(text)}`);
      if (logprob !== null) line.append(` · log-probability ${logprob.toFixed(3).replace("-", "−")}`);
      if (raised) put(line, ` · raised most by ${raised.id} ${number(raised.tokens[i])}`);
      if (lowered) put(line, ` · lowered most by ${lowered.id} ${number(lowered.tokens[i])}`);
    }
  }

  // ---- the two columns

  function choice() {
    const { from, to } = state;
    if (from === null) return "all tokens";
    if (from === to) return `token ${from + 1} ${quoted(model.explained[from].text)}`;
    const text = model.explained.slice(from, to + 1).map((token) => token.text).join("");
    return `tokens ${from + 1} to ${to + 1} ${quoted(clip(text))}`;
  }

  function showRanking() {
    const order = ranking(model, state.from, state.to);
    const held = document.activeElement;
    for (const side of SIDES) fillColumn(side, order[side]);
    // Moving a focused element in the document takes the focus from it.
    if (held && held !== document.activeElement && held.isConnected) held.focus({ preventScroll: true });
    const kept = count(model.query.examples.length);
    const scored = count(model.query.scored);
    const sides = `${count(order.raised.length)} raised, ${count(order.lowered.length)} lowered`;
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

  function fillColumn(side, entries) {
    const open = entries.findLastIndex((entry) => state.open.has(entry.example.digest));
    const limit = state.all.has(side) ? entries.length : Math.max(SHOWN, open + 1);
    const list = byId(side);
    list.replaceChildren(...entries.slice(0, limit).map((entry, index) => {
      const { digest } = entry.example;
      if (!cards.has(digest)) cards.set(digest, makeCard(entry.example));
      const card = cards.get(digest);
      card.update(side, index + 1, entry.score);
      return card.node;
    }));
    byId(`${side}-none`).hidden = entries.length > 0;
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
    const head = element("button", "card-head", rank, score, change, percentile, chevron);
    head.type = "button";
    const body = element("div", "body");
    const node = element("li", "card", head, place(example));
    node.dataset.digest = example.digest;
    body.id = `body-${example.digest}`;
    head.setAttribute("aria-controls", body.id);
    const asked = put(element("p", "snippet said-to"), clip(example.prompt));
    const said = put(element("p", "snippet"), clip(example.response));
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

    function update(side, place_, value) {
      const [short, long] = changeText(example.digest, side, place_);
      rank.textContent = String(place_);
      score.textContent = number(value);
      score.className = `score ${signOf(value)}`;
      change.textContent = short;
      percentile.textContent = `${state.from === null ? "" : `total ${number(example.score)} · `}percentile ${percent(example.percentile)} · words ${example.bm25.rank === null ? "none" : `#${count(example.bm25.rank)}`}`;
      head.setAttribute("aria-label", visible(`${side} ${place_}, ${number(value)}${long ? `, ${long}` : ""}, percentile ${percent(example.percentile)}, row ${example.id}`));
      if (mini) mini.choose();
      show();
    }

    return { node, head, show, update, hint: (i) => mini && mini.hint(i) };
  }

  function place(example) {
    const [row] = example.rows;
    const where = element("p", "where", put(element("bdi", "id"), example.id), put(element("bdi", ""), `${row.file}:${row.line}`));
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
      block.setAttribute("aria-label", `${title} of this example`);
      body.append(element("div", "", element("h3", "", title), block));
    }
    const reply = model.clickable ? tokenScores(example) : null;
    if (example.training !== null) body.append(trainingTokens(example, reply));
    if (reply) body.append(reply.node);
    const { mean, std } = model.query.distribution;
    const facts = element("dl", "exact");
    const fact = (name, ...values) => facts.append(element("div", "", element("dt", "", name), ...values.map((value) => put(element("dd", ""), value))));
    fact("Total score", plain(example.score) + (std > 0 ? ` (${number((example.score - mean) / std)} standard deviations from the mean of all scored)` : ""));
    if (example.sketched !== null) fact("By its compressed gradient", plain(example.sketched));
    fact("Percentile", `${example.percentile} of ${count(model.query.scored)} scored`);
    fact(example.rows.length > 1 ? "Rows" : "Row", example.rows.map((row) => `${row.file}:${row.line} (${row.id})`).join("\n"));
    facts.lastChild.lastChild.className = "lines";
    fact("Digest", example.digest);
    body.append(facts);
  }

  function trainingTokens(example, reply) {
    const values = example.training.map(([, value]) => value);
    const linked = reply !== null && example.cells !== null;
    const heat = heatMap(example.training.map(([text]) => text), values, model.trainingScale);
    if (linked) linkTokens(heat, example, reply);
    const rows = () => example.training.map(([text, value], i) => [String(i + 1), word(text), plain(value)]);
    const table = lazyTable(element("details", "table", element("summary", "", "as table")), "Influence of each token that was learnt from this example", ["#", "token", "score"], rows, 1);
    const block = element("div", "trained", element("h3", "", `Which of its tokens had that influence${linked ? " (click one: on which generated tokens)" : ""}`), heat, legendOf(model.trainingScale), table);
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
      button.setAttribute("aria-label", `learnt token ${s + 1}, ${quoted(text)}, ${number(value)}`);
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
      cell.title = `token ${i + 1}: ${value === undefined ? "weaker than the pairs that were kept" : number(value)}`;
    });
  }

  function legendOf(scale, whole = true) {
    const edges = BIN_EDGES.map((edge) => (edge * scale).toPrecision(2)).join(", ");
    return element("p", "legend", element("span", "", element("span", "u-plus", "solid"), " raised, ", element("span", "u-minus", "dotted"), " lowered"), element("span", "", `colour steps at ±${edges}, the same for every ${whole ? "example of this query" : "token of this example"}`));
  }

  function tokenScores(example) {
    const heat = heatMap(model.explained.map((token) => token.text), example.tokens, model.scale);
    [...heat.children].forEach((cell, i) => { cell.dataset.token = String(i); });
    const rows = () => model.explained.map((token, i) => [String(i + 1), word(token.text), plain(example.tokens[i])]);
    const table = lazyTable(element("details", "table", element("summary", "", "as table")), "Influence of this example on each generated token", ["#", "token", "score"], rows, 1);
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
      if (learnt !== null) put(linked, `Only by its token ${learnt + 1} ${quoted(example.training[learnt][0])}: ${pairs.size} of ${plural(values.length, "token")}, the others are not among the strongest pairs.`);
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
    drawChart();
    remember();
  }

  // ---- the histogram of all scores

  function showChart() {
    const { distribution, examples, scored } = model.query;
    const { edges, counts, mean, std } = distribution;
    byId("chart-text").textContent = `Total scores of all ${count(scored)} examples, from ${number(distribution.min)} to ${number(distribution.max)}; mean ${number(mean)}, standard deviation ${number(std)}. Below the axis: the ${count(examples.length)} kept ones, solid if raised, dashed if lowered. Both axes are logarithmic, the horizontal one linear within a standard deviation of zero.`;
    const rows = () => counts.map((value, i) => [number(edges[i]), number(edges[i + 1]), count(value)]);
    const table = lazyTable(element("details", "table", element("summary", "", "as table")), "Examples by total score", ["from", "to", "examples"], rows, -1);
    table.id = "chart-table";
    byId("chart-table").replaceWith(table);
    drawChart();
  }

  function drawChart() {
    const { edges, counts } = model.query.distribution;
    const box = byId("chart");
    const whole = counts.length > 0 && edges.length === counts.length + 1;
    box.replaceChildren(...(whole ? [histogram(Math.max(240, box.clientWidth))] : []));
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
    const title = svg("title", { id: "chart-svg-title" }, "Histogram of the total scores of all scored examples");
    const chart = svg("svg", { role: "img", "aria-labelledby": "chart-svg-title", width, height: bottom + rug + 24, viewBox: `0 0 ${width} ${bottom + rug + 24}` }, title);
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
    if (state.from !== null) parts.set("t", state.from === state.to ? `${state.from + 1}` : `${state.from + 1}-${state.to + 1}`);
    if (state.open.size > 0) parts.set("e", [...state.open].map((digest) => digest.slice(0, 16)).join("."));
    const hash = parts.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const found = report.queries.findIndex((query) => query.id === parts.get("q"));
    state.query = found < 0 ? 0 : found;
    state.from = state.to = state.anchor = null;
    state.open = new Set();
    state.all = new Set();
    showQuery();
    const span = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(parts.get("t") || "");
    if (span && model.clickable) {
      const from = Number(span[1]) - 1;
      const to = Number(span[2] || span[1]) - 1;
      if (from >= 0 && from <= to && to < model.explained.length) [state.from, state.to, state.anchor] = [from, to, from];
    }
    for (const start of (parts.get("e") || "").split(".").filter((part) => part.length >= 12)) {
      const example = model.query.examples.find(({ digest }) => digest.startsWith(start));
      if (example) state.open.add(example.digest);
    }
    showRanking();
    if (state.open.size > 0) {
      drawChart();
      for (const digest of state.open) cards.get(digest)?.node.scrollIntoView({ block: "nearest" });
    }
  }

  function goToQuery(index) {
    if (index < 0 || index >= report.queries.length) return;
    state.query = index;
    state.from = state.to = state.anchor = null;
    state.open = new Set();
    state.all = new Set();
    showQuery();
    showRanking();
    remember();
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
      "[": () => goToQuery(state.query - 1),
      "]": () => goToQuery(state.query + 1),
      "?": () => byId("help").showModal(),
    };
    const action = Object.hasOwn(actions, event.key) && actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  function nextTheme() {
    const root = document.documentElement;
    const next = { auto: "light", light: "dark", dark: "auto" }[root.dataset.theme || "auto"];
    root.dataset.theme = next;
    byId("theme").textContent = `Theme: ${next}`;
  }

  function connect() {
    const select = byId("query");
    report.queries.forEach((query, index) => {
      const option = element("option", "", `${index + 1}. ${visible(clip(query.prompt).slice(-100)).trim()} → ${visible(query.response.slice(0, 80)).trim()}`);
      option.value = String(index);
      select.append(option);
    });
    byId("queries").hidden = report.queries.length < 2;
    select.addEventListener("change", () => goToQuery(Number(select.value)));
    byId("query-back").addEventListener("click", () => goToQuery(state.query - 1));
    byId("query-next").addEventListener("click", () => goToQuery(state.query + 1));
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
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawChart(); } });
    byId("tools").hidden = false;
  }

  async function load() {
    const text = atob(byId("report-data").textContent);
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    report = await new Response(stream).json();
    byId("app").hidden = false;
    if (report.queries.length === 0) throw new Error("the report holds no query");
    connect();
    recall();
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
