// The page of the sample application: what runs here, and its users. No framework, no build step.

// Relative: the page works under any path and host. Opened on a laptop, `?api=` names another one (docs/frontend.md).
const elsewhere = ["localhost", "127.0.0.1"].includes(location.hostname) && new URLSearchParams(location.search).get("api");
const API = elsewhere ? elsewhere.replace(/\/+$/, "") : "api";
const TIMEOUT_MS = 15000;
const WATCH_MS = 30000;
const WATCH_TROUBLE_MS = 5000;

const TEXTS = {
  en: {
    skip: "Skip to the users", tagline: "One pattern, pressed twice", running: "Running here", release: "Release",
    commit: "Commit", schema: "Schema", started: "Started", users: "Users", reload: "Reload", name: "Name",
    email: "E-mail", more: "Show more", addTitle: "Add a user", add: "Add user", retry: "Try again",
    emptyTitle: "No users yet", emptyHint: "The iron is hot: add the first one.",
    errorTitle: "The users cannot be loaded", unreachable: "unreachable", none: "none",
    offline: "The server does not answer.", failed: (status) => `The server answered with status ${status}.`,
    database: (reason) => `The database is unavailable: ${reason.replace(/^database /, "")}.`,
    shown: (count) => `Users shown: ${count}`, added: (name) => `${name} was added`,
    taken: "This e-mail address is already taken.", badName: "Enter a name of 1 to 50 characters.",
    badEmail: "Enter an e-mail address such as alice@example.com.",
  },
  ko: {
    skip: "사용자 목록으로 건너뛰기", tagline: "하나의 틀로 두 번 찍어냅니다", running: "현재 실행 중", release: "릴리스",
    commit: "커밋", schema: "스키마", started: "시작 시각", users: "사용자", reload: "새로고침", name: "이름",
    email: "이메일", more: "더 보기", addTitle: "사용자 추가", add: "추가하기", retry: "다시 시도",
    emptyTitle: "아직 사용자가 없습니다", emptyHint: "틀이 달궈졌어요. 첫 사용자를 추가해 보세요.",
    errorTitle: "사용자를 불러올 수 없습니다", unreachable: "연결 안 됨", none: "없음",
    offline: "서버가 응답하지 않습니다.", failed: (status) => `서버가 상태 코드 ${status}(으)로 응답했습니다.`,
    database: (reason) => `데이터베이스를 사용할 수 없습니다: ${reason.replace(/^database /, "")}`,
    shown: (count) => `사용자 ${count}명 표시됨`, added: (name) => `${name} 님을 추가했습니다`,
    taken: "이미 사용 중인 이메일입니다.", badName: "이름을 1~50자로 입력하세요.",
    badEmail: "alice@example.com 형식의 이메일을 입력하세요.",
  },
};

const element = (id) => document.getElementById(id);
const state = { language: "en", users: [], next: null, view: "loading", error: null, version: undefined, fresh: null };
const text = (key, ...values) => {
  const entry = TEXTS[state.language][key];
  return typeof entry === "function" ? entry(...values) : entry;
};

/** An answer that is not a success; `status` is 0 when there was no answer at all. */
class ApiError extends Error {
  constructor(status, body) {
    super(`API status ${status}`);
    this.status = status;
    this.body = body;
  }

  get explanation() {
    if (this.status === 0) return text("offline");
    return this.body?.reason ? text("database", this.body.reason) : text("failed", this.status);
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(`${API}${path}`, { ...options, signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
  } catch {
    throw new ApiError(0, null); // no network, refused, timed out: the browser does not say which
  }
  // A proxy in between may answer with HTML.
  const body = await response.json().catch(() => null);
  if (!response.ok || body === null) throw new ApiError(response.status, body);
  return { body, headers: response.headers };
}

// What runs here

async function loadVersion() {
  try {
    state.version = (await call("/version")).body;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    state.version = null;
  }
  renderVersion();
}

function renderVersion() {
  const { version } = state;
  if (version === undefined) return; // still loading
  const environment = version?.environment ?? "unreachable";
  document.documentElement.dataset.environment = environment;
  element("environment").textContent = version ? environment : text("unreachable");
  document.title = `${element("environment").textContent} · Waffle Iron`;
  element("release").textContent = version?.release ?? "–";
  element("commit").textContent = version?.commit?.slice(0, 10) ?? "–";
  element("commit").title = version?.commit ?? "";
  element("schema").textContent = version ? (version.schema ?? text("none")) : "–";
  element("started").textContent = version
    ? new Date(version.started_at).toLocaleString(state.language, { dateStyle: "medium", timeStyle: "short" })
    : "–";
}

// Users

/** Load the first users, or those of a Link header's query; `quietly` keeps the present content on the page until then. */
async function loadUsers(query = "", quietly = false) {
  const first = query === "";
  if (first && !quietly) {
    state.view = "loading";
    renderUsers();
  }
  element("more").disabled = true;
  try {
    const { body, headers } = await call(`/users${query}`);
    if (first) Object.assign(state, { users: [], fresh: null });
    state.users.push(...body);
    state.next = headers.get("Link")?.match(/<([^>]*)>; rel="next"/)?.[1] ?? null;
    state.view = "users";
    announce(text("shown", state.users.length));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    Object.assign(state, { view: "error", error });
  }
  element("more").disabled = false;
  renderUsers();
}

function renderUsers() {
  const { view, users } = state;
  element("users").setAttribute("aria-busy", String(view === "loading"));
  element("loading").hidden = view !== "loading";
  element("error").hidden = view !== "error";
  element("empty").hidden = view !== "users" || users.length > 0;
  element("table").hidden = view !== "users" || users.length === 0;
  element("more").hidden = view !== "users" || !state.next;
  element("error-reason").textContent = view === "error" ? state.error.explanation : "";
  element("rows").replaceChildren(...users.map(row));
}

function row(user) {
  const name = make("span", "person", make("span", "pocket", [...user.name][0] ?? "?"), make("span", "", user.name));
  name.firstChild.setAttribute("aria-hidden", "true");
  return make(
    "tr",
    user.id === state.fresh ? "fresh" : "",
    make("td", "", name),
    make("td", "", user.email ?? "–"),
    make("td", "number", String(user.id)),
  );
}

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children); // strings become text, never markup
  return node;
}

