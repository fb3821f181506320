"use strict";
// Texts of episodes as nodes. They come from environments and models, so they are only ever text content.

/** An element with a class and children; strings become text nodes. */
function el(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Control characters, marks that turn the direction of writing, and separators that no font shows.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

/** The text, its invisible characters named. */
function shown(text) {
  const part = document.createDocumentFragment();
  let from = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    if (match.index > from) part.append(text.slice(from, match.index));
    part.append(el("span", "ctl", "U+" + match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")));
    from = match.index + match[0].length;
  }
  if (from < text.length) part.append(text.slice(from));
  return part;
}

/** The text on one line. */
function flat(text) {
  return shown(text.replace(/\s+/g, " ").trim());
}

/** Words, line breaks and marks between them, so that joined they are the text. */
function words(text) {
  return text.match(/\n|[^\S\n]+|[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]/gu) || [];
}

const MOST_COMPARED = 1200;

/**
 * Which words of two lists belong together: a longest common subsequence.
 * Returns two lists of booleans. Beyond 1200 words, what lies between equal ends counts as different.
 */
function matched(left, right) {
  const inLeft = new Array(left.length).fill(false), inRight = new Array(right.length).fill(false);
  let start = 0, a = left.length, b = right.length;
  while (start < a && start < b && left[start] === right[start]) { inLeft[start] = inRight[start] = true; start++; }
  while (a > start && b > start && left[a - 1] === right[b - 1]) { a--; b--; inLeft[a] = inRight[b] = true; }
  const rows = a - start, columns = b - start;
  if (rows === 0 || columns === 0 || rows > MOST_COMPARED || columns > MOST_COMPARED) return [inLeft, inRight];
  const length = new Uint16Array((rows + 1) * (columns + 1)), at = (i, j) => i * (columns + 1) + j;
  for (let i = rows - 1; i >= 0; i--) {
    for (let j = columns - 1; j >= 0; j--) {
      length[at(i, j)] = left[start + i] === right[start + j]
        ? length[at(i + 1, j + 1)] + 1 : Math.max(length[at(i + 1, j)], length[at(i, j + 1)]);
    }
  }
  for (let i = 0, j = 0; i < rows && j < columns;) {
    if (left[start + i] === right[start + j]) { inLeft[start + i] = inRight[start + j] = true; i++; j++; }
    else if (length[at(i + 1, j)] >= length[at(i, j + 1)]) i++; else j++;
  }
  return [inLeft, inRight];
}

/** The words as nodes, runs of unmatched ones in an element of that name. */
function marked(list, same, name) {
  const part = document.createDocumentFragment();
  for (let i = 0; i < list.length;) {
    let end = i;
    while (end < list.length && same[end] === same[i]) end++;
    const text = shown(list.slice(i, end).join(""));
    part.append(same[i] ? text : el(name, "", text));
    i = end;
  }
  return part;
}

/** Two texts as nodes: what only the first has is <del>, what only the second has <ins>. */
function compared(expected, true_) {
  const left = words(expected), right = words(true_), [inLeft, inRight] = matched(left, right);
  return [marked(left, inLeft, "del"), marked(right, inRight, "ins")];
}
