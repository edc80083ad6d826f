// The page: sends a picture to the server's REST API, and draws the returned class ids over it.

import { classColor, fillLists } from "./legend.js";
import { decodeIds, download, drawOverlay, openPicture, paintIds } from "./pictures.js";
import { trackPointer } from "./pointer.js";
import { Failure, fetchModels, predict, sizeText } from "./requests.js";

// Larger pictures are reduced on the screen. The pointer and the saved files use the full resolution.
const MAX_SHOWN_SIDE = 2048;
const element = Object.fromEntries([...document.querySelectorAll("[id]")].map(node => [node.id, node]));

let server = { models: [], samples: [], max_request_bytes: Infinity };
let picture = null, answer = null, hidden = new Set(), running = null, lastTask = null;

function selectedModel() {
  return server.models.find(model => model.name === element.model.value);
}

function selectedVersion() {
  const versions = selectedModel()?.versions ?? [];
  // Versions are listed newest first, and an empty choice selects the newest.
  return versions.find(({ version }) => version === element.version.value) ?? versions[0];
}

// ---- models, versions and samples

function setOptions(select, choices, previous) {
  select.replaceChildren(...choices.map(({ value, text, disabled = false }) => {
    const option = new Option(text, value);
    option.disabled = disabled;
    return option;
  }));
  const usable = choices.filter(choice => !choice.disabled).map(choice => choice.value);
  select.value = usable.includes(previous) ? previous : usable[0] ?? "";
  select.disabled = usable.length < 2;
}

function modelProblem(model) {
  if (model.versions.length === 0) return "not available";
  return model.versions.every(({ problem }) => problem) ? "not for pictures" : "";
}

function showModels() {
  setOptions(element.model, server.models.map(model => {
    const problem = modelProblem(model);
    return { value: model.name, text: problem ? `${model.name} (${problem})` : model.name, disabled: problem !== "" };
  }), element.model.value);
  showVersions();
}

function showVersions() {
  const model = selectedModel();
  const choices = (model?.versions ?? []).map(({ version, problem }) => {
    const labels = Object.entries(model.labels).filter(([, number]) => number === version).map(([name]) => name);
    return { value: version, text: [version, ...labels].join(" · "), disabled: Boolean(problem) };
  });
  if (choices.length) {
    choices.unshift({ value: "", text: `newest (${choices[0].value})`, disabled: choices[0].disabled });
  }
  setOptions(element.version, choices, element.version.value);
  showLegend();
}

function showSamples() {
  element.samples.replaceChildren(...server.samples.map(name => {
    const item = document.createElement("li"), button = document.createElement("button"), image = new Image();
    const title = name.replace(/\.[^.]*$/, "");
    image.alt = `Sample ${title}`;
    image.loading = "lazy";
    image.src = `page/samples/${encodeURIComponent(name)}`;
    button.type = "button";
    button.title = title;
    button.ariaPressed = "false";
    button.append(image);
    button.addEventListener("click", () => attempt(async () => {
      const response = await fetch(image.src).catch(() => null);
      if (!response?.ok) {
        throw new Failure("The sample is missing", `The server did not send ${name}.`, { retryable: true });
      }
      await usePicture(new File([await response.blob()], name), button);
    }));
    item.append(button);
    return item;
  }));
}

async function refresh() {
  const previous = JSON.stringify(server.models), chosen = element.model.value;
  server = await fetchModels();
  if (JSON.stringify(server.models) !== previous) showModels();
  // Another model must not replace the chosen one silently.
  if (chosen && selectedVersion() && element.model.value !== chosen) {
    throw new Failure("The model is no longer available", `This server has stopped serving ${chosen}. `
      + `Try again to use ${element.model.value}.`, { retryable: true });
  }
  if (!selectedVersion() || selectedVersion().problem) {
    const problems = server.models.map(
      model => `${model.name}: ${model.versions[0]?.problem ?? "no version is available"}`);
    throw new Failure("No usable model", `This server has no available model for pictures. ${problems.join("; ")}`,
      { retryable: true });
  }
}

// ---- errors

// Runs a task and shows its errors, which the user may retry. A new task aborts the previous one.
async function attempt(task) {
  running?.abort();
  const controller = running = new AbortController();
  lastTask = task;
  element.error.hidden = true;
  showBusy(true);
  try {
    await task(controller.signal);
  } catch (error) {
    if (controller === running && error.name !== "AbortError") showError(error);
  } finally {
    if (controller === running) showBusy(false);
  }
}

function showBusy(waiting) {
  element.busy.hidden = !waiting;
  element.stage.ariaBusy = String(waiting);
}

function showError(error) {
  const known = error instanceof Failure;
  if (!known) console.error(error);
  element["error-title"].textContent = known ? error.title : "Something went wrong on this page";
  element["error-text"].textContent = error.text ?? error.message;
  element["error-server"].textContent = error.server ?? "";
  element["error-more"].hidden = !error.server;
  element.retry.hidden = !error.retryable;
  element.status.textContent = "";
  element.error.hidden = false;
  element.error.scrollIntoView({ block: "nearest" });
}

// ---- a picture and its answer

async function usePicture(file, sample = null) {
  const controller = running, opened = await openPicture(file);
  if (controller !== running) return;
  picture?.bitmap.close();
  picture = opened;
  for (const button of element.samples.querySelectorAll("button")) button.ariaPressed = String(button === sample);
  showPicture();
  lastTask = segment;
  await segment(controller.signal);
}

