"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const at = (id) => document.getElementById(id);
  const show = (score, digits = 4) => score.toFixed(digits);
  let latest = 0;

  at("limit").textContent = `up to ${Math.floor(facts.maxBytes / 2 ** 20)} MiB`;
  at("token-field").hidden = !facts.needsToken;

  function say(text, isError = false) {
    at("state").textContent = text;
    at("state").classList.toggle("error", isError);
  }

  const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

  async function send(file) {
    const number = ++latest;
    at("result").hidden = true;
    if (file.size > facts.maxBytes) {
      return say(`The file is larger than ${facts.maxBytes} bytes.`, true);
    }
    say("Looking for faces ...");
    const query = new URLSearchParams({
      frames: at("frames").value, faces: at("faces").value, crops: at("crops").checked, thumbnails: true,
    });
    const headers = { "Content-Type": "application/octet-stream" };
    if (at("token").value) headers.Authorization = `Bearer ${at("token").value}`;
    try {
      const response = await fetch(`v1/predict?${query}`, { method: "POST", body: file, headers });
      const answer = await response.json();
      if (number !== latest) return;
      if (!response.ok) return say(sentence(answer.error.message), true);
      say("");
      await draw(file, answer);
    } catch (error) {
      if (number === latest) say("The server cannot be reached, or its answer was cut off.", true);
    }
  }

  async function draw(file, answer) {
    const found = answer.files[0];
    const said = found.verdict ?? "none";
    at("result").hidden = false;
    at("verdict").className = `verdict ${said}`;
    at("said").textContent = headline(found);
    at("why").textContent = `${answer.threshold === null ? "" : `Threshold ${show(answer.threshold)}: `}${answer.threshold_origin}.`;
    at("remark").textContent = remarks(found, answer);
    drawBar(found, answer, said);
    at("picture").replaceChildren();
    if (found.kind === "image" && found.frames.length) await drawBoxes(file, found, answer);
    at("faces-title").textContent = found.frames.length ? `What the model saw (${found.frames.length})` : "";
    at("crop-list").replaceChildren(...found.frames.map((frame) => crop(frame, answer, found.faces.length)));
  }

  function headline(found) {
    if (found.status === "no face") return "No face found";
    const verdict = { fake: "Called fake", real: "Called real" }[found.verdict] ?? "No verdict";
    return `${verdict}, score ${show(found.score)}`;
  }

  function remarks(found, answer) {
    const parts = [];
    if (found.probability !== null) parts.push(`calibrated probability of a fake ${show(found.probability)}`);
    if (found.frames_read > 1) parts.push(`${answer.aggregate} over ${found.frames_read} frames`);
    if (found.faces.length > 1) parts.push(`${found.faces.length} people`);
    if (found.reason) parts.push(found.reason);
    return parts.join("; ");
  }

  function drawBar(found, answer, said) {
    const hasScore = found.score !== null;
    at("bar").hidden = at("bar").nextElementSibling.hidden = !hasScore;
    if (!hasScore) return;
    at("bar").className = `bar ${said}`;
    at("fill").style.width = `${100 * found.score}%`;
    at("mark").hidden = answer.threshold === null;
    at("mark").style.left = `${100 * (answer.threshold ?? 0)}%`;
    at("mark-text").textContent = answer.threshold === null ? "" : `score ${show(found.score)}, threshold ${show(answer.threshold)}`;
    at("bar").setAttribute("aria-label", `score ${show(found.score)} of 1`);
  }

  const kind = (score, answer) => (answer.threshold === null ? "" : score >= answer.threshold ? "fake" : "real");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  async function drawBoxes(file, found, answer) {
    if (!found.frames.some((frame) => frame.box)) return;
    const picture = await createImageBitmap(file);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0);
    const unit = Math.max(picture.width, picture.height) / 400;
    pen.lineWidth = 1.5 * unit;
    pen.font = `600 ${11 * unit}px sans-serif`;
    for (const frame of found.frames) {
      const [x0, y0, x1, y1] = frame.box;
      pen.strokeStyle = colour({ fake: "--red", real: "--green" }[kind(frame.score, answer)] ?? "--blue");
      pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
      const text = show(frame.score, 3);
      const width = pen.measureText(text).width + 6 * unit;
      const top = Math.max(0, y0 - 15 * unit);
      pen.fillStyle = pen.strokeStyle;
      pen.fillRect(x0, top, width, 15 * unit);
      pen.fillStyle = colour("--page");
      pen.fillText(text, x0 + 3 * unit, top + 11.5 * unit);
    }
    at("picture").replaceChildren(canvas);
  }

  function crop(frame, answer, people) {
    const figure = document.createElement("figure");
    figure.className = kind(frame.score, answer);
    if (frame.thumbnail) {
      const image = document.createElement("img");
      [image.src, image.alt] = [frame.thumbnail, `face with score ${show(frame.score)}`];
      figure.append(image);
    }
    const who = people > 1 ? `#${frame.face} ` : "";
    const when = frame.time_s === null ? "" : `, ${frame.time_s.toFixed(1)} s`;
    const caption = document.createElement("figcaption");
    caption.textContent = `${who}${show(frame.score, 3)}${when}`;
    figure.append(caption);
    return figure;
  }

  at("form").addEventListener("submit", (event) => event.preventDefault());
  at("file").addEventListener("change", () => {
    const [file] = at("file").files;
    if (file) send(file);
    at("file").value = "";
  });
  at("drop").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") at("file").click();
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      at("drop").classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
    });
  }
})();
