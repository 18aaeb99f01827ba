// Samples and problems: filtered, sorted, a page of rows at a time. Text of a run only ever becomes text nodes.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
const PAGE = 25; // rows
let data = {};

function visible(text, keep = "\n\t") {
  return text.replace(HIDDEN, (c) => {
    if (keep.includes(c)) return c;
    const code = c.codePointAt(0).toString(16);
    return c === "\n" ? "⏎" : c === "\t" ? "⇥" : code.length < 3 ? `\\x${code.padStart(2, "0")}` : code.length < 5 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
  });
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  if (text !== "") made.textContent = text;
  if (className) made.className = className;
  return made;
}

const figure3 = (value) => (value === null ? "–" : String(+value.toPrecision(3)));
const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const oneLine = (text, size) => visible(text.length > size ? `${text.slice(0, size)} …` : text, "");

class Browser {
  // A section with a form of filters, a status, rows and a pager. `select(form)` returns rows, `draw(row)` an element.
  constructor(id, noun, select, draw) {
    Object.assign(this, { section: document.getElementById(id), noun, select, draw, page: 0, shown: new Map() });
    const form = this.section.querySelector("form");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.refresh(0), 120);
    });
    form.addEventListener("reset", () => setTimeout(() => this.refresh(0)));
    for (const [name, by] of [["earlier", -1], ["later", 1]]) {
      this.section.querySelector(`.${name}`).addEventListener("click", () => (this.refresh(this.page + by), this.section.scrollIntoView()));
    }
  }

  refresh(page = this.page) {
    const [rows, all] = this.select(new FormData(this.section.querySelector("form")));
    const pages = Math.max(Math.ceil(rows.length / PAGE), 1);
    this.page = Math.min(Math.max(page, 0), pages - 1);
    this.section.hidden = all === 0;
    const status = this.section.querySelector(".status"), box = this.section.querySelector(".rows");
    const text = rows.length === all ? counted(all, this.noun) : `${rows.length.toLocaleString("en")} of ${counted(all, this.noun)}`;
    if (status.textContent !== text) status.textContent = text;
    const now = rows.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.shown = new Map(now.map((row) => [row, this.shown.get(row) ?? this.draw(row)])); // an open one stays open
    box.replaceChildren(...this.shown.values());
    this.section.querySelector(".where").textContent = `page ${this.page + 1} of ${pages}`;
    this.section.querySelector(".earlier").disabled = this.page === 0;
    this.section.querySelector(".later").disabled = this.page === pages - 1;
    this.section.querySelector(".pager").hidden = pages === 1;
  }
}

function between(value, from, to) {
  return (from === "" || (value !== null && value >= +from)) && (to === "" || (value !== null && value <= +to));
}

function sorted(rows, by, value) {
  // by: "name" ascending, "-name" descending; rows without the value last.
  const sign = by.startsWith("-") ? -1 : 1, key = by.replace("-", "");
  if (key === "order") return sign < 0 ? rows.reverse() : rows;
  return rows
    .map((row, i) => [value(row, key), i, row])
    .sort((a, b) => (a[0] === null) - (b[0] === null) || sign * (a[0] - b[0]) || a[1] - b[1])
    .map(([, , row]) => row);
}

function selectSamples(form) {
  const { rows = [], prompts = [] } = data.rollouts ?? {}, words = form.get("text").toLowerCase();
  const found = rows.filter((row) => {
    if (!between(row.step, form.get("from"), form.get("to")) || !between(row.reward, form.get("least"), form.get("most"))) return false;
    if (form.get("outcome") && row.outcome !== form.get("outcome")) return false;
    if (!words) return true;
    row.lower ??= `${prompts[row.prompt].prompt}\n${row.completion}\n${row.detail ?? ""}`.toLowerCase();
    return row.lower.includes(words);
  });
  return [sorted(found, form.get("sort"), (row, key) => row[key]), rows.length];
}

