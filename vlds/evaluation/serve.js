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
  const card = (files, question, told) => {
    const pictures = make("div", undefined, "pictures");
    for (const file of files) {
      const picture = make("img");
      picture.alt = `picture ${file.name}`;
      picture.src = URL.createObjectURL(file);
      pictures.append(picture);
    }
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
    at("question").disabled = question === "0";
    at("question").required = question === "1";
    at("wanted").textContent = pictures && pictures !== "1" ? `${pictures} pictures` : "picture";
  };
  at("task").addEventListener("change", suit);
  suit();
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
