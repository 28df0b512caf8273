"use strict";
// The page asks this node and nobody else, every two seconds while it is looked at. Whatever it
// shows it sets as text: nothing that the node says is ever taken for HTML.

const EVERY_MS = 2000;
const KEPT = 150; // looks that the charts hold: five minutes
const TOKEN = "aspen-token";

const $ = (id) => document.getElementById(id);
const element = (name, text, className) => {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
};

// ---- How numbers are told

const whole = new Intl.NumberFormat("en");
const count = (n) => (n === null || n === undefined ? "none" : whole.format(n));
const short = (n) =>
  n >= 1e6 ? (n / 1e6).toFixed(1) + " M" : n >= 1e4 ? (n / 1e3).toFixed(1) + " k" : n >= 10 ? n.toFixed(0) : Number(n.toFixed(1)).toString();
const bytes = (n) => {
  if (n === null || n === undefined) return "none";
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (n >= size) return (n / size).toFixed(1) + " " + unit;
  }
  return whole.format(n) + " B";
};
const time = (seconds) => {
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return days ? days + " d " + hours + " h" : hours ? hours + " h " + minutes + " min" : minutes + " min";
};
const latency = (seconds) => (seconds < 0.01 ? (seconds * 1000).toFixed(2) + " ms" : time(seconds));
const moment = (text) => text.replace("T", " ").replace(/\.\d+/, "").replace(/Z$/, " UTC");

// ---- What is shown

function facts(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), value instanceof Node ? value : element("dd", value)]));
}

const GRADES = { healthy: "good", migrating: "warn", degraded: "warn", unhealthy: "bad" };

function badges(...all) {
  $("badges").replaceChildren(...all.map(([text, grade]) => element("span", text, "badge " + (grade || ""))));
}

// Said only when it changes, so that a screen reader does not repeat it every two seconds.
let noticed = "";
function notices(all) {
  const text = JSON.stringify(all);
  if (text === noticed) return;
  noticed = text;
  $("notices").replaceChildren(...all.map(([words, grade]) => element("p", words, "notice " + (grade || ""))));
}

function show(what) {
  for (const id of ["login", "migrating", "serving"]) $(id).hidden = id !== what;
  // A link cannot carry a token.
  $("closed-links").hidden = what === "login" || sessionStorage.getItem(TOKEN) !== null;
}

function node(status) {
  $("name").textContent = "node " + status.node_id;
  document.title = "Aspen node " + status.node_id + ": " + status.role;
  facts($("node"), [
    ["Version", status.version],
    ["Up for", time(status.uptime_seconds)],
    ["Node", count(status.node_id)],
    ["Cluster", element("dd", status.cluster_id, "id")],
    ["Address", location.host],
  ]);
  const leader = status.leader === null ? "none known" : status.leader === status.node_id ? "this node" : "node " + status.leader;
  facts($("raft"), [
    ["Part", status.role],
    ["Leader", leader],
    ["Term", count(status.term)],
    ["Last entry", count(status.last_log_index)],
    ["Committed", count(status.committed)],
    ["Applied", count(status.last_applied)],
    ["To be applied", count(status.lag)],
    ...(status.quorum_age_ms === null ? [] : [["Confirmed by a majority", time(status.quorum_age_ms / 1000) + " ago"]]),
  ]);
}

function disk(status, samples) {
  const free = value(samples, "aspen_disk_free_bytes");
  const size = value(samples, "aspen_disk_size_bytes");
  const sync = mean(samples, "aspen_log_sync_duration_seconds");
  facts($("disk"), [
    ["Engine", status.storage.backend],
    ["Database", bytes(status.storage.database_bytes)],
    ["Write-ahead log", bytes(status.storage.wal_bytes)],
    ["Raft log", bytes(status.storage.log_bytes)],
    ["Purged up to", count(status.last_purged)],
    ["Snapshot up to", count(status.snapshot)],
    ...(free === null ? [] : [["Free on the disk", bytes(free) + " of " + bytes(size)]]),
    ...(sync === null ? [] : [["A sync of the log takes", latency(sync)]]),
  ]);
}

