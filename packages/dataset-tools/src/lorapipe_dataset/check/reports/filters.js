"use strict";
// The filters at the side, of the report and of the editor alike. `show()` is theirs: it draws what was chosen.
const data = /*DATA*/null;
const MOST_TAGS = 400;
const state = { tags: new Set(), without: new Set(), rule: null, concept: null, mark: null };
const $ = id => document.getElementById(id);
// Captions come from anywhere: whatever is shown is set as text and never as markup.
const make = (name, text, attributes = {}) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const sets = []; // the tags of each picture
let tagRows = data.tags; // each tag and how many pictures have it, the commonest first
let findings = []; // of each picture

function placeFindings() {
  findings = data.pictures.map(() => []);
  for (const rule of data.rules)
    for (const one of rule.cases) for (const index of one.pictures) findings[index].push([rule, one.text]);
}

function chosen() {
  const rule = data.rules.find(rule => rule.id === state.rule);
  const order = rule ? [...new Set(rule.cases.flatMap(one => one.pictures))] : data.pictures.map((_, index) => index);
  return order.filter(index => {
    if (state.concept !== null && data.pictures[index].concept !== state.concept) return false;
    for (const tag of state.tags) if (!sets[index].has(tag)) return false;
    for (const tag of state.without) if (sets[index].has(tag)) return false;
    return true;
  });
}

function choice(box, label, count, pressed, act, severity) {
  const button = make("button", undefined, { type: "button", "aria-pressed": String(pressed) });
  if (severity) button.className = severity;
  button.append(make("span", label), make("span", String(count), { class: "count" }));
  button.addEventListener("click", act);
  box.append(button);
  return button;
}

// The lists are drawn anew: whoever pressed a key there goes on from the same line.
function keepPlace(work) {
  const box = document.activeElement?.closest("nav div[id]");
  const place = box ? [...box.children].indexOf(document.activeElement) : -1;
  work();
  if (place >= 0) box.children[Math.min(place, box.children.length - 1)]?.focus({ preventScroll: true });
}

function change(edit) {
  keepPlace(() => {
    edit();
    save();
    renderSide();
    show();
  });
}

function toggleTag(tag, without) {
  change(() => {
    const [here, there] = without ? [state.without, state.tags] : [state.tags, state.without];
    there.delete(tag);
    if (!here.delete(tag)) here.add(tag);
  });
}

function clearFilters() {
  state.tags.clear();
  state.without.clear();
  state.rule = state.concept = state.mark = null;
}

function filterWords() {
  const words = [...state.tags, ...[...state.without].map(tag => `not ${tag}`)];
  if (state.concept !== null) words.push(state.concept);
  if (state.rule) words.push(state.rule);
  return words;
}

function renderSide() {
  for (const id of ["rules", "concepts"]) $(id).replaceChildren();
  for (const rule of data.rules) {
    const button = choice($("rules"), rule.id, rule.cases.length, state.rule === rule.id,
      () => change(() => { state.rule = state.rule === rule.id ? null : rule.id; }), rule.severity);
    button.title = rule.title;
    button.dataset.rule = rule.id;
  }
  if (!data.rules.length) $("rules").append(make("p", "nothing found"));
  for (const row of data.concepts)
    choice($("concepts"), row.concept, row.images + (row.repeats.length ? ` × ${row.repeats.join("/")}` : ""), state.concept === row.concept,
      () => change(() => { state.concept = state.concept === row.concept ? null : row.concept; }));
  renderTags();
}

// People write long_hair and long hair for the same.
const plain = text => text.toLowerCase().replaceAll("_", " ");