function drawSample(row) {
  const item = element("details", "", "sample"), summary = element("summary");
  const left = row.reward === null;
  summary.append(element("span", left ? "excluded" : figure3(row.reward), `badge${row.reward > 0 ? " good" : ""}`));
  summary.append(element("span", `step ${row.step ?? "?"}`));
  if (row.advantage !== null) summary.append(element("span", `advantage ${row.advantage > 0 ? "+" : ""}${figure3(row.advantage)}`));
  const finish = { length: "cut off", stop: "ended" }[row.finish] ?? row.finish;
  for (const text of [row.outcome, finish]) if (text) summary.append(element("span", visible(text, "")));
  summary.append(element("span", oneLine(row.completion.slice(0, 240), 200), "excerpt"));
  item.append(summary);
  item.addEventListener("toggle", () => {
    if (item.childElementCount > 1) return;
    const { prompt, answer } = data.rollouts.prompts[row.prompt];
    const facts = Object.entries(row.parts ?? {}).map(([name, value]) => `${visible(name, "")} ${figure3(value)}`);
    if (answer !== null) facts.push(`expected: ${visible(answer, "")}`);
    if (row.detail) facts.push(visible(row.detail, ""));
    if (facts.length) item.append(element("p", facts.join(" · "), "note"));
    item.append(element("pre", visible(prompt), "prompt"), element("pre", visible(row.completion)));
    if (row.surprise) {
      const strip = element("div", "", "heat");
      for (const digit of row.surprise.slice(0, 600)) {
        const token = element("s");
        token.style.setProperty("--s", +digit / 9);
        strip.append(token);
      }
      item.append(strip);
    }
  });
  return item;
}

function solved(row, i) {
  const found = row.counts[i];
  return found && found[0] ? found[1] / found[0] : null;
}

function selectProblems(form) {
  const { rows = [] } = data.problems ?? {}, words = form.get("text").toLowerCase();
  const first = +form.get("first"), last = +form.get("last");
  const compared = rows.map((row) => {
    const before = solved(row, first), after = solved(row, last);
    return { ...row, before, after, change: before === null || after === null ? null : after - before, ends: [row.counts[first], row.counts[last]] };
  });
  const kinds = {
    "": () => true, gained: (row) => row.change > 0, lost: (row) => row.change < 0, same: (row) => row.change === 0,
    never: (row) => row.after === 0,
  };
  const found = compared.filter((row) => kinds[form.get("kind")](row) && `${row.prompt}\n${row.answer}`.toLowerCase().includes(words));
  return [sorted(found, form.get("sort"), (row, key) => row[key]), rows.length];
}

const mark = (greedy) => (greedy === null || greedy === undefined ? "–" : greedy ? "✓" : "✗");

function drawProblem(row) {
  const line = element("tr"), ends = row.ends;
  const count = (end) => (end && end[0] ? `${end[1]} of ${end[0]}` : "–");
  const change = row.change === null ? "–" : `${row.change > 0 ? "+" : row.change < 0 ? "−" : ""}${Math.round(Math.abs(row.change) * 100)}`;
  const cells = [["answer", visible(row.answer ?? "–", "")], ["before", count(ends[0])], ["after", count(ends[1])], ["points", change]];
  if (data.problems.greedy) cells.push(["greedy", `${mark(ends[0]?.[2])} → ${mark(ends[1]?.[2])}`]);
  const problem = element("td"), text = row.prompt.slice(data.problems.prefix, row.prompt.length - data.problems.suffix).trim() || row.prompt;
  problem.dataset.label = "problem";
  if (text.length > 160 || text.includes("\n")) {
    const whole = element("details");
    whole.append(element("summary", oneLine(text, 140)), element("pre", visible(row.prompt)));
    problem.append(whole);
  } else problem.append(visible(text, ""));
  line.append(problem);
  for (const [label, value] of cells) {
    const cell = element("td", value, label === "points" && row.change ? (row.change > 0 ? "up" : "down") : "");
    cell.dataset.label = label;
    line.append(cell);
  }
  return line;
}

function sharedEnds(texts) {
  // How many characters all prompts have in common at their ends, in whole lines and marks: a template, not the problem.
  if (texts.length < 2) return [0, 0];
  const common = (a, b) => {
    let n = 0;
    while (n < Math.min(a.length, b.length) && a[n] === b[n]) n++;
    return n;
  };
  const flipped = texts.map((text) => [...text.split("")].reverse().join(""));
  const ends = [texts, flipped].map((all) => all[0].slice(0, Math.min(...all.map((text) => common(all[0], text)))));
  return ends.map((end) => Math.max(...["\n", "<", ">"].map((c) => end.lastIndexOf(c))) + 1);
}

