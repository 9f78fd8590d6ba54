// Completion of tags, from the dataset and from the list that lora-check was given. Nothing is chosen until an arrow
// key or a click does it: Enter takes what was typed.
const MOST_WORDS = 8;
let listNumber = 0;

// The tag at the end of what is typed; commas part several.
const lastPiece = text => text.slice(text.lastIndexOf(",") + 1).trimStart();

function matches(typed) {
  const key = keyOf(typed), ranks = [[], [], []], seen = new Set();
  if (!key) return [];
  const look = (tag, number, source) => {
    const place = tag.indexOf(key);
    if (place < 0 || seen.has(tag)) return;
    seen.add(tag);
    const rank = ranks[place === 0 ? 0 : " _(-".includes(tag[place - 1]) ? 1 : 2];
    if (rank.length < MOST_WORDS) rank.push([tag, number, source]);
  };
  for (const [tag, number] of tagRows) look(tag, number, "here");
  for (const [tag, number] of edit.words ?? []) {
    look(tag, number, "listed");
    if (ranks[0].length === MOST_WORDS) break;
  }
  return ranks.flat().slice(0, MOST_WORDS);
}

// `accept` is called with what is typed or chosen, and returns whether the field is to be emptied.
function complete(input, accept) {
  const list = make("ul", undefined, { role: "listbox", class: "words-list", id: `words-${++listNumber}`, "aria-label": "Tags" });
  let at = -1;
  list.hidden = true;
  input.after(list);
  for (const [name, value] of Object.entries({ role: "combobox", "aria-expanded": "false", "aria-autocomplete": "list", "aria-controls": list.id }))
    input.setAttribute(name, value);

  const close = () => { list.hidden = true; at = -1; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
  const point = to => {
    at = to;
    [...list.children].forEach((row, place) => row.setAttribute("aria-selected", String(place === at)));
    if (at >= 0) input.setAttribute("aria-activedescendant", list.children[at].id);
    else input.removeAttribute("aria-activedescendant");
  };
  const open = () => {
    const found = matches(lastPiece(input.value));
    list.replaceChildren(...found.map(([tag, number, source], place) => {
      const row = make("li", undefined, { role: "option", id: `${list.id}-${place}`, "aria-selected": "false" });
      row.append(make("span", tag), make("span", source === "here" ? number.toLocaleString("en") : "list", { class: "count" }));
      row.dataset.word = tag;
      // The field keeps the focus.
      row.addEventListener("pointerdown", event => event.preventDefault());
      row.addEventListener("click", () => take(tag));
      return row;
    }));
    at = -1;
    list.hidden = !found.length;
    if (!list.hidden) list.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-expanded", String(!list.hidden));
    input.removeAttribute("aria-activedescendant");
  };
  const take = async tag => {
    const before = input.value.slice(0, input.value.length - lastPiece(input.value).length);
    input.value = `${before}${styled(tag)}`;
    await submit();
  };
  const submit = async () => {
    close();
    const sent = input.value;
    if (!sent.trim()) return;
    // What was typed stays until it is on the disk, and what is typed meanwhile stays too.
    if (await accept(sent.trim()) && input.value === sent) input.value = "";
  };

  input.addEventListener("input", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", event => {
    if (event.isComposing || event.altKey) return;
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && list.hidden) { if (event.key === "ArrowDown") open(); }
    else if (event.key === "ArrowDown") point(at + 1 >= list.children.length ? -1 : at + 1);
    else if (event.key === "ArrowUp") point(at < 0 ? list.children.length - 1 : at - 1);
    else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) at >= 0 ? take(list.children[at].dataset.word) : submit();
    else if (event.key === "Escape" && !list.hidden) { close(); event.stopImmediatePropagation(); }
    else return;
    event.preventDefault();
  });
}
