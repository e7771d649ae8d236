"use strict";
// Filters, sorts, shows and marks the samples that gallery/data.js lists. What comes from outside only ever
// becomes a text node. Nothing is fetched; marks stay in this browser until they are exported.

const PAGE = 60, STORE = "id-booth-marks";
const FILTERS = ["identity", "method", "background", "pose"];
const NUMBER = new Intl.NumberFormat("en");
const $ = (id) => document.getElementById(id);
const state = { rows: [], page: 0, open: -1, marks: readMarks() };

// ------------------------------------------------------------------------------------------------ data

function value(name, row) {
  const column = GALLERY.columns[name];
  if (!column) return null;
  return column.text ? column.text[column.index[row]] ?? null : column.number[row];
}

function different(name) {
  const column = GALLERY.columns[name], texts = [...new Set(column.index.map((i) => column.text[i] ?? ""))];
  return texts.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

function isUnseen(name, row) {
  const asked = value(name, row), seen = value(`seen_${name}`, row);
  return asked !== null && seen !== null && asked !== seen;
}

function badness(measure, row) {
  const number = value(measure.name, row);
  if (number === null) return Infinity; // what could not be measured is worst
  return measure.worst === "low" ? -number : measure.worst === "far" ? Math.abs(number) : number;
}

function chosenRows() {
  const wanted = FILTERS.map((name) => [name, $(name).value]).filter(([, text]) => text !== "*");
  const words = $("prompt").value.toLowerCase().split(/\s+/).filter(Boolean), marked = $("marked").value;
  const unseen = $("unseen").value, asked = unseen === "any" ? GALLERY.asked : [unseen];
  const rows = [];
  for (let row = 0; row < GALLERY.count; row++) {
    if (unseen !== "*" && !asked.some((name) => isUnseen(name, row))) continue;
    if (wanted.some(([name, text]) => (value(name, row) ?? "") !== text)) continue;
    const prompt = (value("prompt", row) ?? "").toLowerCase();
    if (words.some((word) => !prompt.includes(word))) continue;
    if (marked !== "*" && (markOf(row).mark ?? "") !== marked) continue;
    rows.push(row);
  }
  const measure = GALLERY.measures[$("sort").value], sign = $("order").value === "worst" ? 1 : -1;
  const bad = new Map(rows.map((row) => [row, badness(measure, row)]));
  return rows.sort((a, b) => (bad.get(a) === bad.get(b) ? a - b : sign * (bad.get(b) > bad.get(a) ? 1 : -1)));
}

// ----------------------------------------------------------------------------------------------- marks

function readMarks() {
  try {
    return new Map(Object.entries(JSON.parse(localStorage.getItem(STORE)) ?? {}));
  } catch {
    return new Map(); // no storage, or somebody else's
  }
}

function markOf(row) {
  return state.marks.get(value("sha256", row)) ?? {};
}

function setMark(row, change) {
  const next = { ...markOf(row), ...change }, key = value("sha256", row);
  if (!key) return;
  if (next.mark || next.note) state.marks.set(key, next);
  else state.marks.delete(key);
  try {
    localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(state.marks)));
    $("kept").textContent = "";
  } catch {
    $("kept").textContent = "This browser keeps no marks: export them before you leave.";
  }
  showCount();
}

function exportMarks() {
  const marks = {};
  for (let row = 0; row < GALLERY.count; row++) {
    const mark = markOf(row), place = { method: value("method", row), file: value("file", row) };
    if (mark.mark || mark.note) marks[value("sha256", row)] = { ...mark, ...place };
  }
  const text = JSON.stringify({ kind: STORE, title: GALLERY.title, marks }, null, 2) + "\n";
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })) });
  link.download = "marks.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function importMarks(file) {
  try {
    const content = JSON.parse(await file.text());
    if (content.kind !== STORE) throw new Error("no marks");
    for (let row = 0; row < GALLERY.count; row++) {
      const one = content.marks[value("sha256", row)];
      if (one) setMark(row, { mark: ["keep", "reject"].includes(one.mark) ? one.mark : "", note: `${one.note ?? ""}` });
    }
    show();
  } catch {
    $("kept").textContent = "That file holds no marks of a gallery.";
  }
}

// ------------------------------------------------------------------------------------------------ page

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function picture(thumb, text) {
  if (!thumb) return make("span", { className: "absent", textContent: "cannot be read" });
  const image = make("img", { alt: text, loading: "lazy", decoding: "async" });
  image.src = `gallery/${thumb}`;
  return image;
}

function photosOf(row) {
  return GALLERY.photos[value("identity", row)] ?? [];
}

function shown(number, digits = 3) {
  return number === null ? "–" : number.toFixed(digits);
}

function card(row, place) {
  const measure = GALLERY.measures[$("sort").value], mark = markOf(row).mark ?? "";
  const person = value("identity", row), photo = photosOf(row)[0];
  const pictures = make("span", { className: "pair" }, picture(value("thumb", row), value("prompt", row) ?? "sample"));
  if (photo) pictures.append(picture(photo.thumb, `photo of ${person}`));
  const number = make("b", { textContent: shown(value(measure.name, row)) });
  const words = make("span", { className: "words" }, number, ` ${person}, ${value("method", row)}`);
  const button = make("button", { className: "card", type: "button" }, pictures, words);
  button.dataset.mark = mark;
  if (mark) button.append(make("span", { className: "mark", textContent: mark }));
  button.addEventListener("click", () => openRow(place));
  return make("li", {}, button);
}

function show(page = 0) {
  state.rows = chosenRows();
  turnTo(page);
}

