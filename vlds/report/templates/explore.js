"use strict";
/* Filters, searches and pages through the predictions of the page. Texts become text nodes alone. */
(() => {
  const PER_PAGE = 25;
  const at = (id) => document.getElementById(id);
  const { runs, tasks, sure, rows, pictures } = JSON.parse(at("found").textContent);
  const box = at("explorer");
  const several = runs.length > 1;

  const SHOWN = {
    "all predictions": () => true,
    "wrong": (row) => row.said.some((entry) => entry && entry.right === false),
    [`sure (${100 * sure} % or more) and wrong`]: (row) =>
      row.said.some((entry) => entry && entry.right === false && entry.sure >= sure),
    "right": (row) => row.said.some((entry) => entry && entry.right === true),
  };
  if (several) {
    SHOWN["right and wrong in different runs"] = (row) =>
      new Set(row.said.filter((entry) => entry).map((entry) => entry.right)).size > 1;
  }

  const examples = rows.map(([task, id, input, answer, groups, said, shown]) => ({
    task, id, input, answer, groups, shown,
    said: said.map((entry) => entry && { text: entry[0], right: entry[1], sure: entry[2] }),
  }));

  const make = (tag, text, look) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (look) made.className = look;
    return made;
  };
  const cell = (label, ...parts) => {
    const made = make("td");
    made.dataset.label = label;
    made.append(...parts);
    return made;
  };
  const words = (text) => {
    const made = make("bdi", text);
    made.dir = "auto";
    return made;
  };
  const said = (entry) => {
    if (!entry) return [make("span", "-", "faint")];
    const parts = [entry.text ? words(entry.text) : "(nothing)"];
    if (entry.right !== null) {
      const mark = entry.right ? "\u2713 right" : "\u2717 wrong";
      parts.push(" ", make("span", mark, `mark ${entry.right ? "right" : "wrong"}`));
    }
    if (entry.sure !== null) {
      parts.push(" ", make("span", `${Math.round(100 * entry.sure)} % sure`, "sure"));
    }
    return parts;
  };

  const thumbs = (row) => {
    const made = cell("picture", ...row.shown.map((place) => {
      const picture = make("img", undefined, "thumb");
      picture.src = pictures[place];
      picture.alt = `picture of ${row.id}`;
      return picture;
    }));
    made.className = "thumbs";
    return made;
  };

  const choose = (select, names) => {
    select.replaceChildren(...names.map((name, place) => {
      const option = make("option", name);
      option.value = String(place);
      return option;
    }));
  };
  const parts = new Map([["all parts", () => true]]);
  const findParts = () => {
    const task = Number(at("task").value) - 1;
    parts.clear();
    parts.set("all parts", () => true);
    for (const row of examples) {
      if (task >= 0 && row.task !== task) continue;
      row.groups.forEach((group, place) => {
        const way = tasks[row.task].ways[place];
        const name = `${way.replaceAll("_", " ")}: ${group}`;
        if (group === null || parts.has(name)) return;
        parts.set(name, (other) => other.groups[tasks[other.task].ways.indexOf(way)] === group);
      });
    }
    choose(at("part"), [...parts.keys()].sort((a, b) =>
      (a !== "all parts") - (b !== "all parts") || a.localeCompare(b, "en", { numeric: true })));
  };

  const hay = (row) => row.hay ??= [row.id, row.input, row.answer,
    ...row.said.map((entry) => (entry ? entry.text : ""))].join("\n").toLowerCase();
  let page = 0;
  const draw = () => {
    const sought = at("words").value.trim().toLowerCase();
    const task = Number(at("task").value) - 1;
    const isShown = Object.values(SHOWN)[Number(at("show").value)];
    const chosen = at("part").options[Number(at("part").value)];
    const isPart = parts.get(chosen ? chosen.textContent : "all parts");
    const found = examples.filter((row) => (task < 0 || row.task === task)
      && isShown(row) && isPart(row) && (!sought || hay(row).includes(sought)));
    page = Math.max(0, Math.min(page, Math.ceil(found.length / PER_PAGE) - 1));
    const first = page * PER_PAGE;
    const part = found.slice(first, first + PER_PAGE);
    at("count").textContent = part.length
      ? `${first + 1} to ${first + part.length} of ${found.length.toLocaleString("en")}`
      : "nothing found";
    at("before").disabled = page === 0;
    at("after").disabled = first + PER_PAGE >= found.length;
    box.querySelector("tbody").replaceChildren(...part.map((row) => {
      const line = make("tr");
      line.append(
        cell("task", tasks[row.task].name, make("small", row.id)),
        ...(pictures.length ? [thumbs(row)] : []),
        cell("input", words(row.input || "-")),
        cell("answer", words(row.answer)),
        ...row.said.map((entry, place) => cell(several ? runs[place] : "model", ...said(entry))),
      );
      return line;
    }));
  };

  choose(at("task"), ["all tasks", ...tasks.map((task) => task.name)]);
  choose(at("show"), Object.keys(SHOWN));
  findParts();
  for (const name of ["task", ...(pictures.length ? ["picture"] : []),
    "input", "answer", ...(several ? runs : ["model"])]) {
    const head = make("th", name);
    head.scope = "col";
    box.querySelector("thead tr").append(head);
  }
  const again = () => { page = 0; draw(); };
  at("words").addEventListener("input", again);
  at("task").addEventListener("change", () => { findParts(); again(); });
  at("show").addEventListener("change", again);
  at("part").addEventListener("change", again);
  at("before").addEventListener("click", () => { page -= 1; draw(); });
  at("after").addEventListener("click", () => { page += 1; draw(); });
  draw();
  box.hidden = false;
})();