async function segment(signal) {
  const controller = running, sent = picture;
  clearAnswer();
  await refresh();
  const version = selectedVersion(), model = element.model.value;
  element.status.textContent = `Waiting for ${model}, version ${version.version} …`;
  const result = await predict(model, version.version, sent.blob, server.max_request_bytes, signal);
  const decoded = await decodeIds(result.png);
  // The user has chosen another picture or version in the meantime.
  if (controller !== running) return;
  if (decoded.width !== sent.bitmap.width || decoded.height !== sent.bitmap.height) {
    throw new Failure("The response does not match the picture", `The class ids are ${decoded.width} × `
      + `${decoded.height}, the picture is ${sent.bitmap.width} × ${sent.bitmap.height}.`);
  }
  answer = { ...decoded, ...result, version };
  showAnswer(model);
}

// Clears the previous answer, which belongs to another picture or version.
function clearAnswer() {
  answer = null;
  const context = element.overlay.getContext("2d");
  context.clearRect(0, 0, element.overlay.width, element.overlay.height);
  for (const id of ["latency", "sent", "received"]) element[id].textContent = "–";
  pointer.hide();
  showLegend();
}

function showPicture() {
  const { width, height } = picture.bitmap, scale = Math.min(1, MAX_SHOWN_SIDE / Math.max(width, height));
  for (const canvas of [element.picture, element.overlay]) {
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
  }
  const context = element.picture.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture.bitmap, 0, 0, element.picture.width, element.picture.height);
  element.frame.style.setProperty("--aspect", width / height);
  element.frame.ariaLabel = `${picture.name} with the colors of its classes`;
  element.frame.hidden = false;
  element.empty.hidden = true;
  element.stage.classList.remove("blank");
  element.tools.hidden = false;
  const note = picture.note ? ` · ${picture.note}` : "";
  element.about.textContent = `${picture.name} · ${width} × ${height}${note}`;
  pointer.hide();
}

function showAnswer(model) {
  element.latency.textContent = `${answer.milliseconds.toFixed(answer.milliseconds < 100 ? 1 : 0)} ms`;
  element.sent.textContent = sizeText(answer.sent);
  element.received.textContent = sizeText(answer.received);
  const present = showLegend();
  paint();
  const count = `${present.length} class${present.length === 1 ? "" : "es"}`;
  element.status.textContent = `${count} found by ${model}, version ${answer.version.version}.`;
}

function paint() {
  paintIds(element.overlay, answer, id => classColor(answer.version, id), hidden);
}

function showLegend() {
  const shown = answer?.version ?? selectedVersion();
  const lists = { present: element.legend, absent: element["absent-classes"] };
  const { present, absent } = shown ? fillLists(lists, shown, answer, hidden, toggle)
    : fillLists(lists, { classes: [] }, null, hidden, toggle);
  element.absent.hidden = absent.length === 0;
  element["absent-title"].textContent = `${absent.length} not in this picture`;
  for (const id of ["opacity", "save-ids", "save-overlay", "show-all", "hide-all"]) element[id].disabled = !answer;
  const unnamed = shown && shown.classes.length === 0 ? "This model has no class names." : "";
  element["legend-note"].textContent = shown?.note ? `${unnamed} ${shown.note}` : unnamed;
  element["legend-note"].hidden = element["legend-note"].textContent === "";
  return present;
}

function toggle(id, visible) {
  if (visible) hidden.delete(id);
  else hidden.add(id);
  paint();
}

function toggleAll(visible) {
  hidden = new Set(visible ? [] : [...answer.counts.keys()].filter(id => answer.counts[id] > 0));
  showLegend();
  paint();
}

// ---- saving

const save = (blob, suffix) => download(blob, picture.name.replace(/\.[^.]*$/, "") + suffix);

async function saveOverlay() {
  const canvas = drawOverlay(picture.bitmap, answer, id => classColor(answer.version, id), hidden,
    element.opacity.value / 100);
  save(await canvas.convertToBlob({ type: "image/png" }), "-overlay.png");
}

function showOpacity() {
  element.overlay.style.opacity = element.opacity.value / 100;
  element["opacity-text"].textContent = `${element.opacity.value} %`;
}

// ---- start

function listen() {
  const useFirst = files => files.length && attempt(() => usePicture(files[0]));
  for (const button of document.querySelectorAll(".choose")) {
    button.addEventListener("click", () => element.file.click());
  }
  element.file.addEventListener("change", () => {
    useFirst([...element.file.files]);
    // Clearing the value lets the user choose the same file again.
    element.file.value = "";
  });
  document.addEventListener("dragover", event => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", event => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    useFirst([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", event => useFirst([...event.clipboardData.files]));
  const resegment = () => picture && attempt(segment);
  element.model.addEventListener("change", () => { hidden.clear(); showVersions(); resegment(); });
  element.version.addEventListener("change", () => { showLegend(); resegment(); });
  element.retry.addEventListener("click", () => attempt(lastTask));
  element.opacity.addEventListener("input", showOpacity);
  element["show-all"].addEventListener("click", () => toggleAll(true));
  element["hide-all"].addEventListener("click", () => toggleAll(false));
  element["save-ids"].addEventListener("click", () => save(answer.png, "-ids.png"));
  element["save-overlay"].addEventListener("click", saveOverlay);
}

element.stage.classList.add("blank");
const pointer = trackPointer(element, () => answer);
listen();
showOpacity();
attempt(async () => {
  try {
    await refresh();
  } finally {
    showSamples();
  }
});
