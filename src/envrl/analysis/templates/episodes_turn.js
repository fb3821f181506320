// One episode as nodes.

const FINISH = { length: "cut off at the most tokens of an answer" };

/** A probability for people: per cent, and few digits where it is small. */
function percent(share) {
  const value = 100 * share;
  return (value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toExponential(0)) + " %";
}

/** Class of a token by its probability; the limits stand in the legend. */
const SHADES = [[0.9, "s0", "above 90 %"], [0.5, "s1", "50 to 90 %"], [0.2, "s2", "20 to 50 %"], [0.05, "s3", "5 to 20 %"], [-1, "s4", "below 5 % (dotted)"]];
const shade = (surprise) => SHADES.find(([least]) => Math.exp(-surprise / 1000) > least)[1];

function part(name, ...content) {
  const body = el("div", "", ...content);
  return el("div", "part", el("div", "name", name), body);
}

function folded(label, make) {
  const made = el("details", "", el("summary", "", label));
  made.addEventListener("toggle", () => { if (made.open && made.childElementCount === 1) made.append(make()); });
  return made;
}

/** What was written, token by token, with a line that tells the number of the one pointed at. */
function written(pieces, surprises) {
  const line = el("div", "text code boxed"), readout = el("div", "readout");
  const total = surprises.reduce((sum, s) => sum + s, 0) / -1000;
  const whole = `${pieces.length} tokens, log-probability ${total.toFixed(2)} in all; point at one, or use ← and →`;
  const tokens = pieces.map((piece, n) => {
    const token = el("span", "token " + shade(surprises[n]));
    token.dataset.n = n;
    piece.split("\n").forEach((bit, k) => { if (k) token.append(el("span", "ctl", "↵"), "\n"); token.append(shown(bit)); });
    return token;
  });
  let at = -1;
  const tell = (n) => {
    if (at >= 0) tokens[at].classList.remove("at");
    at = n;
    if (n < 0) { readout.textContent = whole; return; }
    tokens[n].classList.add("at");
    readout.replaceChildren(`token ${n + 1} of ${pieces.length}: “`, shown(pieces[n].replaceAll("\n", "↵")),
      `” log-probability ${(-surprises[n] / 1000).toFixed(3)} (${percent(Math.exp(-surprises[n] / 1000))})`);
  };
  line.append(...tokens);
  line.tabIndex = 0;
  line.setAttribute("role", "group");
  line.setAttribute("aria-label", "Written tokens; left and right arrow keys tell their log-probabilities");
  readout.setAttribute("aria-live", "polite");
  const pointed = (event) => { const token = event.target.closest(".token"); if (token) tell(Number(token.dataset.n)); };
  line.addEventListener("mouseover", pointed);
  line.addEventListener("click", pointed);
  line.addEventListener("mouseleave", () => tell(-1));
  line.addEventListener("blur", () => tell(-1));
  line.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || tokens.length === 0) return;
    event.preventDefault();
    tell(at < 0 && step < 0 ? tokens.length - 1 : Math.min(tokens.length - 1, Math.max(0, at + step)));
  });
  tell(-1);
  return [line, readout];
}

const badge = (good, label) => el("span", "badge " + (good ? "good" : "bad"), label);

/** What was expected beside what happened, differences marked, and remarks below. */
function beside(name, word, given, truth, remarks) {
  const [left, right] = compared(given.trim(), truth.trim()), same = given.trim() === truth.trim();
  const half = (label, content) => el("div", "", el("div", "name", ...label), el("div", "text boxed", content));
  const both = el("div", "pair", half([word, badge(same, same ? "✓ the same" : "✗ differs")], left), half(["true"], right));
  return part(name, both, ...remarks.filter((remark) => remark).map((remark) => el("p", "", remark)));
}

/** What the run's last policy expected. */
function expected(run, iteration, action, next, [sp, spCut, id, idCut]) {
  const box = el("div", "expected"), asked = run.asked;
  const untrained = (name, words_) => (asked.trained.includes(name) ? "" : `The run was not trained in ${words_}.`);
  const after = asked.iteration === iteration ? "" : `, not the one after ${iteration} that played this episode`;
  box.append(el("p", "", `Asked: the run's last policy, after ${asked.iteration} iterations${after}.`));
  if (sp >= 0) {
    const ended = !spCut ? "" : asked.form === "question" ? "Cut off: no end within the tokens it was given."
      : "As many tokens as the true one has: where it ends is not trained in this form.";
    box.append(beside("next observation", "expected", text(sp), next, [ended, untrained("sp", "state prediction")]));
  }
  if (id >= 0 && action !== null) {
    box.append(beside("action between them", "guessed", text(id), action, [idCut ? "Cut off: no end within the tokens it was given." : "", untrained("id", "inverse dynamics")]));
  }
  return box;
}

/** One environment step. */
function turnView(episode, number) {
  const [prompt, observation, admissible, pieces, surprises, finish, action, flags, reward, next, answers] = episode.turns[number];
  const box = el("section", "turn"), head = el("h3", "", `Turn ${number + 1}`);
  head.id = `turn-${number + 1}`;
  box.setAttribute("aria-labelledby", head.id);
  const allowed = texts(admissible), done = text(action), end = FINISH[text(finish)];
  box.append(head, part("observation", el("div", "text", shown(text(observation)))));
  if (allowed.length) box.append(part("", folded(`${allowed.length} admissible actions`, () => el("div", "text code", shown(allowed.join("\n"))))));
  box.append(part("", folded(number ? "prompt since the last answer, with markup" : "prompt, with markup", () => el("div", "text code boxed", shown(joined(prompt))))));
  box.append(part("written", ...written(texts(pieces), surprises)));
  const acted = done === null ? el("span", "bad", "none could be read from the answer") : el("span", "text code", shown(done));
  const badges = done === null ? [] : [badge((flags & 2) !== 0, flags & 2 ? "✓ admissible" : "✗ not admissible")];
  if (!(flags & 1)) badges.push(badge(false, "✗ wrong format"));
  if (end) badges.push(badge(false, "✂ " + end));
  if (reward !== 0) badges.push(el("span", "badge", `reward ${reward}`));
  box.append(part("action", acted, ...badges));
  if (number === episode.turns.length - 1) box.append(part("at the end", el("div", "text", shown(text(next)))));
  if (answers !== 0) box.append(expected(episode.run, episode.iteration, done, text(next), answers));
  return box;
}

/** The whole episode. */
function episodeView(episode) {
  const part_ = document.createDocumentFragment(), fact = (name, value) => el("span", "", name + " ", el("b", "", shown(String(value))));
  const outcome = el("span", episode.won ? "good" : "bad", episode.won ? "✓ won" : "✗ not won");
  const reward = episode.turns.reduce((sum, turn) => sum + turn[8], 0);
  part_.append(el("h2", "", shown(episode.family), " · ", outcome));
  part_.append(el("div", "facts", fact("arm", episode.run.arm), fact("seed", episode.run.seed), fact("iteration", episode.iteration),
    fact("turns", episode.length), fact("ended by", episode.stop.replaceAll("_", " ")), fact("return", Number(reward.toFixed(4))),
    fact("task score", episode.score), fact("game", episode.game)));
  if (episode.fault !== null) part_.append(el("p", "bad text", "The environment failed: ", shown(episode.fault)));
  episode.turns.forEach((_, number) => part_.append(turnView(episode, number)));
  if (episode.turns.length === 0) part_.append(el("p", "empty", "It ended before the first turn."));
  return part_;
}
