"use strict";
// Sortable tables, a switch of the theme, and the example browser. The rest of the page works without
// JavaScript. Text from the data is inserted as text, never as markup.

const PER_STEP = 20;
const byId = (id) => document.getElementById(id);

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
  };
  headers.forEach((header, column) => {
    const button = element("button", "", header.textContent);
    button.type = "button";
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const isNumber = [...body.rows].some((row) => row.cells[column].dataset.sort !== undefined);
      // The first click sorts numbers from the highest, names from the first.
      const now = header.getAttribute("aria-sort");
      const first = isNumber ? "descending" : "ascending";
      const second = isNumber ? "ascending" : "descending";
      const order = now === first ? second : first;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [value(a, column), value(b, column)];
        // Missing numbers stay last, ascending or descending.
        if (typeof left !== typeof right) return typeof left === "number" ? -1 : 1;
        return sign * (typeof left === "number" ? left - right : left.localeCompare(right));
      });
      body.append(...rows);
    });
  });
}

function startTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  name();
}

// Indices of the words on a longest common subsequence of two sentences; the others are marked.
const words = (text) => text.match(/\s+|[\p{L}\p{N}]+(?:['’.,][\p{L}\p{N}]+)*|[^\s\p{L}\p{N}]/gu) || [];
const isSpace = (word) => /^\s+$/.test(word);
const fold = (word) => word.toLowerCase();
const MAX_CELLS = 250000;

function commonWords(first, second) {
  const left = first.map((w, i) => [fold(w), i]).filter(([w]) => !isSpace(w));
  const right = second.map((w, i) => [fold(w), i]).filter(([w]) => !isSpace(w));
  const common = [new Set(), new Set()];
  if (left.length * right.length > MAX_CELLS) {
    const known = [new Set(left.map(([w]) => w)), new Set(right.map(([w]) => w))];
    left.forEach(([w, i]) => known[1].has(w) && common[0].add(i));
    right.forEach(([w, i]) => known[0].has(w) && common[1].add(i));
    return common;
  }
  const width = right.length + 1;
  const lengths = new Uint16Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i--) {
    for (let j = right.length - 1; j >= 0; j--) {
      lengths[i * width + j] = left[i][0] === right[j][0]
        ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < left.length && j < right.length;) {
    if (left[i][0] === right[j][0]) {
      common[0].add(left[i++][1]);
      common[1].add(right[j++][1]);
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
    else j++;
  }
  return common;
}

function markedSentence(parts, common) {
  const line = element("p", "sentence");
  let plain = "";
  const flush = () => {
    if (plain) line.append(plain);
    plain = "";
  };
  for (let i = 0; i < parts.length; i++) {
    if (isSpace(parts[i]) || common.has(i)) {
      plain += parts[i];
      continue;
    }
    let marked = parts[i];
    // Neighbouring words are one mark, with the space between them.
    while (i + 1 < parts.length) {
      const next = isSpace(parts[i + 1]) ? i + 2 : i + 1;
      if (next >= parts.length || common.has(next)) break;
      marked += parts.slice(i + 1, next + 1).join("");
      i = next;
    }
    flush();
    line.append(element("mark", "", marked));
  }
  flush();
  return line;
}

function startBrowser(data) {
  const controls = Object.fromEntries(["text", "run", "outcome", "agreement", "order"].map((id) => [id, byId(id)]));
  const { labels, runs, truth } = data;
  const isRight = (run, row) => data.predictions[run][row] === truth[row];
  const numRight = truth.map((_, row) => runs.filter((_, run) => isRight(run, row)).length);
  const folded = truth.map((_, row) => fold(`${data.sentence1[row]}\n${data.sentence2[row]}`));
  let matching = [];
  let numShown = 0;

  runs.forEach((run, number) => controls.run.append(new Option(run.name, number)));
  labels.forEach((predicted, p) => labels.forEach((label, t) => {
    if (p !== t) controls.outcome.append(new Option(`“${label}” predicted as “${predicted}”`, `${t},${p}`));
  }));

  function matches(row) {
    const text = fold(controls.text.value.trim());
    if (/^#\d+$/.test(text) ? `#${data.idx[row]}` !== text : !folded[row].includes(text)) return false;
    const chosen = controls.run.value === "" ? runs.map((_, run) => run) : [Number(controls.run.value)];
    const outcome = controls.outcome.value;
    const outcomes = {
      "": () => true,
      right: (run) => isRight(run, row),
      wrong: (run) => !isRight(run, row),
    }[outcome] || ((run) => outcome === `${truth[row]},${data.predictions[run][row]}`);
    if (!chosen.some(outcomes)) return false;
    const right = numRight[row];
    const isAlone = (isSought, count) => right === count && chosen.some((run) => isRight(run, row) === isSought);
    switch (controls.agreement.value) {
      case "split": return right > 0 && right < runs.length;
      case "none": return right === 0;
      case "all": return right === runs.length;
      case "alone-right": return isAlone(true, 1);
      case "alone-wrong": return isAlone(false, runs.length - 1);
      default: return true;
    }
  }

  function confidence(row) {
    const chosen = controls.run.value === "" ? runs.map((_, run) => run) : [Number(controls.run.value)];
    return chosen.reduce((sum, run) => sum + data.confidences[run][row], 0) / chosen.length;
  }

  function example(row) {
    const item = element("li", "example");
    const title = element("h3", "", `#${data.idx[row]}, label: `);
    title.append(element("b", "", labels[truth[row]]));
    const parts = [words(data.sentence1[row]), words(data.sentence2[row])];
    const common = commonWords(...parts);
    const sentences = element("div");
    sentences.append(markedSentence(parts[0], common[0]), markedSentence(parts[1], common[1]));
    const predictions = element("ul", "predictions");
    runs.forEach((run, number) => {
      const ok = isRight(number, row);
      const line = element("li", ok ? "right" : "wrong");
      const predicted = element("span", "predicted", `${labels[data.predictions[number][row]]} ${(data.confidences[number][row] / 10).toFixed(0)} % `);
      predicted.append(element("b", "", ok ? "✓ correct" : "✗ incorrect"));
      const bar = element("span", "bar");
      bar.setAttribute("aria-hidden", "true");
      const fill = element("i");
      fill.style.width = `${data.confidences[number][row] / 10}%`;
      fill.style.background = run.color;
      bar.append(fill);
      line.append(element("span", "", run.name), predicted, bar);
      predictions.append(line);
    });
    item.append(title, sentences, predictions);
    return item;
  }

  function showMore() {
    const next = matching.slice(numShown, numShown + PER_STEP);
    const items = next.map(example);
    byId("list").append(...items);
    numShown += next.length;
    byId("more").hidden = numShown >= matching.length;
    return items[0];
  }

  function update() {
    matching = truth.map((_, row) => row).filter(matches);
    const order = controls.order.value;
    if (order !== "row") {
      const sign = order === "sure" ? -1 : 1;
      matching.sort((a, b) => sign * (confidence(a) - confidence(b)));
    }
    numShown = 0;
    byId("list").replaceChildren();
    const all = truth.length === data.total ? `${data.total}` : `${truth.length} included here (examples with errors first) of ${data.total}`;
    byId("count").textContent = matching.length ? `${matching.length} of ${all} examples` : `No example matches; ${all} examples in total`;
    showMore();
  }

  byId("filters").addEventListener("input", update);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(update));
  byId("more").addEventListener("click", () => {
    const first = showMore();
    // Move the focus to the first new example.
    if (first) {
      first.tabIndex = -1;
      first.focus();
    }
  });
  update();
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
if (byId("data")) startBrowser(JSON.parse(byId("data").textContent));
startTheme();
