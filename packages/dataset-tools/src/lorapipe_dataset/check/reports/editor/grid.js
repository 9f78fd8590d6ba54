// The pictures that are shown. Only what is in sight has elements: thousands scroll as quickly as ten.
const SIZES = [[164, 234], [128, 190]]; // a tile's least width and its height in pixels, as in editor.css; on a narrow screen
const NARROW = matchMedia("(max-width: 700px)");
const GAP = 10;
const SPARE = 2; // rows drawn above and below what is in sight
const REST = 80; // milliseconds that a tile is there before its picture is asked for
let rows = []; // indexes of the pictures shown, in order
let places = new Map(); // picture -> its place in rows
let cursor = -1, anchor = -1; // places
let columns = 1, tileWidth = 0, high = SIZES[0][1];
const tiles = new Map(); // picture -> element
const spare = [];
let fresh = new Set(), loading = 0;

const MARKS = {
  "no caption": index => data.pictures[index].caption === null || data.pictures[index].caption === "",
  "left out": index => Boolean(data.pictures[index].out),
  "not saved": index => drafts.has(index),
};

const wanted = () => chosen().filter(index => !data.pictures[index].gone && (!state.mark || MARKS[state.mark](index)));

// The filters were changed: other pictures are shown. What is no longer in sight is not edited either.
function show() {
  rows = wanted();
  places = new Map(rows.map((index, place) => [index, place]));
  for (const index of selected) if (!places.has(index)) selected.delete(index);
  cursor = anchor = rows.findIndex(index => selected.has(index));
  $("grid").scrollTop = 0;
  renderMarks();
  renderWhat();
  layOut();
  if (cursor >= 0) reveal(cursor);
  renderPanel();
}

// Pictures were changed: they stay where they are until the filters are used again.
function refresh() {
  sortTags();
  keepPlace(() => { renderSide(); renderMarks(); });
  for (const [index, tile] of tiles) fill(tile, index);
  renderWhat();
  renderPanel();
  renderState();
}

function renderWhat() {
  const words = filterWords(), now = wanted();
  if (state.mark) words.unshift(state.mark);
  const total = data.pictures.filter(picture => !picture.gone).length;
  $("shown").textContent = rows.length === total ? many(total, "picture") : `${rows.length.toLocaleString("en")} of ${many(total, "picture")}`;
  $("filters").textContent = words.join(" + ");
  $("filters").title = words.join(" + ");
  $("clear").hidden = !words.length;
  const still = new Set(now), lost = rows.filter(index => !still.has(index)).length, more = now.filter(index => !places.has(index)).length;
  $("again").hidden = !lost && !more;
  $("again").textContent = [lost && `${lost} no longer match`, more && `${more} more match`].filter(Boolean).join(", ") + ": filter again";
  $("all").disabled = !rows.length;
  renderAbout();
}

function renderMarks() {
  $("marks").replaceChildren();
  for (const [name, test] of Object.entries(MARKS)) {
    const number = data.pictures.filter((one, index) => !one.gone && test(index)).length;
    if (number || state.mark === name)
      choice($("marks"), name, number, state.mark === name, () => change(() => { state.mark = state.mark === name ? null : name; })).dataset.mark = name;
  }
  $("marks").previousElementSibling.hidden = !$("marks").children.length;
}

function renderAbout() {
  const rule = data.rules.find(one => one.id === state.rule);
  $("about").hidden = !rule;
  if (rule) $("about-rule").textContent = `${rule.title} (${many(rule.cases.length, "case")})`;
  if (rule && $("about").open) renderCase();
}

function layOut() {
  const wide = $("grid").clientWidth - 2 * GAP, [least, height] = SIZES[Number(NARROW.matches)];
  high = height;
  columns = Math.max(1, Math.floor((wide + GAP) / (least + GAP)));
  tileWidth = (wide - GAP * (columns - 1)) / columns;
  $("sheet").style.height = `${Math.ceil(rows.length / columns) * (high + GAP) + GAP}px`;
  for (const [index, tile] of tiles) drop(index, tile);
  draw();
}

function draw() {
  const top = $("grid").scrollTop, view = $("grid").clientHeight, step = high + GAP;
  const from = Math.max(0, Math.floor(top / step) - SPARE) * columns;
  const to = Math.min(rows.length, (Math.ceil((top + view) / step) + SPARE) * columns);
  const due = new Set(rows.slice(from, to));
  if (places.get(rows[cursor]) !== undefined) due.add(rows[cursor]);
  for (const [index, tile] of tiles) if (!due.has(index)) drop(index, tile);
  for (const index of due) {
    if (tiles.has(index)) continue;
    const tile = spare.pop() ?? newTile();
    tiles.set(index, tile);
    const place = places.get(index);
    tile.style.transform = `translate(${GAP + (place % columns) * (tileWidth + GAP)}px, ${GAP + Math.floor(place / columns) * step}px)`;
    tile.style.width = `${tileWidth}px`;
    tile.setAttribute("aria-posinset", place + 1);
    tile.setAttribute("aria-setsize", rows.length);
    fill(tile, index);
    $("sheet").append(tile);
    fresh.add(index);
  }
  // A picture that flies past is not asked for.
  if (fresh.size && !loading) loading = setTimeout(loadFresh, REST);
}

function loadFresh() {
  loading = 0;
  for (const index of fresh) {
    const tile = tiles.get(index), source = data.pictures[index].image;
    if (tile && source) tile.picture.src = source;
  }
  fresh = new Set();
}

function drop(index, tile) {
  tiles.delete(index);
  fresh.delete(index);
  tile.picture.removeAttribute("src");
  tile.remove();
  spare.push(tile);
}

