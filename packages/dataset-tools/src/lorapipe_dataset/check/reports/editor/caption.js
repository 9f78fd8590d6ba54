// The whole caption of one picture, written by hand. Leaving the field saves it; what could not be saved stays a draft.
let captionOf = -1;
const savings = new Map(); // picture -> the text on its way

const clashes = index => drafts.has(index) && !savings.has(index) && drafts.get(index).version !== data.pictures[index].version;

function renderCaption(index) {
  const field = $("caption");
  captionOf = index;
  if (index < 0) return;
  const one = data.pictures[index], draft = drafts.get(index);
  if (draft && draft.text === (one.caption ?? "")) drafts.delete(index);
  const text = drafts.get(index)?.text ?? one.caption ?? "";
  if (field.value !== text) {
    const { selectionStart, selectionEnd } = field;
    field.value = text;
    if (document.activeElement === field) field.setSelectionRange(selectionStart, selectionEnd);
  }
  // What cannot be read is not written over.
  field.readOnly = Boolean(one.trouble);
  const clash = clashes(index);
  $("clash").hidden = !clash;
  $("theirs").textContent = one.caption || "(no caption)";
  const dirty = drafts.has(index);
  $("save").disabled = !dirty || clash;
  $("back").disabled = !dirty;
  $("caption-state").textContent = savings.has(index) ? "saving…" : dirty ? (connected ? "not saved yet" : "no connection: kept here") : "";
}

$("caption").addEventListener("input", () => {
  const index = captionOf, one = data.pictures[index], text = $("caption").value, was = drafts.has(index);
  if (text === (one.caption ?? "") && !clashes(index)) drafts.delete(index);
  else drafts.set(index, { text, version: drafts.get(index)?.version ?? one.version });
  keepDrafts();
  renderCaption(index);
  if (was !== drafts.has(index)) draftsChanged(index);
});

function draftsChanged(index) {
  keepDrafts();
  if (tiles.has(index)) fill(tiles.get(index), index);
  keepPlace(renderMarks);
  renderState();
}

async function saveText(index) {
  const draft = drafts.get(index);
  if (!draft || clashes(index) || savings.has(index)) return;
  const id = data.pictures[index].id, text = draft.text;
  savings.set(index, text);
  renderCaption(captionOf);
  const saved = await send("api/edit", () => ({ action: "caption", ids: [id], versions: { [id]: draft.version }, text }), () => "Caption saved.");
  savings.delete(index);
  const now = drafts.get(index);
  if (saved && now) {
    // Whoever went on writing goes on from what is on the disk now.
    if (now.text === text) drafts.delete(index);
    else now.version = data.pictures[index].version;
  }
  renderCaption(captionOf);
  draftsChanged(index);
  return saved;
}

function takeTheirs() {
  const index = captionOf;
  drafts.delete(index);
  renderCaption(index);
  draftsChanged(index);
  $("caption").focus();
}

$("save").addEventListener("click", () => saveText(captionOf));
$("back").addEventListener("click", takeTheirs);
$("take-theirs").addEventListener("click", takeTheirs);
$("keep-mine").addEventListener("click", () => {
  // The text that was found is seen now, and Undo brings it back.
  drafts.get(captionOf).version = data.pictures[captionOf].version;
  saveText(captionOf);
});
// "Put back" would come too late if the field were saved before it is pressed.
for (const id of ["back", "save", "take-theirs", "keep-mine"]) $(id).addEventListener("pointerdown", event => event.preventDefault());
$("caption").addEventListener("blur", event => {
  // Another window took the focus: whoever comes back goes on writing.
  if (document.activeElement === $("caption")) return;
  if (!$("text-box").contains(event.relatedTarget)) saveText(captionOf);
});