function turnTo(page) {
  const last = Math.max(0, Math.ceil(state.rows.length / PAGE) - 1);
  state.page = Math.min(Math.max(page, 0), last);
  const start = state.page * PAGE, rows = state.rows.slice(start, start + PAGE);
  $("grid").replaceChildren(...rows.map((row, i) => card(row, start + i)));
  $("back").disabled = state.page === 0;
  $("next").disabled = state.page === last;
  $("pages").textContent = rows.length ? `${NUMBER.format(start + 1)} to ${NUMBER.format(start + rows.length)}` : "none";
  const person = $("identity").value, photos = GALLERY.photos[person] ?? [];
  $("photos").replaceChildren(...photos.map((photo) => picture(photo.thumb, `photo of ${person}`)));
  $("strip").hidden = !photos.length;
  showCount();
}

function showCount() {
  const marks = Array.from({ length: GALLERY.count }, (_, row) => markOf(row).mark);
  const count = (mark) => NUMBER.format(marks.filter((one) => one === mark).length);
  $("count").textContent = `${NUMBER.format(state.rows.length)} of ${NUMBER.format(GALLERY.count)} samples; `
    + `marked: ${count("keep")} keep, ${count("reject")} reject`;
}

function pairs(list, entries) {
  list.replaceChildren();
  for (const [name, text] of entries) {
    if (text === null || text === "") continue;
    list.append(make("dt", { textContent: name }), make("dd", { textContent: `${text}` }));
  }
}

function openRow(place) {
  if (place < 0 || place >= state.rows.length) return;
  const row = state.rows[place], person = value("identity", row);
  state.open = place;
  $("large").replaceChildren(picture(value("thumb", row), value("prompt", row) ?? "sample"));
  const nearest = value("nearest_photo", row);
  const photos = photosOf(row).map((photo) => {
    const image = picture(photo.thumb, `photo of ${person}${photo.file === nearest ? ", the nearest" : ""}`);
    image.className = photo.file === nearest ? "nearest" : "";
    return image;
  });
  $("beside").replaceChildren(...photos);
  $("heading").textContent = `${person}, ${value("method", row)}`;
  $("asked").textContent = value("prompt", row) ?? "no prompt is known";
  pairs($("numbers"), GALLERY.measures.map((measure) => [measure.title, shown(value(measure.name, row))]));
  pairs($("provenance"), GALLERY.facts.map(([name, title]) => [title, value(name, row)]));
  $("note").value = markOf(row).note ?? "";
  showMark(row);
  $("where").textContent = `${NUMBER.format(place + 1)} of ${NUMBER.format(state.rows.length)}`;
  if (!$("view").open) $("view").showModal();
}

function showMark(row) {
  for (const name of ["keep", "reject"]) $(name).setAttribute("aria-pressed", `${markOf(row).mark === name}`);
}

function mark(name) {
  const row = state.rows[state.open];
  setMark(row, { mark: markOf(row).mark === name ? "" : name });
  showMark(row);
}

function onKey(event) {
  const typing = ["TEXTAREA", "INPUT", "SELECT"].includes(event.target.tagName);
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const here = $("view").open;
  const keys = here
    ? { ArrowRight: () => openRow(state.open + 1), ArrowLeft: () => openRow(state.open - 1), k: () => mark("keep"),
        r: () => mark("reject"), u: () => mark(markOf(state.rows[state.open]).mark), n: () => $("note").focus() }
    : { ArrowRight: () => step(1), ArrowLeft: () => step(-1), ".": () => turnTo(state.page + 1),
        ",": () => turnTo(state.page - 1), "/": () => $("prompt").focus() };
  if (!Object.hasOwn(keys, event.key)) return;
  keys[event.key]();
  event.preventDefault();
}

function step(by) {
  const cards = [...document.querySelectorAll(".card")], place = cards.indexOf(document.activeElement);
  cards[Math.min(Math.max(place + by, 0), cards.length - 1)]?.focus();
}

function fillControls() {
  for (const name of FILTERS) {
    const options = different(name).map((text) => make("option", { value: text, textContent: text || "not said" }));
    $(name).append(make("option", { value: "*", textContent: "all" }), ...options);
  }
  const titles = { any: "anything", background: "place" };
  const asked = GALLERY.asked.length ? ["any", ...GALLERY.asked] : [];
  $("unseen").append(...asked.map((name) => make("option", { value: name, textContent: titles[name] ?? name })));
  $("judged").hidden = !asked.length; // without a classifier of attributes nothing is seen
  $("sort").append(...GALLERY.measures.map((one, i) => make("option", { value: i, textContent: one.title })));
}

function start() {
  fillControls();
  $("method").value = GALLERY.columns.method.text.at(-1); // not the base model, whose samples are the worst
  for (const name of [...FILTERS, "unseen", "marked", "sort", "order"]) $(name).addEventListener("change", () => show());
  $("prompt").addEventListener("input", () => show());
  $("clear").addEventListener("click", () => { $("controls").reset(); show(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("back").addEventListener("click", () => turnTo(state.page - 1));
  $("next").addEventListener("click", () => turnTo(state.page + 1));
  $("export").addEventListener("click", exportMarks);
  $("import").addEventListener("change", (event) => importMarks(event.target.files[0]));
  for (const name of ["keep", "reject"]) $(name).addEventListener("click", () => mark(name));
  $("former").addEventListener("click", () => openRow(state.open - 1));
  $("later").addEventListener("click", () => openRow(state.open + 1));
  $("close").addEventListener("click", () => $("view").close());
  $("note").addEventListener("change", () => setMark(state.rows[state.open], { note: $("note").value.trim() }));
  $("view").addEventListener("close", () => {
    turnTo(Math.floor(state.open / PAGE));
    document.querySelectorAll(".card")[state.open % PAGE]?.focus();
  });
  document.addEventListener("keydown", onKey);
  show();
}

start();
