// The pictures as they are on the disk, as far as the page knows, and what is selected.
const edit = data.edit;
const CUT = "|||"; // in a caption, what stands before it is never shuffled: a mark and no tag
const indexOf = new Map(data.pictures.map((picture, index) => [picture.id, index]));
const counts = new Map(); // pictures with a tag
const written = new Map(); // a tag -> how the dataset writes it
const selected = new Set();
const drafts = new Map(); // picture -> a text not saved yet, and the caption and version that it began from
const keys = new Map();

// Tags are compared as lora-check compares them: small letters, spaces, no escapes or weights; faces keep theirs.
function keyOf(tag) {
  let key = keys.get(tag);
  if (key === undefined) {
    const weighted = /^\((.+):\s*[0-9.]+\)$/.exec(tag.trim());
    const text = (weighted ? weighted[1] : tag).replaceAll("\\(", "(").replaceAll("\\)", ")").replaceAll("_", " ");
    key = text.toLowerCase().split(/\s+/).filter(Boolean).join(" ");
    if (!/[\p{L}\p{Nl}\p{No}]{2}/u.test(key)) key = key.replaceAll(" ", "_");
    keys.set(tag, key);
  }
  return key;
}

const tagsOf = picture => (picture.tags ?? []).filter(tag => tag !== CUT);

function count(index, step) {
  if (data.pictures[index].out || data.pictures[index].gone) return;
  for (const key of sets[index]) {
    const now = (counts.get(key) ?? 0) + step;
    if (now > 0) counts.set(key, now);
    else counts.delete(key);
  }
}

// Takes what the server says of one picture; tells whether that is new here.
function learn(fresh) {
  const index = indexOf.get(fresh.id);
  if (index === undefined) return null;
  const picture = data.pictures[index];
  const isNew = picture.version !== fresh.version || picture.out !== fresh.out || Boolean(picture.gone) !== Boolean(fresh.gone);
  count(index, -1);
  Object.assign(picture, { hints: [], trouble: null, gone: false }, fresh);
  describe(index);
  count(index, 1);
  return isNew ? index : null;
}

function forget(id) {
  const index = indexOf.get(id);
  if (index === undefined || data.pictures[index].gone) return null;
  count(index, -1);
  data.pictures[index].gone = true;
  selected.delete(index);
  return index;
}

// A picture that came into the folder. Its id is its place.
function welcome(picture) {
  if (indexOf.has(picture.id)) return false;
  const index = data.pictures.push(picture) - 1;
  indexOf.set(picture.id, index);
  findings.push([]);
  describe(index);
  count(index, 1);
  return true;
}

function describe(index) {
  const tags = tagsOf(data.pictures[index]);
  sets[index] = new Set(tags.map(keyOf));
  for (const tag of tags) if (!written.has(keyOf(tag))) written.set(keyOf(tag), tag);
}

function sortTags() {
  tagRows = [...counts].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
}

function learnRules(answer) {
  if (answer.rules) data.rules = answer.rules;
  if (answer.concepts) data.concepts = answer.concepts;
  if (answer.summary !== undefined) $("summary").textContent = answer.summary;
  placeFindings();
}

// A new tag is written as the dataset writes its tags: with underscores or spaces, brackets escaped or not.
function styled(key) {
  if (written.has(key)) return written.get(key);
  let under = 0, spaced = 0, escaped = false;
  for (const tag of written.values()) {
    if (tag.includes("_")) under++;
    else if (tag.includes(" ")) spaced++;
    escaped ||= tag.includes("\\(");
  }
  const text = under > spaced ? key.replaceAll(" ", "_") : key;
  return escaped ? text.replaceAll("(", "\\(").replaceAll(")", "\\)") : text;
}

const nameOf = picture => picture.path.split(/[\\/]/).pop();
const many = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

// What an edit is sent for: the pictures, and the version of each that is shown here.
function selection(indexes = [...selected]) {
  const pictures = indexes.map(index => data.pictures[index]);
  return { ids: pictures.map(one => one.id), versions: Object.fromEntries(pictures.map(one => [one.id, one.version])) };
}

// Texts not saved yet outlive a reload of the page.
const KEEP = `drafts ${location.pathname}`;

function keepDrafts() {
  const rows = [...drafts].map(([index, draft]) => [data.pictures[index].id, draft]);
  try {
    if (rows.length) sessionStorage.setItem(KEEP, JSON.stringify(rows));
    else sessionStorage.removeItem(KEEP);
  } catch { /* no room: the page still has them */ }
}

function loadDrafts() {
  try {
    for (const [id, draft] of JSON.parse(sessionStorage.getItem(KEEP) ?? "[]"))
      if (indexOf.has(id)) drafts.set(indexOf.get(id), draft);
  } catch { /* nothing kept */ }
}

data.pictures.forEach((_, index) => { describe(index); count(index, 1); });
sortTags();
placeFindings();
loadDrafts();
