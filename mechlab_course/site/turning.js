// Moves bars and needles among steps that the model computed before, and shows what is inside a part.
"use strict";

/** A number with its sign, as the words of the page have it. */
const signed = (x) => (x < 0 ? "-" : "+") + Math.abs(x).toFixed(2);

function wake(box, parts) {
  const { strengths, words, steps } = JSON.parse(box.querySelector("script").textContent);
  const sliders = [...box.querySelectorAll("input")];
  const held = box.querySelector("select");
  const status = box.querySelector("[role=status]");
  const rows = [...box.querySelectorAll(".likely tr")];
  const late = [...box.querySelectorAll(".late")].map((each) => {
    const [text, picture] = [each.querySelector("code"), each.querySelector("svg")];
    const [zero, one] = [...picture.querySelectorAll("text")].map((tick) => Number(tick.getAttribute("x")));
    const ends = picture.querySelector("path").getAttribute("d").match(/[\d.]+/g).map(Number);
    return { name: held.options[0] && text.parentElement.firstChild.data, text, picture, zero, way: one - zero, ends };
  });

  function step() {
    let place = 0;
    for (const slider of sliders) place = place * strengths.length + strengths.indexOf(Number(slider.value));
    return steps[place * held.options.length + Number(held.value)];
  }

  /** Show the step where the sliders stand; say it in words too when a slider has been let go. */
  function show(say) {
    const now = step();
    const said = rows.map((row, n) => {
      const [token, p] = [words[now[2 * n]], now[2 * n + 1] / 1000];
      const [name, bar, value] = row.cells;
      name.textContent = token;
      bar.firstElementChild.style.width = `${100 * p}%`;
      value.firstElementChild.textContent = p.toFixed(2);
      return `${token} ${p.toFixed(2)}`;
    });
    const gone = late.map(({ name, text, picture, zero, way, ends }, n) => {
      const share = now[2 * rows.length + n] / 100;
      const at = Math.min(Math.max(zero + way * share, ends[0]), ends[2]);
      text.textContent = share.toFixed(2);
      picture.querySelector(".mechlab-needle").setAttribute("transform", `translate(${at} 0)`);
      const told = `${name}${share.toFixed(2)} of the way gone`;
      picture.setAttribute("aria-label", told);
      return `. ${told}`;
    });
    const stand = sliders.map((slider) => {
      const strength = signed(Number(slider.value));
      box.querySelector(`output[for="${slider.id}"]`).textContent = strength;
      slider.setAttribute("aria-valuetext", strength);
      return `${slider.labels[0].textContent} at ${strength}`;
    });
    if (say) status.textContent = `${stand.join(", ")}: ${said.join(", ")}${gone.join("")}.`;
  }

  for (const control of [...sliders, held]) {
    control.addEventListener("input", () => show(false));
    control.addEventListener("change", () => show(true));
  }
  box.querySelector(".back").addEventListener("click", () => {
    sliders.forEach((slider) => (slider.value = 0));
    held.value = 0;
    show(true);
  });

  const buttons = [...box.querySelectorAll(".canvas button")];
  const inside = box.querySelector(".inside");
  buttons.forEach((button, n) => {
    button.disabled = false;
    button.title = button.ariaLabel;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      inside.replaceChildren(...[...parts[n].children].map((part) => part.cloneNode(true)));
    });
  });
  inside.setAttribute("role", "status");
  box.querySelector(".controls").hidden = false;
  show(false);
}

for (const box of document.querySelectorAll(".turning")) {
  let next = box.nextElementSibling;
  while (!next.matches(".parts")) next = next.nextElementSibling;
  wake(box, next.querySelectorAll(".part"));
}
