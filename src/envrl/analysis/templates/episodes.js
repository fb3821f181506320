// The page: header, filters in the address, a list that only draws what is in view, and the chosen episode.

const $ = (id) => document.getElementById(id);
const ROW = 52, SPARE = 6;
const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
let state = new URLSearchParams(), listed = [], chosen = -1;

function table(heads, rows, numbers) {
  const line = (name, cells) => el("tr", "", ...cells.map((cell, n) => el(name, numbers.includes(n) ? "number" : "", shown(String(cell)))));
  return el("table", "", el("thead", "", line("th", heads)), el("tbody", "", ...rows.map((cells) => line("td", cells))));
}

function drawHeader() {
  const arms = new Set(DATA.runs.map((run) => run.arm)).size;
  const left = DATA.left_out ? `; ${counted(DATA.left_out, "more episode")} kept and not on this page (--limit)` : "";
  $("counts").textContent = `${counted(EPISODES.length, "episode")}, ${counted(DATA.runs.length, "run")}, ${counted(arms, "arm")}${left}`;
  const form = { conversation: "expected as what follows in the conversation", question: "expected as an answer to a question" };
  const asked = (run) => (run.asked ? `policy after ${run.asked.iteration} iterations, observation ${form[run.asked.form]}` : "not asked");
  const rows = DATA.runs.map((run, n) => [run.name, run.folder, DATA.episodes.filter((e) => e[0] === n).length, asked(run)]);
  $("runs").append(table(["run", "folder", "episodes", "predictions (--predict)"], rows, [2]));
  if (DATA.runs.length > 1) {
    if (DATA.differences.length) $("differences").append(table(["setting", ...DATA.runs.map((run) => run.name)], DATA.differences.map(([key, values]) => [key, ...values]), []));
    else $("differences").append("The runs have the same configuration, up to the seed.");
  }
  SHADES.forEach(([, name, label], n) => $("scale").append(n ? ", " : "", el("span", "token " + name, label)));
}

function drawFilters() {
  const form = $("filters");
  const add = (label, control, name) => { control.name = name; form.append(el("label", "", label, control)); };
  for (const [field, [label]] of Object.entries(FIELDS)) {
    const values = choices(field);
    // A choice of one is none, and runs are told apart by arm and seed unless two share both.
    if (values.length < 2 || (field === "run" && new Set(DATA.runs.map((r) => r.arm + " " + r.seed)).size === DATA.runs.length)) continue;
    const all = el("option", "", "all"), select = el("select", "", all);
    all.value = "";
    for (const [value, count] of values) {
      const option = el("option", "", `${value} (${count})`);
      option.value = value;
      select.append(option);
    }
    add(label, select, field);
  }
  for (const [name, label] of [["min", "turns from"], ["max", "to"]]) {
    const input = el("input");
    input.type = "number";
    input.min = 0;
    add(label, input, name);
  }
  const search = el("input");
  search.type = "search";
  search.placeholder = "in texts and game ids";
  add("search", search, "text");
  const reset = el("button", "", "show all");
  reset.type = "button";
  reset.addEventListener("click", () => { location.hash = chosen < 0 ? "" : new URLSearchParams({ e: listed[chosen].id }); });
  form.append(reset);
  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(readForm, 120); });
  form.addEventListener("submit", (event) => { event.preventDefault(); readForm(); });
}

function readForm() {
  const next = new URLSearchParams();
  for (const control of $("filters").elements) if (control.name && control.value !== "") next.set(control.name, control.value);
  if (state.has("e")) next.set("e", state.get("e"));
  go(next);
}

/** Makes this the address, without an entry in the history for every letter typed. */
function go(next) {
  history.replaceState(null, "", "#" + next);
  follow();
}

/** Shows what the address says. */
function follow() {
  const before = new URLSearchParams(state);
  state = new URLSearchParams(location.hash.slice(1));
  for (const control of $("filters").elements) {
    if (!control.name || control === document.activeElement) continue;
    control.value = state.get(control.name) ?? "";
  }
  const bare = (params) => { const copy = new URLSearchParams(params); copy.delete("e"); return copy.toString(); };
  if (!listed.length || bare(before) !== bare(state)) {
    listed = filtered(state);
    drawSummary();
    $("space").style.height = `${listed.length * ROW}px`;
  }
  const wanted = listed.findIndex((e) => e.id === state.get("e"));
  choose(wanted >= 0 ? wanted : listed.length ? 0 : -1);
}