function renderTags() {
  const wanted = plain($("search").value.trim());
  $("tag-count").textContent = String(tagRows.length);
  const known = new Set(tagRows.map(([tag]) => tag));
  // A filter by a tag that was edited away can still be taken off.
  const lost = [...state.tags, ...state.without].filter(tag => !known.has(tag)).map(tag => [tag, 0]);
  const buttons = [];
  let left = MOST_TAGS;
  for (const [tag, count] of [...lost, ...tagRows]) {
    const on = state.tags.has(tag), off = state.without.has(tag);
    if (!(on || off || plain(tag).includes(wanted)) || left-- <= 0) continue;
    if (!tagButtons.has(tag)) tagButtons.set(tag, tagButton(tag));
    const button = tagButtons.get(tag), [word, number] = button.children, label = off ? `not ${tag}` : tag;
    if (word.textContent !== label) word.textContent = label;
    if (number.textContent !== String(count)) number.textContent = count;
    button.setAttribute("aria-pressed", String(on || off));
    buttons.push(button);
  }
  const now = $("tags").children;
  if (now.length !== buttons.length || buttons.some((button, place) => button !== now[place])) $("tags").replaceChildren(...buttons);
}

// Hundreds of them are made once and not with every click.
const tagButtons = new Map();

function tagButton(tag) {
  const button = choice($("tags"), tag, "", false, event => toggleTag(tag, event.shiftKey || event.altKey));
  button.title = "click: pictures with it; shift-click: without it";
  button.dataset.tag = tag;
  return button;
}

function renderCase() {
  const rule = data.rules.find(rule => rule.id === state.rule);
  $("case").hidden = !rule;
  if (!rule) return;
  const list = make("ul");
  for (const one of rule.cases.slice(0, 500)) {
    const names = one.files.length ? one.files : one.pictures.slice(0, 1).map(index => data.pictures[index].path);
    list.append(make("li", [...names, one.text].join(": ")));
  }
  $("case").replaceChildren(make("p", rule.title), make("p", `To mend it: ${rule.fix}`), list);
}

function renderStill() {
  $("title").textContent = data.title;
  document.title = `lora-check: ${data.title}`;
  $("summary").textContent = data.summary;
  const rows = make("table"), head = make("tr");
  head.append(...["bucket", "images", "epoch", "cut"].map(word => make("th", word)));
  rows.append(head);
  for (const row of data.buckets.buckets) {
    const line = make("tr");
    line.append(...[row.bucket.join("×"), row.pictures, row.shown, `${(100 * row.loss).toFixed(1)} %`].map(cell => make("td", String(cell))));
    rows.append(line);
  }
  const shapes = Object.entries(data.buckets.orientation).map(([name, share]) => `${name} ${Math.round(100 * share)} %`);
  $("buckets").append(rows, make("p", shapes.join(", ")));
  $("skipped-title").hidden = !data.skipped.length;
  const reasons = new Map();
  for (const [rule, why] of data.skipped) reasons.set(why, [...(reasons.get(why) ?? []), rule]);
  for (const [why, rules] of reasons) $("skipped").append(make("p", `${rules.join(", ")}: ${why}`));
}

// The address holds the filters, so that a view can be kept or sent.
function save() {
  const parts = new URLSearchParams();
  for (const tag of state.tags) parts.append("tag", tag);
  for (const tag of state.without) parts.append("not", tag);
  if (state.rule) parts.set("rule", state.rule);
  if (state.concept !== null) parts.set("concept", state.concept);
  history.replaceState(null, "", `#${parts}`);
}

function load() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const known = new Set(tagRows.map(([tag]) => tag));
  const read = name => new Set(parts.getAll(name).filter(tag => known.has(tag)));
  state.tags = read("tag");
  state.without = read("not");
  state.rule = data.rules.some(rule => rule.id === parts.get("rule")) ? parts.get("rule") : null;
  state.concept = data.concepts.some(row => row.concept === parts.get("concept")) ? parts.get("concept") : null;
}

$("search").addEventListener("input", renderTags);
$("clear").addEventListener("click", () => change(clearFilters));
window.addEventListener("hashchange", () => { load(); renderSide(); show(); });