// Another node's own page; only an address goes into the link, and only as http.
function linked(member) {
  const cell = element("td", "node " + member.id);
  if (typeof member.http === "string" && member.http && !/[^\w.:[\]-]/.test(member.http)) {
    const link = element("a", "node " + member.id);
    link.href = location.protocol + "//" + member.http + "/";
    cell.replaceChildren(link);
  }
  return cell;
}

function members(status) {
  const rows = status.members.map((member) => {
    const row = element("tr");
    const part = [member.voter ? "voter" : "learner"];
    if (member.id === status.leader) part.unshift("leader");
    const here = member.id === status.node_id;
    const name = here ? element("td", "node " + member.id + " (this one)") : linked(member);
    const lag = member.lag === null ? (member.id === status.leader ? "0" : "not known here") : count(member.lag);
    row.append(name, element("td", part.join(", ")), element("td", member.address), element("td", lag, "number"));
    return row;
  });
  $("members").tBodies[0].replaceChildren(...rows);
  const others = status.members.length > 1 && status.role !== "leader" && status.leader !== null;
  $("members-note").textContent = others ? "How far each is behind is known to the leader, node " + status.leader + "." : "";
}

function record(migration) {
  $("record-none").hidden = migration !== null;
  facts($("record"), migration === null ? [] : [
    ["From", migration.from + ", " + migration.source],
    ["To", migration.to + ", " + migration.target],
    ["When", moment(migration.completed_at)],
    ["How long", time(migration.seconds)],
    ["Keys", count(migration.keys)],
    ["Last entry", count(migration.last_applied)],
    ["Checksum", migration.checksum],
    ["Backup", migration.backup === null ? "none" : migration.backup],
    ["By", migration.program],
  ]);
}

const LOG = "journalctl -t aspen-node -b -p warning";
const CHECKS = {
  storage: ["Storage", "The node ends and is started again. Its log says why: " + LOG],
  raft: ["Majority", "Writes and linearizable reads wait until a majority of the voters reach each other. See which nodes run, and what each says at /readyz?verbose."],
  wal: ["Write-ahead log", "fuser -v state-machine.db names who reads an old state."],
  disk: ["Disk", "Writes are taken again by themselves once there is space: df -h, and move old backups to another machine."],
};

function checks(found) {
  const items = Object.entries(CHECKS).filter(([key]) => found[key]).map(([key, [name, advice]]) => {
    const check = found[key];
    const item = element("li");
    item.append(element("b", name), " ", element("span", check.status, "badge " + (GRADES[check.status] || "")));
    if (check.bytes !== undefined) item.append(" ", bytes(check.bytes));
    if (check.status !== "healthy") {
      if (check.message) item.append(element("p", check.message));
      item.append(element("p", advice, "quiet"));
    }
    return item;
  });
  $("checks").replaceChildren(...items);
}

// ---- Metrics

// The samples of the text format by name: each with its labels and its value.
function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, text] of (found[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = text;
    if (!samples.has(found[1])) samples.set(found[1], []);
    samples.get(found[1]).push({ labels, value: Number(found[3].replace("+Inf", "Infinity")) });
  }
  return samples;
}

const value = (samples, name) => (samples.has(name) ? samples.get(name)[0].value : null);
const sum = (samples, name, of) => (samples.get(name) || []).filter((s) => of(s.labels)).reduce((all, s) => all + s.value, 0);
const mean = (samples, name) => {
  const many = value(samples, name + "_count");
  return many ? value(samples, name + "_sum") / many : null;
};

const ofKeys = (labels) => /^\/api\/kv(\/|$)/.test(labels.route);
const reads = (labels) => ofKeys(labels) && labels.method === "GET";
const writes = (labels) => ofKeys(labels) && ["PUT", "POST", "DELETE"].includes(labels.method);

