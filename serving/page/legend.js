// The list of classes: those in the picture with a switch and a percentage, largest first, and the absent ones.

export function percentText(part, whole) {
  const percent = 100 * part / whole;
  return percent > 0 && percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
}

export function className(version, id) {
  // A model without class names shows numbers.
  return version.classes[id] ?? `class ${id}`;
}

export function classColor(version, id) {
  // Gray marks an id without a color in the model's list.
  return version.palette[id] ?? [128, 128, 128];
}

export function setColor(element, color) {
  element.style.setProperty("--color", `rgb(${color.join(" ")})`);
  // The tick must stand out against the color.
  const light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 150;
  element.style.setProperty("--tick", light ? "#000" : "#fff");
}

function createElement(tag, classes, text = "") {
  const element = document.createElement(tag);
  element.className = classes;
  element.textContent = text;
  return element;
}

// Returns the list item of a class. `counted` is null before there is an answer.
function createItem(version, id, counted, toggled) {
  const item = document.createElement("li");
  item.dataset.id = id;
  setColor(item, classColor(version, id));
  const row = document.createElement(counted ? "label" : "div");
  if (counted) {
    const input = createElement("input", "");
    input.type = "checkbox";
    input.checked = !counted.hidden.has(id);
    input.addEventListener("change", () => toggled(id, input.checked));
    const bar = createElement("span", "bar"), filled = document.createElement("span");
    filled.style.width = `${100 * counted.counts[id] / counted.total}%`;
    bar.append(filled);
    row.append(input, createElement("span", "name", className(version, id)),
      createElement("span", "percent", percentText(counted.counts[id], counted.total)), bar);
  } else {
    row.append(createElement("span", "swatch"), createElement("span", "name", className(version, id)));
  }
  item.append(row);
  return item;
}

// Fills the lists of present and absent classes, and returns their ids. Without an answer all classes are in the first
// list, without percentages.
export function fillLists(lists, version, answer, hidden, toggled) {
  const all = version.classes.map((_, id) => id);
  if (!answer) {
    lists.present.replaceChildren(...all.map(id => createItem(version, id, null, toggled)));
    lists.absent.replaceChildren();
    return { present: [], absent: [] };
  }
  const counted = { counts: answer.counts, total: answer.width * answer.height, hidden };
  const present = [...answer.counts.keys()].filter(id => answer.counts[id] > 0)
    .sort((one, other) => answer.counts[other] - answer.counts[one]);
  const absent = all.filter(id => answer.counts[id] === 0);
  lists.present.replaceChildren(...present.map(id => createItem(version, id, counted, toggled)));
  lists.absent.replaceChildren(...absent.map(id => createItem(version, id, null, toggled)));
  return { present, absent };
}
