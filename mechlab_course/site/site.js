// The script of every page: figures that answer to the mouse, the search, and paper. Pages read well without it.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const scripts = {};

/** Load a script of the site once. */
function load(name) {
  scripts[name] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `assets/${name}`;
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
  return scripts[name];
}

/** Break a title into lines that fit; returns how many pixels higher it is then. */
function broken(title, width) {
  const lines = [""];
  for (const word of (title?.text || "").split(" ")) {
    if (lines.at(-1) && (lines.at(-1).length + word.length) * 8 > width) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trim());
  }
  if (title) Object.assign(title, { text: lines.join("<br>"), font: { size: 14 } });
  return 18 * (lines.length - 1);
}

/** Make a figure as narrow as a telephone: titles take several lines, names stand up, what stood beside stands below. */
function narrow({ data, layout }, room) {
  const { margin, xaxis, yaxis } = layout;
  const above = broken(layout.title, room);
  if (margin.l > 64) margin.l *= 0.8; // names of rows, in smaller letters
  if (margin.r <= 24) margin.r = 8; // if more, something is written there
  let below = broken(xaxis.title, room - margin.l);
  xaxis.tickfont = yaxis.tickfont = { size: 10 };
  const names = [xaxis.ticktext || data[0].x].flat().filter((name) => typeof name === "string");
  const longest = Math.max(0, ...names.flatMap((name) => name.split("<br>")).map((name) => name.length)) * 6;
  if (!xaxis.tickangle && longest > (room - margin.l) / names.length) {
    Object.assign(xaxis, { tickangle: -90, automargin: true });
    below += longest - 24;
  }
  const bottom = { orientation: "h", y: 0, yref: "container", yanchor: "bottom" };
  if (data[0].type === "heatmap" && data[0].showscale !== false) {
    data[0].colorbar = { ...bottom, thickness: 12 };
    below += 48;
  } else if (data.length > 1 && !(layout.legend?.y < 0)) {
    layout.legend = { ...layout.legend, ...bottom, x: 0, xanchor: "left" };
    below += 19 * data.length;
  }
  margin.t += above;
  margin.b += below;
  Object.assign(layout, { width: room, height: layout.height + above + below });
}

/** Whether a figure can be drawn as narrow as its paper. If not, as with large marks, its picture stays, which fits. */
function fits({ data, layout }, room) {
  if (!layout) return room >= 544; // an attention view
  const panels = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).length;
  const large = data.some(({ marker }) => marker?.size > 14);
  return room >= (panels > 1 ? 130 * panels : large ? 520 : 0);
}

/** Draw the figure of a paper in place of its stored picture, which stays for print and for who cannot see. */
async function draw(paper) {
  const content = JSON.parse(paper.querySelector("script").textContent);
  const plotted = paper.classList.contains("plot");
  const room = paper.clientWidth - 20;
  if (!fits(content, room)) return;
  await load(plotted ? "plotly.min.js" : "circuitsvis.js");
  const live = document.createElement("div");
  live.className = "live";
  live.id = `${paper.parentElement.id}-live`;
  live.setAttribute("aria-hidden", "true"); // the picture's words say it, and so does the caption
  paper.append(live);
  try {
    if (plotted) {
      const { data, layout } = content;
      layout.dragmode = false; // a finger scrolls the page
      if (room < 520) narrow(content, room);
      else layout.width = Math.min(layout.width, room);
      await Plotly.newPlot(live, data, layout, { displayModeBar: false });
    } else {
      CircuitsVis.render(live.id, CircuitsVis.AttentionHeads, content);
    }
    paper.classList.add("drawn");
  } catch (error) {
    live.remove();
  }
}

const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }
  },
  { rootMargin: "400px" },
);
all(".plot, .attention").forEach((paper) => near.observe(paper));

// Only what scrolls needs a stop of the tab key.
const frames = all("pre, .scroll, .paper");
const stops = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth + 1 || target.scrollHeight > target.clientHeight + 1) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
frames.forEach((frame) => stops.observe(frame));

// The table of contents is folded where it would push the text away.
const contents = document.querySelector(".contents details");
const wide = matchMedia("(min-width: 70rem)");
const fold = () => contents && (contents.open = wide.matches);
wide.addEventListener("change", fold);
fold();

// Paper cannot be unfolded.
let closed = [];
addEventListener("beforeprint", () => {
  closed = all("main details:not([open])");
  closed.forEach((part) => (part.open = true));
});
addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));

/** Unfold what an anchor leads into. */
function reach() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target && target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
}
addEventListener("hashchange", reach);
reach();

// Search -------------------------------------------------------------------------------------------------------------

const dialog = document.getElementById("search");
const [field, status, list] = ["input", "[role=status]", "ol"].map((selector) => dialog.querySelector(selector));
const opener = document.querySelector(".find");
opener.hidden = false;

function open() {
  dialog.showModal();
  field.select();
  load("search-index.js").then(() => field.value && answer());
}

/** Sections that hold every word asked for, the best first. A word is also found by its beginning. */
function find(text) {
  const { sections, words } = window.mechlabIndex;
  let found = null;
  const asked = text.toLowerCase().match(/[a-z0-9_]+(?:[.+×-][a-z0-9_]+)*/g) || [];
  for (const word of asked) {
    const scores = new Map();
    for (const [key, packed] of Object.entries(words)) {
      if (!key.startsWith(word)) continue;
      let section = 0;
      for (const step of packed.split(" ")) {
        section += parseInt(step, 36);
        const heading = sections[section][2].toLowerCase();
        const named = heading === word ? 12 : heading.includes(word) ? 6 : 0;
        const score = (key === word ? 3 : 1) + named;
        scores.set(section, Math.max(score, scores.get(section) || 0));
      }
    }
    const before = found;
    found = new Map();
    for (const [section, score] of scores) {
      if (!before || before.has(section)) found.set(section, score + (before ? before.get(section) : 0));
    }
  }
  return [...(found || [])].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([section]) => section);
}

function answer() {
  if (!window.mechlabIndex) return;
  const { pages, sections } = window.mechlabIndex;
  const found = find(field.value);
  const shown = found.slice(0, 25).map((number) => {
    const [page, anchor, heading, excerpt] = sections[number];
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `${pages[page][0]}#${anchor}`;
    const strong = document.createElement("strong");
    strong.textContent = heading;
    const where = document.createElement("span");
    where.textContent = pages[page][1] === heading ? "" : pages[page][1];
    link.append(strong, " ", where);
    const said = document.createElement("p");
    said.textContent = excerpt;
    item.append(link, said);
    return item;
  });
  list.replaceChildren(...shown);
  const count = found.length === 1 ? "1 section" : `${found.length} sections`;
  status.textContent = field.value.trim() ? count + (found.length > shown.length ? `, the first ${shown.length} of them here` : "") : "";
}

opener.addEventListener("click", open);
field.addEventListener("input", answer);
list.addEventListener("click", (event) => event.target.closest("a") && dialog.close());
dialog.querySelector("form").addEventListener("submit", (event) => {
  if (event.submitter && event.submitter.matches("button") && document.activeElement !== field) return;
  event.preventDefault(); // Enter in the field goes to the first result
  list.querySelector("a")?.click();
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, [contenteditable]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    open();
  }
  if (dialog.open && event.key === "Escape") {
    event.preventDefault(); // some browsers would only empty the field
    dialog.close();
  }
  if (dialog.open && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    const stops = [field, ...all("a", list)];
    const next = stops.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    stops[Math.max(0, Math.min(next, stops.length - 1))].focus();
  }
});
