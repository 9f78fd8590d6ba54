// The report's pictures: as many as a page holds, and one closely.
const PAGE = 120;
let limit = PAGE;

function show() {
  limit = PAGE;
  renderCase();
  renderGrid();
  $("grid").parentElement.scrollTop = 0;
}

function renderGrid() {
  const rows = chosen(), words = filterWords();
  $("grid").replaceChildren(...rows.slice(0, limit).map(figure));
  $("shown").textContent = `${rows.length} of ${data.pictures.length} pictures`;
  $("filters").textContent = words.join(" + ");
  $("clear").hidden = !words.length;
  $("more").hidden = rows.length <= limit;
}

function picture(one) {
  return one.image ? make("img", undefined, { src: one.image, alt: one.caption || one.path, loading: "lazy" }) : make("span", "no preview");
}

function figure(index) {
  const one = data.pictures[index];
  const box = make("figure", undefined, { tabindex: "0", role: "button" });
  const frame = make("div", undefined, { class: "frame" });
  frame.append(picture(one));
  const text = make("figcaption");
  text.append(make("b", one.path.split(/[\\/]/).pop()), make("span", one.caption ?? "no caption", { class: "text" }));
  box.append(frame, text);
  box.dataset.path = one.path;
  box.addEventListener("click", () => detail(index));
  box.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    detail(index);
  });
  return box;
}

function detail(index) {
  const one = data.pictures[index], list = make("ul");
  for (const [rule, text] of findings[index]) list.append(make("li", `${rule.severity}: ${rule.id}: ${text}`));
  const link = make("a", one.path, { href: one.link });
  const heading = make("p");
  heading.append(link, one.size ? ` (${one.size.join("×")}, ${one.concept})` : ` (${one.concept})`);
  const close = make("button", "Close", { type: "button" });
  close.addEventListener("click", () => $("detail").close());
  $("detail").replaceChildren(picture(one), heading, make("p", one.caption ?? "no caption"), list, close);
  $("detail").showModal();
}

$("more").addEventListener("click", () => { limit += PAGE; renderGrid(); });
$("detail").addEventListener("click", event => { if (event.target === $("detail")) $("detail").close(); });
for (const picture of data.pictures) sets.push(new Set(picture.tags.map(index => data.tags[index][0])));
placeFindings();
renderStill();
load();
renderSide();
show();