function drawSummary() {
  const arms = [...new Set(listed.map((e) => e.run.arm))], groups = [["listed", listed]];
  if (arms.length > 1) for (const arm of arms) groups.push([arm, listed.filter((e) => e.run.arm === arm)]);
  const rows = groups.map(([name, episodes]) => [name, summary(episodes)]).filter(([, s]) => s !== null);
  if (!rows.length) { $("summary").replaceChildren(el("p", "bad", "No episode passes these filters.")); return; }
  const asked = rows[0][1].next || rows[0][1].action;
  const heads = ["", "episodes", "won", "mean turns", "inadmissible", ...(asked ? ["next exact", "action exact"] : [])];
  const cells = rows.map(([name, s]) => [name, s.count, percent1(s.won), s.length.toFixed(1), percent1(s.inadmissible), ...(asked ? [s.next, s.action] : [])]);
  $("summary").replaceChildren(table(heads, cells, [1, 2, 3, 4, 5, 6]));
}

const percent1 = (share) => (100 * share).toFixed(1) + " %";

function choose(number) {
  chosen = number;
  const view = $("episode"), rows = $("rows");
  if (number < 0) {
    view.replaceChildren(el("p", "empty", "Nothing to show; widen the filters."));
  } else if (view.dataset.shown !== listed[number].id) {
    view.replaceChildren(episodeView(listed[number]));
    view.scrollTop = 0;
  }
  view.dataset.shown = number < 0 ? "" : listed[number].id;
  const top = number * ROW;
  if (number >= 0 && top < rows.scrollTop) rows.scrollTop = top;
  if (number >= 0 && top + ROW > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW - rows.clientHeight;
  drawRows();
}

function pick(number) {
  if (number < 0 || number >= listed.length) return;
  const next = new URLSearchParams(state);
  next.set("e", listed[number].id);
  go(next);
}

function drawRows() {
  const rows = $("rows"), first = Math.max(0, Math.floor(rows.scrollTop / ROW) - SPARE);
  const last = Math.min(listed.length, Math.ceil((rows.scrollTop + rows.clientHeight) / ROW) + SPARE);
  const drawn = [];
  for (let n = first; n < last; n++) {
    const e = listed[n], row = el("div", "row");
    row.append(el("div", "", el("span", e.won ? "good" : "bad", e.won ? "✓ won " : "✗ not won "), shown(e.family)),
      el("div", "", el("small", "", shown(e.run.arm), ` · seed ${e.run.seed} · iteration ${e.iteration} · ${counted(e.length, "turn")}${e.asked ? " · asked" : ""}`)));
    row.id = `row-${n}`;
    row.style.top = `${n * ROW}px`;
    for (const [name, value] of [["role", "option"], ["aria-selected", n === chosen], ["aria-posinset", n + 1], ["aria-setsize", listed.length]]) row.setAttribute(name, value);
    row.addEventListener("click", () => pick(n));
    drawn.push(row);
  }
  rows.replaceChildren($("space"), ...drawn);
  if (chosen >= first && chosen < last) rows.setAttribute("aria-activedescendant", `row-${chosen}`);
  else rows.removeAttribute("aria-activedescendant");
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const inList = event.target.closest("#rows") !== null, page = Math.max(1, Math.floor($("rows").clientHeight / ROW) - 1);
  const steps = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -listed.length, End: listed.length } : {}) };
  if (event.key === "/") $("filters").elements.text.focus();
  else if (event.key in steps) pick(Math.min(listed.length - 1, Math.max(0, chosen + steps[event.key])));
  else return;
  event.preventDefault();
}

drawHeader();
drawFilters();
$("rows").addEventListener("scroll", drawRows);
window.addEventListener("resize", drawRows);
window.addEventListener("hashchange", follow);
document.addEventListener("keydown", keys);
follow();