function announce(message) {
  element("announce").textContent = message;
}

// Adding a user

function showProblems({ name = "", email = "", form = "" }) {
  element("name-error").textContent = name;
  element("email-error").textContent = email;
  element("form-error").textContent = form;
  element("name").setAttribute("aria-invalid", String(Boolean(name)));
  element("email").setAttribute("aria-invalid", String(Boolean(email)));
  if (name) element("name").focus();
  else if (email) element("email").focus();
}

function problemsOf(error) {
  if (error.status === 409) return { email: text("taken") };
  if (error.status === 422) {
    const fields = new Set((error.body?.detail ?? []).map((item) => item.loc.at(-1)));
    const problems = {};
    if (fields.has("name")) problems.name = text("badName");
    if (fields.has("email")) problems.email = text("badEmail");
    if (problems.name || problems.email) return problems;
  }
  return { form: error.explanation };
}

async function addUser(event) {
  event.preventDefault();
  const user = { name: element("name").value.trim(), email: element("email").value.trim() };
  const problems = {};
  if (!user.name) problems.name = text("badName");
  if (!user.email || !element("email").validity.valid) problems.email = text("badEmail");
  showProblems(problems);
  if (problems.name || problems.email) return;

  element("submit").disabled = true;
  try {
    const { body } = await call("/users", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(user),
    });
    element("form").reset();
    await showAdded(body);
    announce(text("added", body.name));
    element("name").focus();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showProblems(problemsOf(error));
  } finally {
    element("submit").disabled = false;
  }
}

async function showAdded(user) {
  state.fresh = user.id;
  // With further pages unread, the new user belongs to the last of them: leave the list as it is.
  if (state.view === "users" && !state.next) {
    state.users.push(user);
    renderUsers();
  } else if (state.view === "error") {
    await loadUsers();
  }
}

// Language

function setLanguage(language) {
  state.language = language;
  document.documentElement.lang = language;
  const other = language === "ko" ? "en" : "ko";
  element("language").textContent = other === "ko" ? "한국어" : "English";
  element("language").lang = other;
  for (const node of document.querySelectorAll("[data-i18n]")) node.textContent = text(node.dataset.i18n);
  showProblems({});
  renderVersion();
  renderUsers();
}

function preferredLanguage() {
  try {
    const stored = localStorage.getItem("language");
    if (stored in TEXTS) return stored;
  } catch {
    // storage is blocked in this browser: the language is then not stored
  }
  return navigator.language.startsWith("ko") ? "ko" : "en";
}

function switchLanguage() {
  setLanguage(state.language === "ko" ? "en" : "ko");
  try {
    localStorage.setItem("language", state.language);
  } catch {
    // as above
  }
}

// `more` keeps the query of the Link header, which is relative to /users.
element("more").addEventListener("click", () => loadUsers(state.next));
element("reload").addEventListener("click", () => loadUsers());
element("retry").addEventListener("click", () => { loadUsers(); loadVersion(); });
element("form").addEventListener("submit", addUser);
element("language").addEventListener("click", switchLanguage);

// After a deploy the page tells by itself which release answers now, and after an outage it shows the users again.
async function watch() {
  if (!document.hidden) {
    await loadVersion();
    if (state.version && state.view === "error") await loadUsers("", true);
  }
  setTimeout(watch, state.version && state.view !== "error" ? WATCH_MS : WATCH_TROUBLE_MS);
}

setLanguage(preferredLanguage());
loadUsers();
watch();
