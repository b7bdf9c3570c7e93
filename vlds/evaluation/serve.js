"use strict";
/* Sends the form and puts each answer on top of the earlier ones. Texts become text nodes alone. */
(() => {
  const at = (id) => document.getElementById(id);
  const form = at("ask");
  const make = (tag, text, look) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (look) made.className = look;
    return made;
  };
  const describe = (name, text) => {
    const words = make("bdi", text);
    words.dir = "auto";
    const told = make("dd");
    told.append(words);
    return [make("dt", name), told];
  };
  const show = (file) => {
    const picture = make("img");
    picture.alt = `picture ${file.name}`;
    picture.src = URL.createObjectURL(file);
    return picture;
  };
  const card = (files, question, told) => {
    const pictures = make("div", undefined, "pictures");
    pictures.append(...files.map(show));
    const list = make("dl");
    if (question) list.append(...describe("question", question));
    list.append(...describe(told.task, told.text || "(nothing)"));
    list.lastChild.className = "told";
    const sure = Math.round(100 * (told.token_confidence ?? told.confidence));
    list.append(make("dd", `${sure} % sure, ${told.seconds.toFixed(2)} s`, "faint"));
    if (told.prompt_cut) list.append(make("dd", "the question is too long: its end was not read", "faint"));
    const made = make("li", undefined, "sample");
    made.append(pictures, list);
    return made;
  };

  const suit = () => {
    const { question, pictures } = at("task").selectedOptions[0].dataset;
    at("asked").hidden = at("question").disabled = question === "0";
    at("question").required = question === "1";
    at("wanted").textContent = pictures && pictures !== "1" ? `${pictures} pictures` : "picture";
  };
  at("task").addEventListener("change", suit);
  suit();

  const hint = at("chosen").firstElementChild;
  const preview = () => {
    const files = [...at("image").files];
    for (const old of at("chosen").querySelectorAll("img")) URL.revokeObjectURL(old.src);
    at("chosen").replaceChildren(...(files.length ? files.map(show) : [hint]));
  };
  // A task of several pictures gets them one after the other; another's new one replaces the old.
  const take = (event, data) => {
    const pictures = [...data.files].filter((file) => file.type.startsWith("image/"));
    if (!pictures.length) return;
    event.preventDefault();
    const most = Number(at("task").selectedOptions[0].dataset.pictures || 1);
    const before = [...at("image").files];
    const kept = new DataTransfer();
    const room = before.length + pictures.length <= most;
    for (const file of [...(room ? before : []), ...pictures]) kept.items.add(file);
    at("image").files = kept.files;
    preview();
  };
  at("image").addEventListener("change", preview);
  document.addEventListener("paste", (event) => take(event, event.clipboardData));
  document.addEventListener("drop", (event) => take(event, event.dataTransfer));
  document.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault();
  });
  at("here").textContent = `${location.origin}/`;

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const files = [...at("image").files];
    const size = files.reduce((sum, file) => sum + file.size, 0);
    if (size > Number(form.dataset.most)) {
      at("state").textContent = `The pictures have ${size.toLocaleString("en")} bytes, too many`;
      return;
    }
    const question = at("question").disabled ? "" : at("question").value;
    const button = form.querySelector("button");
    button.disabled = true;
    at("state").textContent = "Asking ...";
    try {
      const response = await fetch("/answer", { method: "POST", body: new FormData(form) });
      const told = await response.json();
      at("state").textContent = told.error ?? "";
      if (response.ok) at("answers").prepend(card(files, question, told));
    } catch {
      at("state").textContent = "The server does not answer; is it still running?";
    }
    button.disabled = false;
  });
})();