function newTile() {
  const tile = make("div", undefined, { role: "option", class: "tile" });
  tile.picture = make("img", undefined, { alt: "", decoding: "async", draggable: "false" });
  tile.tick = make("span", undefined, { class: "tick", "aria-hidden": "true" });
  tile.flag = make("span", undefined, { class: "flag" });
  tile.name = make("b");
  tile.text = make("span", undefined, { class: "text" });
  const frame = make("div", undefined, { class: "frame" }), words = make("div", undefined, { class: "words" });
  frame.append(tile.picture);
  words.append(tile.name, tile.text);
  tile.append(frame, words, tile.flag, tile.tick);
  tile.picture.addEventListener("error", () => { tile.picture.removeAttribute("src"); tile.classList.add("blank"); });
  return tile;
}

function fill(tile, index) {
  const one = data.pictures[index], worst = data.severities.find(severity => findings[index].some(([rule]) => rule.severity === severity));
  tile.id = `tile-${index}`;
  tile.dataset.index = index;
  tile.dataset.path = one.path;
  if (tile.picture.hasAttribute("src") && tile.picture.getAttribute("src") !== one.image) tile.picture.src = one.image;
  tile.name.textContent = nameOf(one);
  tile.text.textContent = one.caption || "no caption";
  const flags = [one.gone && "gone", one.out && "left out", drafts.has(index) && "not saved"].filter(Boolean);
  tile.flag.textContent = flags.join(", ");
  tile.className = `tile${worst ? ` has ${worst}` : ""}${one.out || one.gone ? " aside" : ""}${one.caption ? "" : " bare"}${one.image ? "" : " blank"}`;
  tile.title = findings[index].map(([rule, text]) => `${rule.id}: ${text}`).join("\n");
  tile.setAttribute("aria-label", [nameOf(one), one.caption || "no caption", ...flags, worst && many(findings[index].length, "finding")].filter(Boolean).join(", "));
  paint(tile, index);
}

function paint(tile, index) {
  tile.setAttribute("aria-selected", String(selected.has(index)));
  tile.classList.toggle("at", rows[cursor] === index);
}

// Selecting ---------------------------------------------------------------------------------------

function selectionChanged() {
  for (const [index, tile] of tiles) paint(tile, index);
  const at = rows[cursor];
  if (at !== undefined && tiles.has(at)) $("grid").setAttribute("aria-activedescendant", `tile-${at}`);
  else $("grid").removeAttribute("aria-activedescendant");
  renderPanel();
}

function selectOnly(place) {
  selected.clear();
  if (place >= 0) selected.add(rows[place]);
  cursor = anchor = place;
  selectionChanged();
}

function toggle(place) {
  const index = rows[place];
  if (!selected.delete(index)) selected.add(index);
  cursor = anchor = place;
  selectionChanged();
}

function selectTo(place, add) {
  if (!add) selected.clear();
  const from = anchor < 0 ? place : anchor;
  for (let each = Math.min(from, place); each <= Math.max(from, place); each++) selected.add(rows[each]);
  cursor = place;
  anchor = from;
  selectionChanged();
}

function selectAll() {
  for (const index of rows) selected.add(index);
  selectionChanged();
}

function selectThese(indexes) {
  if (indexes.some(index => !places.has(index))) { clearFilters(); save(); renderSide(); show(); }
  selected.clear();
  for (const index of indexes) if (places.has(index)) selected.add(index);
  cursor = anchor = Math.max(-1, Math.min(...indexes.map(index => places.get(index) ?? Infinity)));
  if (!Number.isFinite(cursor)) cursor = anchor = -1;
  if (cursor >= 0) reveal(cursor);
  selectionChanged();
}

function reveal(place) {
  const step = high + GAP, top = Math.floor(place / columns) * step, grid = $("grid");
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + step + GAP > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + step + GAP - grid.clientHeight;
  draw();
}

function go(place, event = {}) {
  if (!rows.length) return;
  const to = Math.max(0, Math.min(rows.length - 1, place));
  if (event.shiftKey) selectTo(to);
  else if (event.ctrlKey || event.metaKey) { cursor = to; selectionChanged(); }
  else selectOnly(to);
  reveal(to);
  selectionChanged();
}

$("grid").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
$("grid").addEventListener("click", event => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  const place = places.get(Number(tile.dataset.index));
  if (event.shiftKey) selectTo(place, event.ctrlKey || event.metaKey);
  else if (event.ctrlKey || event.metaKey || event.target.classList.contains("tick")) toggle(place);
  else { selectOnly(place); unfold(true); }
});
$("grid").addEventListener("keydown", event => {
  const page = Math.max(1, Math.floor($("grid").clientHeight / (high + GAP))) * columns;
  const to = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, ArrowUp: cursor - columns, ArrowDown: cursor < 0 ? 0 : cursor + columns,
    PageUp: cursor - page, PageDown: cursor + page, Home: 0, End: rows.length - 1 }[event.key];
  if (to !== undefined && !event.altKey) go(to < 0 && event.key === "ArrowUp" ? Math.max(0, cursor) : to, event);
  else if (event.key === " " && cursor >= 0) toggle(cursor);
  else if (event.key === "Enter") focusField("add");
  else return;
  event.preventDefault();
});
$("about").addEventListener("toggle", renderAbout);
$("again").addEventListener("click", show);
$("all").addEventListener("click", selectAll);
new ResizeObserver(() => { const keep = cursor >= 0 && selected.has(rows[cursor]); layOut(); if (keep) reveal(cursor); }).observe($("grid"));
