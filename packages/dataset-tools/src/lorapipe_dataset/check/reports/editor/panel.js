// The side where the selection is edited: what is common to one picture and many.
const MOST_ROWS = 100;
const FULL_AFTER = 150; // milliseconds until the whole picture is asked for, so that arrow keys fly past
const manyMade = new Map(); // a tag -> its row among those of a selection
let manyRows = []; // the tags that were shown last
let rowAt = null, rowRename = null, manyLimit = MOST_ROWS, lookAt = -1, fullTimer = 0;

const only = () => (selected.size === 1 ? selected.values().next().value : -1);

function renderPanel() {
  const one = only(), number = selected.size;
  if (one < 0 || pending?.index !== one) flushOrder();
  $("help").hidden = number > 0;
  $("work").hidden = number === 0;
  $("which").textContent = one >= 0 ? nameOf(data.pictures[one]) : number ? `${many(number, "picture")} selected` : "Nothing selected";
  $("which").title = one >= 0 ? data.pictures[one].path : "";
  $("out").hidden = $("none").hidden = number === 0;
  const out = number > 0 && [...selected].every(index => data.pictures[index].out);
  $("out").textContent = out ? "Take in again" : "Leave out";
  $("out").setAttribute("aria-pressed", String(out));
  document.body.classList.toggle("selecting", number > 0);
  for (const id of ["one", "text-box", "look"]) $(id).hidden = one < 0;
  $("found-box").hidden = one < 0 || !findings[one].length;
  $("many").hidden = number < 2;
  renderCaption(one);
  if (number > 1) renderMany();
  if (one >= 0) { renderChips(one); renderLook(one); }
  renderHints();
}

function renderLook(index) {
  const one = data.pictures[index];
  $("facts").textContent = [one.size && one.size.join("×"), one.concept, one.version === null ? "no caption file" : one.trouble ? `its caption cannot be read: ${one.trouble}` : many(tagsOf(one).length, "tag")].filter(Boolean).join(", ");
  $("tags-of").textContent = (one.caption ?? "").includes("\n") ? "Tags of the first line" : "Tags";
  $("found").replaceChildren(...findings[index].map(([rule, text]) => {
    const row = make("li", undefined, { class: rule.severity, title: rule.fix });
    row.append(make("span", `${rule.id}: ${text}`));
    return row;
  }));
  if (lookAt === index) return;
  lookAt = index;
  $("picture").href = one.link;
  $("picture").setAttribute("aria-label", `Open ${nameOf(one)}`);
  $("large").src = one.image ?? one.link;
  clearTimeout(fullTimer);
  if (!one.image) return;
  fullTimer = setTimeout(() => {
    const whole = new Image();
    whole.onload = () => { if (lookAt === index) $("large").src = whole.src; };
    whole.src = one.link;
  }, FULL_AFTER);
}

// Many pictures: each tag with the number that have it -------------------------------------------

function tagsOfSelection() {
  const found = new Map();
  for (const index of selected)
    for (const key of sets[index]) found.set(key, (found.get(key) ?? 0) + 1);
  return [...found].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
}

const ROW_ACTS = [
  ["all", "+", "Add to all of the selection (+)"], ["first", "⇤", "To the front (Alt+Home)"], ["last", "⇥", "To the end (Alt+End)"],
  ["rename", "✎", "Rename (F2)"], ["remove", "×", "Remove (Delete)"],
];

const share = number => (number === selected.size ? "all" : `${number.toLocaleString("en")} of ${selected.size.toLocaleString("en")}`);

function renderMany() {
  const found = tagsOfSelection(), list = $("selection-tags"), inside = list.contains(document.activeElement);
  if (rowRename && found.some(([key]) => key === rowRename) && list.querySelector("input")) return renderManyCounts(found);
  if (!found.some(([key]) => key === rowAt)) rowAt = nextRow(found);
  rowRename = null;
  const made = found.slice(0, manyLimit).map(([key, number]) => {
    let row = manyMade.get(key);
    if (!row || row.classList.contains("renaming")) manyMade.set(key, row = manyRow(key));
    return fillRow(row, key, number);
  });
  // Rows that stay are not made anew: a click on one of them meanwhile is not lost.
  if (list.children.length !== made.length || made.some((row, place) => row !== list.children[place])) list.replaceChildren(...made);
  if (found.length > manyLimit) {
    const more = make("button", `Show ${(found.length - manyLimit).toLocaleString("en")} more`, { type: "button" });
    more.addEventListener("click", () => { manyLimit = Infinity; renderMany(); });
    const row = make("li", undefined, { class: "more" });
    row.append(more);
    list.append(row);
  }
  manyRows = found;
  $("many-count").textContent = found.length.toLocaleString("en");
  if (inside) list.querySelector(`[tabindex="0"]`)?.focus({ preventScroll: true });
}

// A tag that went away hands its place on to the one that stood below it.
function nextRow(found) {
  const was = manyRows.findIndex(([key]) => key === rowAt);
  return (found[Math.min(Math.max(was, 0), found.length - 1)] ?? [null])[0];
}

function renderManyCounts(found) {
  const numbers = new Map(found);
  for (const row of $("selection-tags").children)
    if (row.dataset.tag && row.dataset.tag !== rowRename) row.querySelector(".count").textContent = share(numbers.get(row.dataset.tag) ?? 0);
}

