// The pair on the page, its two pictures by click or key, and both enlarged alike. `element`, `trigger` and `watch` are
// those of Gradio's HTML component.
const KEYS = { 1: 1, ArrowLeft: 1, 2: 2, ArrowRight: 2 };
const SCALES = [1, 2, 4];
const ELSEWHERE = "input, textarea, select, [contenteditable], [role=tab], [role=radio], [role=listbox], [role=slider]";
let scale = 1;
let last = null;

const pair = () => element.querySelector("[data-pair]");
const frames = () => [...element.querySelectorAll(".frame")];

function choose(number) {
  const now = pair();
  if (!now || now.dataset.answer) return;
  now.dataset.answer = number;
  last = document.activeElement?.closest?.(".choice")?.dataset.choose ?? null;
  trigger("choose", { pair: Number(now.dataset.pair), picture: number });
}

function enlarge(to) {
  scale = to;
  const button = element.querySelector(".closer");
  if (!button) return;
  button.setAttribute("aria-pressed", String(scale > 1));
  button.textContent = scale > 1 ? `${scale} ×` : "Closer";
  for (const frame of frames()) {
    frame.style.setProperty("--scale", scale);
    frame.classList.toggle("large", scale > 1);
    frame.scrollLeft = (frame.scrollWidth - frame.clientWidth) / 2;
    frame.scrollTop = (frame.scrollHeight - frame.clientHeight) / 2;
  }
}

const closer = () => enlarge(SCALES[(SCALES.indexOf(scale) + 1) % SCALES.length]);

function arrived() {
  if (!element.querySelector(".blind:not(.result)")) scale = 1;
  enlarge(scale);
  for (const frame of frames())
    frame.addEventListener("scroll", () => {
      for (const other of frames())
        if (other !== frame && (other.scrollLeft !== frame.scrollLeft || other.scrollTop !== frame.scrollTop))
          other.scrollTo(frame.scrollLeft, frame.scrollTop);
    });
  if (pair() && matchMedia("(max-width: 760px)").matches) element.scrollIntoView({ block: "start" });
  if (last && pair()) element.querySelector(`.choice[data-choose="${last}"]`).focus({ preventScroll: true });
  if (last) element.querySelector(".result")?.focus();
}

element.addEventListener("click", (event) => {
  if (event.target.closest(".closer")) return closer();
  const chosen = event.target.closest("[data-choose]");
  if (chosen) choose(Number(chosen.dataset.choose));
});

document.addEventListener("keydown", (event) => {
  const here = element.isConnected && element.offsetParent !== null && pair();
  if (!here || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.(ELSEWHERE)) return;
  if (event.key === "z") closer();
  else if (KEYS[event.key]) {
    event.preventDefault();
    choose(KEYS[event.key]);
  }
});

watch("value", arrived);
arrived();
