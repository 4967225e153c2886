"use strict";
const PAGE_SIZE = 20, HOTTEST = 4, KEPT_BLOCKS = 8, SHORT_TEXT = 400, FIELDS = ["search", "kind", "min", "max", "show", "replies", "sort"];
const SIDES = [["text-rich", "Text-rich"], ["vision-rich", "Vision-rich"]];
const get = id => document.getElementById(id);
const count = number => number.toLocaleString("en");
const nats = value => value === null ? "not finite" : value.toFixed(3);
const facts = JSON.parse(get("data-facts").textContent), rows = JSON.parse(get("data-rows").textContent);
const blocks = document.querySelectorAll("script.data-images"), opened = new Map();
let shown = [], page = 1;

/* Makes an element. Data only ever becomes text nodes and attribute values, never markup. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function thumbnail(number) {
  const block = Math.floor(number / facts.images_per_block);
  if (!opened.has(block)) {
    if (opened.size >= KEPT_BLOCKS) opened.delete(opened.keys().next().value);
    opened.set(block, JSON.parse(blocks[block].textContent));
  }
  return "data:image/webp;base64," + opened.get(block)[number % facts.images_per_block];
}

function words() { return get("search").value.toLowerCase().split(/\s+/).filter(Boolean); }

/* Appends text with what was searched for marked. */
function fill(element, text) {
  const found = words().map(word => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const parts = found.length ? text.split(new RegExp(`(${found.join("|")})`, "gi")) : [text];
  element.append(...parts.map((part, index) => index % 2 ? make("mark", {}, part) : part));
  return element;
}

function sideLength(side) {
  if (!side) return 0;
  if (facts.unit === "tokens") return side.tokens ? side.tokens[0] + side.tokens[1] + side.tokens[2] : 0;
  return side.prompt.length + side.answer.length;
}

for (const row of rows) {
  row.length = Math.max(0, ...row.sides.map(sideLength));
  row.rich = row.sides.map(side => side && side.reply !== undefined ? Number(side.right) : "").join("");
}

function haystack(row) {
  if (row.hay === undefined) {
    const texts = row.sides.flatMap(side => side ? [side.prompt, side.answer, side.reply || ""] : []);
    row.hay = [row.id, row.kind || "", row.problem || "", row.raw || "", ...texts].join("\n").toLowerCase();
  }
  return row.hay;
}

const ORDERS = {
  long: row => row.length, short: row => -row.length,
  forward: row => row.measured && row.measured.forward_kl, reverse: row => row.measured && row.measured.reverse_kl,
  gap: row => row.measured && row.measured.losses[1] - row.measured.losses[0],
};

function select() {
  const found = words(), value = id => get(id).value, bound = (id, none) => value(id) === "" ? none : Number(value(id));
  const min = bound("min", -Infinity), max = bound("max", Infinity);
  shown = [...rows.keys()].filter(index => {
    const row = rows[index];
    return (!value("kind") || row.kind === value("kind")) && row.length >= min && row.length <= max
      && (!value("show") || (value("show") === "bad") === Boolean(row.problem))
      && (!value("replies") || row.rich === value("replies"))
      && found.every(word => haystack(row).includes(word));
  });
  const order = ORDERS[value("sort")];
  if (order) {
    const keys = new Map(shown.map(index => [index, order(rows[index]) ?? -Infinity]));
    shown.sort((left, right) => keys.get(right) - keys.get(left) || left - right);
  }
}

function pages() { return Math.max(1, Math.ceil(shown.length / PAGE_SIZE)); }

function answer(row, position, side) {
  const box = make("div", {class: "text answer", dir: "auto"});
  if (!row.measured || !row.measured.tokens.length) return fill(box, side.answer);
  for (const token of row.measured.tokens) {
    const loss = token[1 + position];
    const span = make("span", {class: "token", "data-loss": loss === null ? "∞" : loss < 0.005 ? "" : loss.toFixed(2)}, token[0]);
    span.title = loss === null ? "loss not finite" : `loss ${loss.toFixed(3)} nats, probability ${(100 * Math.exp(-loss)).toFixed(1)} %`;
    span.style.setProperty("--heat", loss === null ? 1 : Math.min(1, loss / HOTTEST));
    box.append(span);
  }
  return box;
}

function picture(image, position, name, row) {
  const [number, width, height] = image, alt = `Picture ${position + 1} of the ${name} side of ${row.id}`;
  // small drawings are enlarged, by whole numbers so that their pixels stay even
  const scale = Math.max(1, Math.min(3, Math.floor(facts.thumbnail_size / Math.max(width, height))));
  const shrink = Math.min(1, facts.thumbnail_size / Math.max(width, height)) * scale;
  const size = {width: Math.max(1, Math.round(width * shrink)), height: Math.max(1, Math.round(height * shrink))};
  const thumb = make("img", {...size, alt, decoding: "async", src: thumbnail(number)});
  const button = make("button", {type: "button", class: "picture", title: `${width} × ${height} pixels; enlarge`}, thumb);
  button.addEventListener("click", () => {
    get("viewer-title").textContent = `${alt}, ${width} × ${height} pixels`;
    get("enlarged").src = thumb.src;
    get("enlarged").alt = alt;
    get("viewer").showModal();
  });
  return button;
}

function makeSide(row, position) {
  const [name, title] = SIDES[position], side = row.sides[position], head = make("div", {class: "side-head"}, make("h3", {}, title));
  const element = make("section", {class: `side ${name}`, "aria-label": `${title} side`}, head);
  if (!side) {
    element.append(make("p", {class: "absent"}, "The row has no such side."));
    return element;
  }
  if (side.tokens) {
    const [prompt, images, output] = side.tokens, parts = [`prompt ${count(prompt)}`, ...(images ? [`picture ${count(images)}`] : []), `answer ${count(output)}`];
    head.append(make("p", {class: "detail"}, make("b", {}, `${count(prompt + images + output)} tokens`), ` (${parts.join(", ")})`));
  }
  const texts = make("div", {}, make("h4", {}, "Prompt"), fill(make("div", {class: "text", dir: "auto"}), side.prompt));
  const loss = row.measured ? `, mean loss ${nats(row.measured.losses[position])}` : "";
  texts.append(make("h4", {}, `Answer${loss}`), answer(row, position, side));
  if (side.reply !== undefined) {
    const verdict = make("span", {class: side.right ? "right" : "wrong"}, side.right ? "✓ right" : "✗ wrong");
    texts.append(make("h4", {}, "Reply of the model: ", verdict), fill(make("div", {class: "text", dir: "auto"}), side.reply || "(empty)"));
  }
  if (!side.images.length) element.append(texts);
  else {
    // a short text stands beside its picture where there is room, a long one has the whole width below it
    const pictures = make("div", {class: "pictures"}, ...side.images.map((image, at) => picture(image, at, name, row)));
    const isShort = side.images.length === 1 && side.prompt.length + side.answer.length + (side.reply || "").length <= SHORT_TEXT;
    element.append(make("div", isShort ? {class: "beside"} : {}, pictures, texts));
  }
  return element;
}

function card(row, number) {
  const title = make("h2", {id: `row-${number}`}, fill(make("a", {href: "#" + new URLSearchParams({pair: row.id}), title: "Link to this pair"}), row.id));
  const head = make("header", {}, title);
  if (row.kind) head.append(make("span", {class: "tag"}, row.kind));
  for (const [name, value] of Object.entries(row.more || {})) head.append(make("span", {class: "detail"}, `${name} `, make("b", {}, String(value))));
  if (row.measured) {
    const {forward_kl: forward, reverse_kl: reverse} = row.measured;
    head.append(make("span", {class: "detail push"}, "KL forward ", make("b", {}, nats(forward)), ", reverse ", make("b", {}, nats(reverse))));
  }
  const element = make("article", {tabindex: -1, "aria-labelledby": `row-${number}`}, head);
  if (row.problem) element.append(fill(make("p", {class: "problem"}, "Not usable: "), row.problem));
  if (row.raw) element.append(fill(make("pre", {}), row.raw));
  else if (row.sides.length) element.append(make("div", {class: "sides"}, makeSide(row, 0), makeSide(row, 1)));
  return element;
}

/* What the measured pairs that are shown come to; every answer token weighs the same, as in `evaluation gap`. */
function showMeans() {
  const measured = shown.map(index => rows[index].measured).filter(Boolean), parts = [];
  const mean = value => {
    const tokens = measured.reduce((sum, one) => sum + one.num_tokens, 0);
    return nats(measured.some(one => value(one) === null) ? null : measured.reduce((sum, one) => sum + value(one) * one.num_tokens, 0) / tokens);
  };
  if (measured.length) {
    parts.push("Mean per answer token: forward KL ", make("b", {}, mean(one => one.forward_kl)), ", reverse KL ", make("b", {}, mean(one => one.reverse_kl)),
      ", loss text-rich ", make("b", {}, mean(one => one.losses[0])), ", vision-rich ", make("b", {}, mean(one => one.losses[1])), ". ");
  }
  const replied = shown.map(index => rows[index]).filter(row => row.rich.length === 2);
  if (replied.length) {
    const share = position => (100 * replied.filter(row => row.rich[position] === "1").length / replied.length).toFixed(1) + " %";
    parts.push("Replies right: text-rich ", make("b", {}, share(0)), ", vision-rich ", make("b", {}, share(1)), ".");
  }
  get("means").replaceChildren(...parts);
}

function render() {
  page = Math.min(Math.max(1, page), pages());
  const start = (page - 1) * PAGE_SIZE, part = shown.slice(start, start + PAGE_SIZE);
  get("list").replaceChildren(...part.map((index, position) => card(rows[index], position)));
  if (!part.length) get("list").append(make("p", {class: "absent"}, "No pair matches these filters."));
  get("count").textContent = `${count(shown.length)} of ${count(rows.length)} pairs, page ${count(page)} of ${count(pages())}`;
  get("page").value = page;
  get("page").max = pages();
  get("previous").disabled = page === 1;
  get("next").disabled = page === pages();
  document.documentElement.style.setProperty("--bar", getComputedStyle(get("bar")).position === "sticky" ? `${get("bar").offsetHeight + 12}px` : "12px");
}

function keepAddress() {
  const state = new URLSearchParams();
  for (const id of FIELDS) if (get(id).value) state.set(id, get(id).value);
  if (page > 1) state.set("page", page);
  const hash = state.toString();
  history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
}

function filter() { select(); showMeans(); page = 1; render(); keepAddress(); }

function focusCard(card) { card.focus({preventScroll: true}); card.scrollIntoView({block: "start"}); }

function goTo(target) {
  page = target;
  render();
  keepAddress();
  get("list").firstElementChild.scrollIntoView({block: "start"});
}

/* Turns the page by a key, which moves the focus into it; buttons keep the focus. */
function turn(step, last = false) {
  if (page + step < 1 || page + step > pages()) return;
  goTo(page + step);
  focusCard(last ? get("list").lastElementChild : get("list").firstElementChild);
}

function move(step) {
  const cards = [...get("list").querySelectorAll("article")], at = cards.indexOf(document.activeElement.closest("article"));
  const target = at === -1 ? 0 : at + step;
  if (target >= 0 && target < cards.length) focusCard(cards[target]);
  else turn(step, step < 0);
}

/* Reads the address: filters and page, or one pair. */
function readAddress() {
  const state = new URLSearchParams(location.hash.slice(1)), pair = rows.findIndex(row => row.id === state.get("pair"));
  for (const id of FIELDS) {
    get(id).value = pair < 0 ? state.get(id) || "" : "";
    if (get(id).selectedIndex === -1) get(id).value = "";  // a choice that this page does not have
  }
  select();
  showMeans();
  page = pair < 0 ? Math.trunc(Number(state.get("page"))) || 1 : Math.floor(pair / PAGE_SIZE) + 1;
  render();
  if (pair >= 0) focusCard(get("list").children[pair % PAGE_SIZE]);
}

function notice(kind, ...content) { get("notices").append(make("p", {class: `notice ${kind}`}, ...content)); }

function setUp() {
  get("title").textContent = document.title = facts.title;
  const parts = [`${count(rows.length)} pairs`, ...(facts.model ? [`model ${facts.model}`] : []), `page of ${facts.page_size}`, `pictures of at most ${facts.thumbnail_size} pixels`];
  get("facts").textContent = parts.join(" · ");
  if (facts.total > rows.length) notice("", `Only the first ${count(rows.length)} of ${count(facts.total)} rows are on this page (--max_pairs).`);
  const broken = rows.filter(row => row.problem).length;
  if (broken) notice("bad", `${count(broken)} ${broken === 1 ? "row" : "rows"} cannot be trained on. `, make("a", {href: "#show=bad"}, "Show with the reasons"));
  const kinds = [...new Set(rows.map(row => row.kind).filter(Boolean))].sort();
  const amounts = Map.groupBy(rows, row => row.kind);
  for (const kind of kinds) get("kind").append(make("option", {value: kind}, `${kind} (${count(amounts.get(kind).length)})`));
  const lengths = rows.map(row => row.length).filter(Boolean), measured = rows.some(row => row.measured), replied = rows.some(row => row.rich);
  get("length-unit").textContent = `Longer side, ${facts.unit}`;
  const range = lengths.length ? lengths.reduce(([low, high], length) => [Math.min(low, length), Math.max(high, length)], [lengths[0], lengths[0]]) : ["", ""];
  [get("min").placeholder, get("max").placeholder] = range;
  const needed = {kind: kinds.length, show: broken, replies: replied};
  for (const id in needed) get(id).parentElement.hidden = !needed[id];
  if (!measured) for (const name of ["forward", "reverse", "gap"]) get("sort").querySelector(`[value=${name}]`).remove();
  get("measured").hidden = !measured && !replied;
  get("legend").hidden = get("figures-label").hidden = !measured;
}

function listen() {
  let waiting;
  get("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); });
  for (const id of FIELDS.slice(1)) get(id).addEventListener("input", filter);
  get("filters").addEventListener("submit", event => event.preventDefault());
  get("filters").addEventListener("reset", () => setTimeout(filter));
  get("previous").addEventListener("click", () => goTo(page - 1));
  get("next").addEventListener("click", () => goTo(page + 1));
  get("page").addEventListener("change", () => goTo(Math.trunc(Number(get("page").value)) || 1));
  get("figures").addEventListener("change", () => get("list").classList.toggle("figures", get("figures").checked));
  get("close").addEventListener("click", () => get("viewer").close());
  window.addEventListener("hashchange", readAddress);
  const keys = {j: () => move(1), k: () => move(-1), ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), "/": () => get("search").focus()};
  document.addEventListener("keydown", event => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing && event.key === "Escape") event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || get("viewer").open || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}

setUp();
listen();
readAddress();
