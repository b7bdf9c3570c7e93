// The few parts of a browser that the report's script touches, for machines without one.
// node small_dom.js FILE: reads {data, script, acts} and writes what is shown after each act.
"use strict";
const fs = require("fs");
const vm = require("vm");

class Part {
  constructor(tag) {
    Object.assign(this, { tag, parts: [], dataset: {}, heard: {}, hidden: false, disabled: false });
  }
  append(...parts) { this.parts.push(...parts); }
  replaceChildren(...parts) { this.parts = parts; this.chosen = undefined; }
  addEventListener(name, act) { this.heard[name] = act; }
  get textContent() {
    return this.parts.map((part) => (part instanceof Part ? part.textContent : part)).join("");
  }
  set textContent(text) { this.parts = [String(text)]; }
  get options() { return this.parts; }
  get value() {
    if (this.tag === "select") return this.chosen ?? this.parts[0].value;
    return this.chosen ?? "";
  }
  set value(value) { this.chosen = value; }
  querySelector(way) { return this.inner[way]; }
  // Whatever a page could obey is a mistake here.
  set innerHTML(text) { throw new Error("innerHTML"); }
  set outerHTML(text) { throw new Error("outerHTML"); }
  insertAdjacentHTML() { throw new Error("insertAdjacentHTML"); }
}

const { data, script, acts } = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const known = { found: new Part("script"), explorer: new Part("div") };
known.found.textContent = data;
known.explorer.hidden = true;
known.explorer.inner = { tbody: new Part("tbody"), "thead tr": new Part("tr") };
for (const id of ["task", "show", "part"]) known[id] = new Part("select");
for (const id of ["words", "count", "before", "after"]) known[id] = new Part("other");

const shown = () => ({
  hidden: known.explorer.hidden,
  count: known.count.textContent,
  heads: known.explorer.inner["thead tr"].parts.map((part) => part.textContent),
  rows: known.explorer.inner.tbody.parts.map((row) => row.parts.map((part) => part.textContent)),
  options: Object.fromEntries(["task", "show", "part"].map(
    (id) => [id, known[id].options.map((option) => option.textContent)])),
  disabled: [known.before.disabled, known.after.disabled],
});

vm.runInNewContext(script, {
  document: { getElementById: (id) => known[id], createElement: (tag) => new Part(tag) },
});
const seen = [shown()];
for (const [id, value] of acts) {
  const part = known[id];
  if (part.tag === "select") {
    part.value = part.options.find((option) => option.textContent === value).value;
    part.heard.change();
  } else if (id === "words") {
    part.value = value;
    part.heard.input();
  } else part.heard.click();
  seen.push(shown());
}
process.stdout.write(JSON.stringify(seen));
