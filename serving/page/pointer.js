// The class under the pointer, which follows the mouse or the arrow keys.

import { classColor, className, setColor } from "./legend.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Shows the class under the pointer over element.frame. `currentAnswer` returns the answer, or null. The returned
// `hide` hides the pointer until it moves again.
export function trackPointer(element, currentAnswer) {
  // The position is stored as fractions of the picture's width and height.
  let position = null;

  function hide() {
    position = null;
    element.cross.hidden = element.tip.hidden = true;
    for (const item of element.legend.children) item.classList.remove("pointed");
  }

  function show(x, y, byKey) {
    hide();
    const answer = currentAnswer();
    if (!answer) return;
    position = { x, y };
    const column = Math.min(answer.width - 1, Math.max(0, Math.floor(x * answer.width)));
    const row = Math.min(answer.height - 1, Math.max(0, Math.floor(y * answer.height)));
    const id = answer.ids[row * answer.width + column], name = className(answer.version, id);
    element["tip-text"].textContent = name;
    setColor(element.tip, classColor(answer.version, id));
    element.legend.querySelector(`[data-id="${id}"]`)?.classList.add("pointed");
    element.tip.hidden = false;
    element.cross.hidden = !byKey;
    placeTip(x * element.frame.clientWidth, y * element.frame.clientHeight);
    // Screen readers announce the status, which keyboard users may need.
    if (byKey) element.status.textContent = `${name} at ${column}, ${row}`;
  }

  function placeTip(left, top) {
    const { clientWidth, clientHeight } = element.frame, { offsetWidth, offsetHeight } = element.tip;
    Object.assign(element.cross.style, { left: `${left}px`, top: `${top}px` });
    // The tip goes to the left of the pointer if there is no room on the right.
    const beside = left + 16 + offsetWidth < clientWidth ? left + 14 : left - 12 - offsetWidth;
    const above = Math.min(Math.max(2, top - offsetHeight / 2), clientHeight - offsetHeight - 2);
    Object.assign(element.tip.style, { left: `${Math.max(2, beside)}px`, top: `${above}px` });
  }

  function onMove(event) {
    const box = element.frame.getBoundingClientRect();
    show((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, false);
  }

  function onKey(event) {
    if (event.key === "Escape") hide();
    const move = MOVES[event.key], answer = currentAnswer();
    if (!move || !answer) return;
    // Without this the arrow keys would also scroll the page.
    event.preventDefault();
    const from = position ?? { x: 0.5, y: 0.5 }, distance = event.shiftKey ? 0.1 : 0.01;
    const moved = (value, step) => Math.min(1, Math.max(0, value + step * distance));
    show(moved(from.x, move[0]), moved(from.y, move[1]), true);
  }

  element.frame.addEventListener("pointermove", onMove);
  element.frame.addEventListener("pointerdown", onMove);
  element.frame.addEventListener("pointerleave", hide);
  element.frame.addEventListener("blur", hide);
  element.frame.addEventListener("keydown", onKey);
  return { hide };
}
