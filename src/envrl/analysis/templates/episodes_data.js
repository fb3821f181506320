// The data of the page, its filters, and what they leave.

const DATA = JSON.parse(document.getElementById("data").textContent);
const text = (number) => (number < 0 ? null : DATA.strings[number]);
const texts = (number) => DATA.lists[number].map((n) => DATA.strings[n]);
const joined = (number) => texts(number).join("");

const EPISODES = DATA.episodes.map(([run, iteration, game, family, stop, won, score, fault, turns]) => ({
  run: DATA.runs[run], iteration, game: text(game), family: text(family), stop: text(stop), won: won === 1, score,
  fault: text(fault), turns, length: turns.length, asked: turns.some((turn) => turn[10] !== 0),
}));
for (const episode of EPISODES) episode.id = [episode.run.name, episode.iteration, episode.game].join(" ");

/** What an episode is filtered by: name in the address → label and value. */
const FIELDS = {
  run: ["run", (e) => e.run.name],
  arm: ["arm", (e) => e.run.arm],
  seed: ["seed", (e) => String(e.run.seed)],
  iteration: ["iteration", (e) => String(e.iteration)],
  type: ["task type", (e) => e.family],
  success: ["success", (e) => (e.won ? "won" : "not won")],
  stop: ["ended by", (e) => e.stop.replaceAll("_", " ")],
  expected: ["policy asked", (e) => (e.asked ? "asked" : "not asked")],
};

/** Values of a field with how many episodes have each, in a natural order. */
function choices(field) {
  const counts = new Map();
  for (const episode of EPISODES) {
    const value = FIELDS[field][1](episode);
    counts.set(value, (counts.get(value) || 0) + 1);
  }
  return [...counts].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
}

/** Numbers of the strings that hold the words, in small letters. */
function holding(wanted) {
  const small = wanted.toLowerCase(), found = new Set();
  DATA.strings.forEach((string, number) => { if (string.toLowerCase().includes(small)) found.add(number); });
  return found;
}

/** Whether a turn's observation, action, answer, or next observation is among these strings. */
function mentions(turn, found, answer) {
  return found.has(turn[1]) || found.has(turn[6]) || found.has(turn[9]) || joined(turn[3]).toLowerCase().includes(answer);
}

/** Episodes that a set of filters leaves; a filter is a URLSearchParams. */
function filtered(filter) {
  const checks = [];
  for (const field of Object.keys(FIELDS)) {
    const wanted = filter.get(field);
    if (wanted !== null) checks.push((e) => FIELDS[field][1](e) === wanted);
  }
  const min = Number(filter.get("min") || 0), max = Number(filter.get("max") || Infinity);
  if (min > 0 || max < Infinity) checks.push((e) => e.length >= min && e.length <= max);
  const words_ = filter.get("text");
  if (words_) {
    const found = holding(words_), small = words_.toLowerCase();
    checks.push((e) => e.game.toLowerCase().includes(small) || e.turns.some((turn) => mentions(turn, found, small)));
  }
  return EPISODES.filter((e) => checks.every((check) => check(e)));
}

const mean = (numbers) => numbers.reduce((sum, n) => sum + n, 0) / numbers.length;

/** How many of the answers to a question are what happened, as "3/4"; none asked: "". */
function exact(turns, place, truth) {
  const asked = turns.filter((turn) => turn[10] !== 0 && turn[10][place] >= 0);
  const right = asked.filter((turn) => text(turn[10][place]).trim() === text(turn[truth]).trim());
  return asked.length ? `${right.length}/${asked.length}` : "";
}

/** Number of episodes, share won, mean turns, share of inadmissible turns, exact answers; null without episodes. */
function summary(episodes) {
  if (episodes.length === 0) return null;
  const turns = episodes.flatMap((e) => e.turns);
  return {
    count: episodes.length, won: mean(episodes.map((e) => Number(e.won))), length: mean(episodes.map((e) => e.length)),
    inadmissible: turns.length ? mean(turns.map((turn) => Number(!(turn[7] & 2)))) : 0,
    next: exact(turns, 0, 9), action: exact(turns, 2, 6),
  };
}
