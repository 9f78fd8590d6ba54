// The tags of one picture, in their order: moved, renamed and removed one by one.
const ORDER_REST = 500; // milliseconds without a move until the order is saved: many steps are one edit
let pending = null; // the order that is not saved yet
let chipAt = 0, chipsOf = -1, chipRename = false, dragged = -1;

const chipTags = index => (pending?.index === index ? pending.tags : data.pictures[index].tags ?? []);

function renderChips(index) {
  const list = $("chips"), inside = list.contains(document.activeElement);
  // A name that is being typed is not swept away by what happens elsewhere.
  if (chipRename && chipsOf === index && list.querySelector("input")) return;
  if (chipsOf !== index) chipAt = 0;
  chipsOf = index;
  chipRename = false;
  const tags = chipTags(index);
  chipAt = Math.max(0, Math.min(chipAt, tags.length - 1));
  list.replaceChildren(...tags.map(chip));
  if (!tags.length) list.append(make("li", data.pictures[index].caption === null ? "no caption file yet" : "no tags", { class: "empty" }));
  $("chip-acts").classList.toggle("void", !tags.length);
  if (inside) focusChip();
}

function chip(tag, place) {
  const isCut = tag === CUT;
  const item = make("li", undefined, { class: `chip${isCut ? " cut" : ""}`, draggable: "true" });
  item.dataset.place = place;
  item.dataset.chip = tag;
  const word = make("button", tag, { type: "button", class: "word", tabindex: place === chipAt ? "0" : "-1" });
  word.setAttribute("aria-label", `${tag}, ${place + 1} of ${chipTags(chipsOf).length}`);
  if (isCut) word.title = "Tags before it are never shuffled";
  item.append(word);
  if (!isCut) item.append(make("button", "×", { type: "button", class: "sign", tabindex: "-1", "aria-label": `Remove ${tag}`, title: "Remove (Delete)" }));
  if (place === chipAt) item.classList.add("at");
  return item;
}

function pointAt(place) {
  chipAt = place;
  for (const item of $("chips").children) {
    const here = Number(item.dataset.place) === place;
    item.classList.toggle("at", here);
    const word = item.querySelector(".word");
    if (word) word.tabIndex = here ? 0 : -1;
  }
}

const focusChip = () => $("chips").querySelector('.word[tabindex="0"]')?.focus({ preventScroll: true });

function moveChip(from, to) {
  const tags = [...chipTags(chipsOf)], last = tags.length - 1;
  to = Math.max(0, Math.min(last, to));
  if (from === to || from < 0 || from > last) return;
  tags.splice(to, 0, ...tags.splice(from, 1));
  clearTimeout(pending?.timer);
  const before = pending?.index === chipsOf ? pending : null;
  if (pending && !before) flushOrder();
  pending = {
    index: chipsOf, tags, timer: setTimeout(flushOrder, ORDER_REST), sent: null, saved: false,
    // An order on its way is gone on from, whatever version it leaves.
    after: before?.sent ? before : before?.after,
    version: before?.version ?? data.pictures[chipsOf].version,
  };
  chipAt = to;
  renderChips(chipsOf);
  renderState();
}

// Sends the order; every other edit and Undo does this first. It is shown until the answer is there.
function flushOrder() {
  const order = pending;
  if (!order) return Promise.resolve();
  clearTimeout(order.timer);
  const id = data.pictures[order.index].id;
  const body = () => {
    if (order.after && !order.after.saved) return null;
    const version = order.after ? data.pictures[order.index].version : order.version;
    return { action: "order", ids: [id], versions: { [id]: version }, tags: order.tags };
  };
  order.sent ??= send("api/edit", body, () => "Order saved.").then(saved => {
    order.saved = saved;
    if (pending !== order) return;
    pending = null;
    renderPanel();
    renderState();
  });
  return order.sent;
}

function actOnChip(act) {
  const tag = chipTags(chipsOf)[chipAt];
  if (tag === undefined) return;
  if (act === "first") moveChip(chipAt, 0);
  else if (act === "left") moveChip(chipAt, chipAt - 1);
  else if (act === "right") moveChip(chipAt, chipAt + 1);
  else if (act === "last") moveChip(chipAt, Infinity);
  else if (tag === CUT) tell(`${CUT} is no tag: change it in the caption below.`);
  else if (act === "remove") removeTag(tag, [chipsOf]);
  else if (act === "show") change(() => { clearFilters(); state.tags.add(keyOf(tag)); });
  else if (act === "rename") {
    const index = chipsOf, item = $("chips").children[chipAt];
    chipRename = true;
    item.draggable = false;
    renameIn(item, tag, to => renameTag(tag, to, [index]), () => {
      chipRename = false;
      if (only() === index) { renderChips(index); focusChip(); }
    });
  }
}

$("chips").addEventListener("click", event => {
  const item = event.target.closest(".chip");
  if (!item || event.target.matches("input")) return;
  pointAt(Number(item.dataset.place));
  if (event.target.closest(".sign")) actOnChip("remove");
});
$("chips").addEventListener("dblclick", event => { if (event.target.closest(".word")) actOnChip("rename"); });
$("chips").addEventListener("focusin", event => {
  const item = event.target.closest(".chip");
  if (item) pointAt(Number(item.dataset.place));
});
$("chips").addEventListener("keydown", event => {
  if (!event.target.closest(".chip") || event.target.matches("input") || event.ctrlKey || event.metaKey) return;
  const act = event.altKey ? { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "left", ArrowDown: "right", Home: "first", End: "last" }[event.key]
    : { Delete: "remove", Backspace: "remove", F2: "rename", r: "rename", Enter: "rename" }[event.key];
  const step = event.altKey ? undefined : { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity }[event.key];
  if (act) actOnChip(act);
  else if (step !== undefined) { pointAt(Math.max(0, Math.min(chipTags(chipsOf).length - 1, chipAt + step))); focusChip(); }
  else return;
  event.preventDefault();
  event.stopPropagation();
});
// The buttons do not take the focus from the chip: the next key goes on there.
$("chip-acts").addEventListener("pointerdown", event => event.preventDefault());
$("chip-acts").addEventListener("click", event => {
  const act = event.target.closest("[data-act]")?.dataset.act;
  if (act) actOnChip(act);
});

// Dragging: the chip is put down before or behind the one that it is over.
function overPlace(event) {
  const item = event.target.closest(".chip");
  if (!item) return null;
  const box = item.getBoundingClientRect();
  return { item, behind: event.clientX > box.x + box.width / 2 };
}
const clearMarks = () => { for (const item of $("chips").children) item.classList.remove("before", "behind", "lifted"); };

$("chips").addEventListener("dragstart", event => {
  const item = event.target.closest?.(".chip");
  if (!item) return;
  dragged = Number(item.dataset.place);
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", item.dataset.chip);
  item.classList.add("lifted");
});
$("chips").addEventListener("dragover", event => {
  if (dragged < 0) return;
  event.preventDefault();
  const over = overPlace(event);
  for (const item of $("chips").children) item.classList.remove("before", "behind");
  over?.item.classList.add(over.behind ? "behind" : "before");
});
$("chips").addEventListener("drop", event => {
  if (dragged < 0) return;
  event.preventDefault();
  const over = overPlace(event);
  if (over) {
    const target = Number(over.item.dataset.place) + (over.behind ? 1 : 0);
    moveChip(dragged, target > dragged ? target - 1 : target);
  }
});
$("chips").addEventListener("dragend", () => { dragged = -1; clearMarks(); });