function manyRow(key) {
  const row = make("li", undefined, { "data-tag": key });
  row.append(make("button", key, { type: "button", class: "word", title: "Click: show pictures with it", "data-act": "show" }), make("span", "", { class: "count" }));
  for (const [act, sign, name] of ROW_ACTS)
    row.append(make("button", sign, { type: "button", class: "sign", tabindex: "-1", "data-act": act, "aria-label": `${name}: ${key}`, title: name }));
  return row;
}

function fillRow(row, key, number) {
  row.querySelector(".word").tabIndex = key === rowAt ? 0 : -1;
  row.querySelector(".count").textContent = share(number);
  const toAll = row.querySelector('[data-act="all"]');
  toAll.disabled = number === selected.size;
  toAll.classList.toggle("void", toAll.disabled);
  return row;
}

function actOnRow(act, row) {
  const key = row.dataset.tag, raw = written.get(key) ?? key;
  rowAt = key;
  if (act === "all") addTags([raw], $("where").value);
  else if (act === "first") moveTag(raw, "front");
  else if (act === "last") moveTag(raw, "end");
  else if (act === "remove") removeTag(raw);
  else if (act === "show") change(() => { clearFilters(); state.tags.add(key); });
  else if (act === "rename") {
    rowRename = key;
    renameIn(row, raw, to => renameTag(raw, to), () => { rowRename = null; renderMany(); focusRow(); });
  }
}

const focusRow = () => $("selection-tags").querySelector('[tabindex="0"]')?.focus({ preventScroll: true });

// A field in place of a tag. Enter renames, Escape leaves it; nothing happens by going elsewhere.
function renameIn(box, tag, rename, leave) {
  const input = make("input", undefined, { "aria-label": `New name of ${tag}`, autocomplete: "off", spellcheck: "false", class: "new-name" });
  const holder = make("div", undefined, { class: "combo" });
  input.value = tag;
  holder.append(input);
  box.replaceChildren(holder);
  box.classList.add("renaming");
  complete(input, async to => {
    if (to === tag) { leave(); return true; }
    if (!await rename(to)) return false;
    leave();
    return true;
  });
  input.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    leave();
  });
  input.focus();
  input.select();
}

$("selection-tags").addEventListener("click", event => {
  const act = event.target.closest("[data-act]")?.dataset.act;
  if (act) actOnRow(act, event.target.closest("li"));
});
$("selection-tags").addEventListener("keydown", event => {
  const row = event.target.closest("li[data-tag]");
  if (!row || event.target.matches("input") || event.ctrlKey || event.metaKey) return;
  const inside = [...row.querySelectorAll("button:not(:disabled)")], at = inside.indexOf(event.target);
  const act = event.altKey ? { Home: "first", End: "last" }[event.key] : { Delete: "remove", Backspace: "remove", F2: "rename", r: "rename", "+": "all" }[event.key];
  if (act) actOnRow(act, row);
  else if (event.altKey) return;
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling;
    if (next?.dataset.tag) {
      rowAt = next.dataset.tag;
      row.querySelector(".word").tabIndex = -1;
      next.querySelector(".word").tabIndex = 0;
      next.querySelector(".word").focus();
    } else next?.querySelector("button").focus();
  } else if (event.key === "ArrowRight" || event.key === "ArrowLeft")
    inside[Math.max(0, Math.min(inside.length - 1, at + (event.key === "ArrowRight" ? 1 : -1)))].focus();
  else return;
  event.preventDefault();
  event.stopPropagation();
});

// Hints -------------------------------------------------------------------------------------------

function renderHints() {
  const found = new Map();
  for (const index of selected)
    for (const hint of data.pictures[index].hints ?? []) {
      const tag = Array.isArray(hint) ? hint[0] : hint, key = keyOf(tag);
      if (sets[index].has(key)) continue;
      if (!found.has(key)) found.set(key, [tag, []]);
      found.get(key)[1].push(index);
    }
  $("hints-box").hidden = !found.size;
  const inside = $("hints").contains(document.activeElement), at = [...$("hints").children].indexOf(document.activeElement);
  const order = [...found.values()].sort((one, other) => other[1].length - one[1].length).slice(0, MOST_ROWS);
  $("hints").replaceChildren(...order.map(([tag, indexes]) => {
    const button = make("button", `+ ${tag}`, { type: "button", class: "hint", "data-hint": tag });
    if (selected.size > 1) button.append(make("span", indexes.length.toLocaleString("en"), { class: "count" }));
    button.setAttribute("aria-label", `Add ${tag}${selected.size > 1 ? ` to ${many(indexes.length, "picture")}` : ""}`);
    // Only the pictures that the tagger saw it on get it.
    button.addEventListener("click", () => addTags([styled(keyOf(tag))], $("where").value, indexes));
    return button;
  }));
  if (inside) $("hints").children[Math.min(at, $("hints").children.length - 1)]?.focus({ preventScroll: true });
}

$("out").addEventListener("click", () => leaveOut($("out").getAttribute("aria-pressed") !== "true"));
$("none").addEventListener("click", () => { selected.clear(); selectionChanged(); $("grid").focus({ preventScroll: true }); });
complete($("add"), text => addTags(text.split(",").map(tag => tag.trim()).filter(Boolean), $("where").value));