// The time within which 99 of 100 were answered since the look before; null where none was.
function ninetyNinth(before, after, of) {
  const name = "aspen_http_request_duration_seconds_bucket";
  const bounds = new Map();
  for (const [samples, sign] of [[after, 1], [before, -1]]) {
    for (const { labels, value } of samples.get(name) || []) {
      if (!of(labels)) continue;
      const bound = Number(labels.le.replace("+Inf", "Infinity"));
      bounds.set(bound, (bounds.get(bound) || 0) + sign * value);
    }
  }
  const all = bounds.get(Infinity) || 0;
  if (all <= 0) return null;
  let [lower, below] = [0, 0];
  for (const bound of [...bounds.keys()].sort((a, b) => a - b)) {
    const within = bounds.get(bound);
    if (within >= 0.99 * all) {
      if (bound === Infinity) return lower;
      return lower + ((bound - lower) * (0.99 * all - below)) / Math.max(1, within - below);
    }
    [lower, below] = [bound, within];
  }
  return lower;
}

const history = [];
let last = null;

function remember(samples, status) {
  const now = performance.now();
  const point = { at: now, wal: status.storage.wal_bytes, log: status.storage.log_bytes, reads: null, writes: null, readTime: null, writeTime: null };
  // A counter that has become smaller is another process's: the node was restarted.
  const total = (of) => sum(samples, "aspen_http_requests_total", of);
  if (last && total(ofKeys) >= sum(last.samples, "aspen_http_requests_total", ofKeys)) {
    const seconds = (now - last.at) / 1000;
    const rate = (of) => (total(of) - sum(last.samples, "aspen_http_requests_total", of)) / seconds;
    [point.reads, point.writes] = [rate(reads), rate(writes)];
    point.readTime = ninetyNinth(last.samples, samples, reads);
    point.writeTime = ninetyNinth(last.samples, samples, writes);
  }
  last = { at: now, samples };
  history.push(point);
  if (history.length > KEPT) history.shift();
}

// ---- Charts

const CHARTS = [
  ["Requests a second", short, ["reads", "reads"], ["writes", "writes"]],
  ["99 of 100 answered within", latency, ["reads", "readTime"], ["writes", "writeTime"]],
  ["Log on disk", bytes, ["write-ahead log", "wal"], ["Raft log", "log"]],
];
const [WIDTH, HEIGHT, LEFT, TOP, BOTTOM] = [400, 120, 66, 8, 16];

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A round number that is not below: the end of the axis.
function round(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((step) => step * power).find((end) => end >= most * 0.999);
}

function chart([title, tell, ...lines]) {
  const figure = element("figure", null, "card");
  const caption = element("figcaption");
  caption.append(element("b", title));
  const values = lines.flatMap(([, key]) => history.map((point) => point[key]).filter((v) => v !== null));
  const end = round(Math.max(0, ...values));
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" });
  const y = (v) => HEIGHT - BOTTOM - (v / end) * (HEIGHT - TOP - BOTTOM);
  for (const part of [0, 0.5, 1]) {
    svg.append(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(part * end), y2: y(part * end) }));
  }
  const spoken = [];
  const shown = Math.max(30, history.length);
  lines.forEach(([name, key], place) => {
    const told = history.length && history[history.length - 1][key] !== null ? tell(history[history.length - 1][key]) : "none";
    caption.append(element("span", name + " " + told));
    spoken.push(name + " " + told);
    // A gap where nothing is known.
    let path = "";
    history.forEach((point, n) => {
      if (point[key] === null) return;
      const x = WIDTH - ((history.length - 1 - n) * (WIDTH - LEFT)) / (shown - 1);
      const starts = n === 0 || history[n - 1][key] === null;
      path += (starts ? "M" : "L") + x.toFixed(1) + " " + y(point[key]).toFixed(1);
      const alone = starts && (n + 1 === history.length || history[n + 1][key] === null);
      if (alone) path += "h.5";
    });
    svg.append(drawn("path", { class: place ? "second" : "first", d: path }));
  });
  svg.setAttribute("aria-label", title + ": " + spoken.join(", ") + ". The axis ends at " + tell(end) + ".");
  figure.append(caption, svg);
  return [figure, end, tell];
}