function options(select, values, chosen) {
  const before = select.value;
  const all = values.map(([value, text]) => {
    const option = element("option", text);
    option.value = value;
    return option;
  });
  if (select.options.length === all.length && all.every((option, i) => option.text === select.options[i].text)) return;
  select.replaceChildren(...all);
  select.value = select.dataset.touched && values.some(([value]) => value === before) ? before : chosen;
}

let samples, problems;

function readData() {
  // Rows of an earlier reading are kept where nothing changed, so that an open sample stays open.
  const before = new Map((data.rollouts?.rows ?? []).map((row) => [row.source, row]));
  data = JSON.parse(document.getElementById("data").textContent);
  if (data.rollouts) {
    const { columns, rows } = data.rollouts;
    data.rollouts.rows = rows.map((values) => {
      const source = JSON.stringify(values);
      return before.get(source) ?? Object.assign(Object.fromEntries(columns.map((name, i) => [name, values[i]])), { source });
    });
    const outcomes = [...new Set(data.rollouts.rows.map((row) => row.outcome))].filter(Boolean).sort();
    options(samples.section.querySelector("[name=outcome]"), [["", "any"], ...outcomes.map((o) => [o, visible(o, "")])], "");
    samples.section.querySelector(".note").textContent = data.rollouts.note;
  }
  if (data.problems) {
    const texts = data.problems.rows.map((row) => row.prompt);
    data.problems.greedy = data.problems.rows.some((row) => row.counts.some((count) => count?.[2] != null));
    problems.section.querySelector("th:last-child").hidden = !data.problems.greedy;
    [data.problems.prefix, data.problems.suffix] = sharedEnds(texts);
    const steps = data.problems.steps.map((step, i) => [String(i), i === 0 && step === 0 ? "before training" : `step ${step}`]);
    options(problems.section.querySelector("[name=first]"), steps, "0");
    options(problems.section.querySelector("[name=last]"), steps, String(steps.length - 1));
  }
  samples.refresh();
  problems.refresh();
  document.getElementById("download").hidden = !data.metrics.step.length;
}

function csv(columns) {
  const cell = (value) => (value === null ? "" : typeof value === "string" && /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : String(value));
  const names = Object.keys(columns), lines = columns.step.map((_, i) => names.map((name) => cell(columns[name][i])).join(","));
  return [names.map(cell).join(","), ...lines, ""].join("\n");
}

function download(kind) {
  const objects = (rows) => rows.map((row) => JSON.stringify(row) + "\n").join("");
  const files = {
    "metrics.csv": () => csv(data.metrics),
    "metrics.jsonl": () => objects(data.metrics.step.map((_, i) => Object.fromEntries(Object.entries(data.metrics).map(([name, values]) => [name, values[i]]).filter(([, value]) => value !== null)))),
    "samples.jsonl": () => objects((data.rollouts?.rows ?? []).map(({ lower, source, surprise, prompt, ...row }) => ({ ...row, ...data.rollouts.prompts[prompt] }))),
    "problems.jsonl": () => objects((data.problems?.rows ?? []).flatMap((row) => data.problems.steps.map((step, i) => row.counts[i] && { step, id: row.id, prompt: row.prompt, answer: row.answer, n: row.counts[i][0], correct: row.counts[i][1], greedy: row.counts[i][2] }).filter(Boolean))),
  };
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([files[kind]()], { type: "text/plain" }));
  link.download = `${data.name}_${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function startTables() {
  if (!document.getElementById("data")) return;
  samples = new Browser("samples", "sample", selectSamples, drawSample);
  problems = new Browser("problems", "problem", selectProblems, drawProblem);
  for (const select of problems.section.querySelectorAll("[name=first], [name=last]")) select.addEventListener("input", () => (select.dataset.touched = "1"));
  for (const button of document.querySelectorAll("#download button")) button.addEventListener("click", () => download(button.value));
  readData();
}
