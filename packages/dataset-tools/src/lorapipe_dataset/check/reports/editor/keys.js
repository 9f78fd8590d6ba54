// Keys, the line that tells what happened, and the start.
const KEYS = [
  ["Pictures", [
    ["← → ↑ ↓", "go from picture to picture; with Shift select on the way, with Ctrl go only"],
    ["Space", "select or leave the picture"], ["Enter", "add tags to the selection"], ["Ctrl+A", "select all shown"], ["Esc", "clear the selection"],
    ["Alt+Page ↓, Alt+Page ↑", "next and previous picture, from any field"], ["x", "leave the selection out of training, or take it in again"],
  ]],
  ["Go to", [
    ["a", "add tags"], ["t", "tags of the selection"], ["e", "the caption as text"], ["/", "find a tag to filter by; ↓ ↑ go through the filters, Enter takes one"], ["g", "the pictures"],
  ]],
  ["A tag", [
    ["← →", "the tag before and behind"], ["Alt+← Alt+→", "move it"], ["Alt+Home, Alt+End", "to the front, to the end"],
    ["F2 or r", "rename"], ["Delete", "remove"], ["+", "of a selection: add it to all"],
  ]],
  ["Fields", [
    ["Enter", "take what was typed; after ↓ what is chosen"], ["↓ ↑", "choose from the list"], ["Esc", "close the list, then leave the field"],
    ["Ctrl+Enter", "save the caption (leaving the field does too)"],
  ]],
  ["Anywhere", [["Ctrl+Z", "undo"], ["Ctrl+Shift+Z, Ctrl+Y", "redo"], ["?", "these keys"]]],
];

function renderKeys() {
  const close = make("button", "Close", { type: "button" });
  close.addEventListener("click", () => $("keys").close());
  const top = make("div", undefined, { class: "row" });
  top.append(make("h2", "Keys", { id: "keys-title" }), close);
  const body = make("div", undefined, { class: "key-groups" });
  for (const [title, rows] of KEYS) {
    const group = make("section"), list = make("dl");
    for (const [key, what] of rows) list.append(make("dt", key), make("dd", what));
    group.append(make("h3", title), list);
    body.append(group);
  }
  $("keys").append(top, body);
}

// What happened -----------------------------------------------------------------------------------

let lineTimer = 0;

function tell(text, { grave = false, pictures = [] } = {}) {
  clearTimeout(lineTimer);
  $("line-text").textContent = text;
  $("line-text").title = text;
  $("line").className = grave ? "grave" : "";
  $("line-act").hidden = !pictures.length;
  $("line-act").textContent = pictures.length === 1 ? "Show it" : "Show them";
  $("line-act").onclick = () => selectThese(pictures);
  $("line-close").hidden = false;
  // What went wrong stays until it is read.
  if (!grave) lineTimer = setTimeout(clearLine, 10000);
}

function clearLine() {
  $("line-text").textContent = "";
  $("line-act").hidden = $("line-close").hidden = true;
  $("line").className = "";
}

function renderState() {
  const left = drafts.size - savings.size, state = $("state");
  state.className = connected ? "" : "lost";
  state.textContent = !connected ? `No connection${left > 0 ? `: ${many(left, "text")} kept here` : ""}`
    : waiting || pending ? "saving…" : left > 0 ? `${many(left, "text")} not saved` : "all saved";
  document.body.classList.toggle("offline", !connected);
  $("undo").disabled = !undoable && !pending;
  $("redo").disabled = !redoable;
  $("undo-what").textContent = pending ? "order of tags" : undoable ? undoable.label : "";
  $("undo").title = undoable ? `Undo: ${undoable.label} (Ctrl+Z)` : "Nothing to undo";
  $("redo").title = redoable ? `Redo: ${redoable.label ?? ""} (Ctrl+Shift+Z)` : "Nothing to redo";
}