function charts() {
  const made = CHARTS.map(chart).map(([figure, end, tell]) => {
    // Text beside the curves, which are stretched.
    const plot = element("div", null, "plot");
    const axis = element("div", null, "axis");
    axis.setAttribute("aria-hidden", "true");
    axis.append(element("span", tell(end)), element("span", tell(end / 2)), element("span", "0"));
    plot.append(figure.lastChild, axis);
    figure.append(plot);
    return figure;
  });
  $("charts").replaceChildren(...made);
  const seconds = history.length > 1 ? (history[history.length - 1].at - history[0].at) / 1000 : 0;
  $("span").textContent = "since this page is open, five minutes at most" + (seconds >= 1 ? "; now " + time(seconds) : "");
}

// ---- Asking

class Unauthorized extends Error {}

// What the steps of a migration count.
const keys = (n) => count(n) + " keys";
const entries = (n) => count(n) + " entries";
const UNITS = {
  check: bytes, backup: bytes, copy: keys, verify: keys,
  "log-check": bytes, "log-backup": bytes, "log-read": entries, "log-copy": entries, "log-verify": entries,
};

async function ask(path) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (answer.status === 401 || answer.status === 403) throw new Unauthorized();
  return answer;
}

async function look() {
  const health = await (await ask("/health")).json();
  if (health.status === "migrating") {
    const storage = health.checks.storage;
    badges(["migrating", "warn"]);
    document.title = "Aspen: migrating, " + health.percent + " %";
    $("migrating-bar").value = health.percent;
    $("migrating-percent").textContent = health.percent + " %";
    const tell = UNITS[health.phase] || count;
    const step = storage.total ? health.phase + ", " + tell(storage.done) + " of " + tell(storage.total) : health.phase;
    $("migrating-step").textContent = "Step: " + (step || "looking at the data");
    notices([]);
    show("migrating");
    return;
  }
  if (!health.storage) {
    const doing = health.checks ? health.checks.storage.status : health.status;
    badges([doing, "warn"]);
    notices([["The node is " + doing + "."]]);
    show(null);
    return;
  }
  const [status, ready, metrics] = await Promise.all([
    ask("/status").then((answer) => answer.json()),
    ask("/readyz?verbose").then((answer) => answer.json()),
    ask("/metrics").then((answer) => answer.text()),
  ]);
  // It may have begun to stop between two answers.
  if (!status.storage) return;
  const samples = parse(metrics);
  remember(samples, status);
  const said = [];
  if (status.failed) said.push(["This node cannot go on: " + status.failed, "bad"]);
  if (status.disk_full) said.push(["No write is taken: " + status.disk_full, "bad"]);
  if (ready.status !== "ready" && !status.failed) {
    said.push(["Writes and linearizable reads are not served: " + ((ready.checks && ready.checks.raft && ready.checks.raft.message) || "no majority confirms the leader"), "bad"]);
  }
  badges([health.status, GRADES[health.status]], [ready.status === "ready" ? "ready" : "not ready", ready.status === "ready" ? "good" : "bad"], [status.role]);
  notices(said);
  node(status);
  disk(status, samples);
  charts();
  members(status);
  record(status.migration);
  checks(ready.checks || health.checks || {});
  show("serving");
  $("forget").hidden = !sessionStorage.getItem(TOKEN);
}

let answered = null;
let timer = null;

async function again() {
  clearTimeout(timer);
  try {
    await look();
    answered = Date.now();
    $("fresh").textContent = "as of " + new Date().toLocaleTimeString("en-GB");
  } catch (error) {
    if (error instanceof Unauthorized) {
      refused();
      return;
    }
    const since = answered ? " since " + new Date(answered).toLocaleTimeString("en-GB") : "";
    notices([["No answer from the node" + since + ". It is asked again and again; what is below is old. On its machine: systemctl status aspen-node", "bad"]]);
    badges(["no answer", "bad"]);
  }
  timer = setTimeout(again, EVERY_MS);
}

// While nobody looks the node is not asked.
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden && $("login").hidden) again();
});

function refused() {
  const wrong = sessionStorage.getItem(TOKEN) !== null;
  sessionStorage.removeItem(TOKEN);
  badges(["token needed", "warn"]);
  notices(wrong ? [["The node does not know that token.", "bad"]] : []);
  $("fresh").textContent = "";
  $("forget").hidden = true;
  show("login");
  $("token").focus();
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  again();
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
});

again();