// Nothing is left half done before a step back is taken.
async function settle() {
  const text = captionOf >= 0 && drafts.has(captionOf) ? saveText(captionOf) : null;
  await flushOrder();
  await text;
}

// Keys --------------------------------------------------------------------------------------------

const isField = element => element?.matches?.("input, textarea, select");
// Whether a field has typing of its own that the browser's undo takes back.
const hasTyping = field => (field.id === "caption" ? drafts.has(captionOf) : field.matches("input, textarea") && field.value !== "");

function unfold(open) {
  document.body.classList.toggle("folded", !open);
  $("fold").setAttribute("aria-expanded", String(open));
}

function focusTags() {
  unfold(true);
  if (only() >= 0) focusChip();
  else focusRow();
}

function focusField(id) {
  if (id !== "search" && !selected.size) return;
  if (id === "search") openFilters(true);
  else unfold(true);
  $(id).focus();
}

function openFilters(open) {
  document.body.classList.toggle("filtering", open);
  $("show-filters").setAttribute("aria-expanded", String(open));
}

const SINGLE = {
  "/": () => focusField("search"), a: () => focusField("add"), t: focusTags, g: () => $("grid").focus({ preventScroll: true }),
  e: () => only() >= 0 && focusField("caption"), x: () => selected.size && $("out").click(), "?": () => $("keys").showModal(),
  Escape: () => { selected.clear(); selectionChanged(); },
};

function step(by) {
  if (!rows.length) return;
  const field = document.activeElement;
  go(cursor < 0 ? 0 : cursor + by);
  if (isField(field) && field.isConnected) field.focus();
}

document.addEventListener("keydown", event => {
  if (event.defaultPrevented || event.isComposing || $("keys").open) return;
  const command = event.ctrlKey || event.metaKey, field = isField(event.target) ? event.target : null, key = event.key.toLowerCase();
  if (command && !event.altKey && (key === "z" || key === "y")) {
    if (field && hasTyping(field)) return;
    if (key === "y" || event.shiftKey) redo();
    else undo();
  } else if (command && key === "enter" && field?.id === "caption") saveText(captionOf);
  else if (event.altKey && !command && (event.key === "PageDown" || event.key === "PageUp")) {
    if (field?.id === "caption") saveText(captionOf);
    step(event.key === "PageDown" ? 1 : -1);
  } else if (field) {
    if (event.key !== "Escape") return;
    // A field that is left keeps what was typed; a caption is saved.
    field.blur();
    openFilters(false);
    $("grid").focus({ preventScroll: true });
  } else if (command && key === "a") selectAll();
  else if (!command && !event.altKey && SINGLE[event.key]) SINGLE[event.key]();
  else return;
  event.preventDefault();
});

$("side").addEventListener("keydown", event => {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const all = [...$("side").querySelectorAll("input, div[id] > button")], from = all.indexOf(event.target);
  // From the field, down into the tags that were found.
  const to = from === 0 ? all.indexOf($("tags").querySelector("button")) : from + (event.key === "ArrowDown" ? 1 : -1);
  all[to]?.focus();
  event.preventDefault();
});
$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", redo);
$("show-keys").addEventListener("click", () => $("keys").showModal());
$("keys").addEventListener("click", event => { if (event.target === $("keys")) $("keys").close(); });
$("show-filters").addEventListener("click", () => openFilters(!document.body.classList.contains("filtering")));
$("fold").addEventListener("click", () => unfold(document.body.classList.contains("folded")));
$("line-close").addEventListener("click", clearLine);
window.addEventListener("beforeunload", event => { if (drafts.size) event.preventDefault(); });
window.addEventListener("pagehide", () => {
  if (!pending || pending.sent) return;
  const id = data.pictures[pending.index].id, body = { action: "order", ids: [id], versions: { [id]: pending.version }, tags: pending.tags };
  fetch("api/edit", { method: "POST", keepalive: true, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
});

renderKeys();
renderStill();
load();
renderSide();
show();
renderState();
poll();
