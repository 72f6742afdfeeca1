// Sorting, filtering, the theme, and the reloading of a page that is being watched. Without it all content is there.
"use strict";
(() => {
  const root = document.documentElement;
  const find = (selector, from = document) => [...from.querySelectorAll(selector)];

  // What the reader has set, kept for the next load of this very file.
  const place = "report:" + location.pathname;
  const load = () => {
    try { return JSON.parse(sessionStorage.getItem(place)) || {}; } catch { return {}; }
  };
  const kept = { sorts: {}, filters: {}, open: null, scroll: 0, paused: false, same: 0, written: null, ...load() };
  const keep = () => {
    try { sessionStorage.setItem(place, JSON.stringify(kept)); } catch { /* storage is off: nothing is remembered */ }
  };
  const buttonise = (element) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...element.childNodes);
    element.append(button);
    return button;
  };

  // Theme: the system's until the button says otherwise.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const themeButton = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => themeButton.setAttribute("aria-pressed", String(isDark()));
  themeButton.addEventListener("click", () => {
    const dark = !isDark();
    const chosen = dark === system.matches ? "" : dark ? "dark" : "light";
    if (chosen) root.dataset.theme = chosen;
    else delete root.dataset.theme;
    try { localStorage.setItem("report-theme", chosen); } catch { /* as above */ }
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // Sorting. A cell's key is its data-sort, else the number it begins with, else its text; empty cells stay last.
  const keyOf = (cell) => {
    const text = cell.dataset.sort ?? cell.textContent.trim();
    const number = /^[<[\s]*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)/i.exec(text);
    return { text, number: number ? Number(number[1].replaceAll(",", "")) : NaN, empty: text === "" || text === "-" || text === "NaN" };
  };
  const sortTable = (table, column, direction) => {
    const body = table.tBodies[0];
    const original = (table.originalRows ??= [...body.rows]);
    let rows = original;
    if (direction) {
      const keyed = original.map((row) => ({ row, key: keyOf(row.cells[column]) }));
      const numeric = keyed.every(({ key }) => key.empty || !Number.isNaN(key.number));
      const compare = (a, b) => (numeric ? a.number - b.number : a.text.localeCompare(b.text, "en", { numeric: true }));
      const sign = direction === "ascending" ? 1 : -1;
      keyed.sort((a, b) => a.key.empty - b.key.empty || (a.key.empty ? 0 : sign * compare(a.key, b.key)));
      rows = keyed.map(({ row }) => row);
    }
    body.append(...rows);
    find("thead th", table).forEach((th, i) => {
      if (i === column && direction) th.setAttribute("aria-sort", direction);
      else th.removeAttribute("aria-sort");
    });
  };
  for (const table of find("table[data-sortable]")) {
    find("thead th", table).forEach((th, column) => {
      // Numbers begin with the largest, words with the first; the third click brings the table's own order back.
      const [first, second] = th.classList.contains("number") ? ["descending", "ascending"] : ["ascending", "descending"];
      buttonise(th).addEventListener("click", () => {
        const now = th.getAttribute("aria-sort");
        const next = now === first ? second : now === second ? null : first;
        sortTable(table, column, next);
        if (next) kept.sorts[table.id] = [column, next];
        else delete kept.sorts[table.id];
        keep();
      });
    });
    const [column, direction] = kept.sorts[table.id] ?? [];
    if (direction && column < table.tHead.rows[0].cells.length) sortTable(table, column, direction);
  }

  // Filters. Rows, columns and pictures carry what they are about; pictures of all methods dim the others.
  const form = document.getElementById("filters");
  const keys = ["encoder", "task", "method", "status"];
  const tagged = find(keys.map((key) => `[data-${key}]`).join(","));
  const dimmed = new Set(find("svg [data-method]"));
  const texts = new Map(find("[data-text]").map((element) => [element, element.textContent.toLowerCase()]));
  const runs = find("#all-runs tbody tr");
  const picks = find("[data-pick]").filter(({ dataset }) => form.elements[dataset.pick]).map((element) => ({ ...element.dataset, button: buttonise(element) }));
  const applyFilters = () => {
    const chosen = Object.fromEntries(keys.map((key) => [key, form.elements[key]?.value ?? ""]));
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const element of tagged) {
      const fits = keys.every((key) => !chosen[key] || element.dataset[key] === undefined || element.dataset[key] === chosen[key]);
      if (dimmed.has(element)) {
        element.classList.toggle("dim", !fits);
        element.classList.toggle("lit", fits && chosen.method !== "");
      } else {
        const text = texts.get(element);
        element.hidden = !fits || (text !== undefined && !words.every((word) => text.includes(word)));
      }
    }
    for (const { pick, value, button } of picks) {
      button.setAttribute("aria-pressed", String(chosen[pick] === value));
    }
    const shown = runs.filter((row) => !row.hidden).length;
    document.getElementById("shown").textContent = shown < runs.length ? `${shown} of ${runs.length} runs` : "";
    kept.filters = { ...chosen, text: form.elements.text.value };
    keep();
  };
  for (const { pick, value, button } of picks) {
    button.addEventListener("click", () => {
      const field = form.elements[pick];
      field.value = field.value === value ? "" : value;
      applyFilters();
    });
  }
  for (const [key, value] of Object.entries(kept.filters)) {
    if (form.elements[key]) form.elements[key].value = value;
    if (form.elements[key] && form.elements[key].value !== value) form.elements[key].value = "";
  }
  form.addEventListener("input", applyFilters);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(applyFilters));
  applyFilters();

  // Fold-outs and the place on the page.
  const folds = find("details");
  const nameOf = (fold) => fold.id || fold.querySelector("summary").textContent;
  for (const fold of folds) {
    if (kept.open) fold.open = kept.open.includes(nameOf(fold));
  }
  const openTarget = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && target.closest("details");
    if (!fold) return;
    fold.open = true;
    fold.scrollIntoView();
  };
  addEventListener("hashchange", openTarget);
  const leave = () => {
    kept.open = folds.filter((fold) => fold.open).map(nameOf);
    kept.scroll = scrollY;
    keep();
  };
  addEventListener("pagehide", leave);
  const isReload = performance.getEntriesByType("navigation")[0]?.type === "reload";
  if (isReload) {
    history.scrollRestoration = "manual";
    scrollTo(0, kept.scroll);
  } else openTarget();

  // Watching: load the file again at the watcher's pace. A page that comes back unchanged four times has lost it.
  const seconds = Number(root.dataset.watch || 0);
  if (!seconds) return;
  const live = document.getElementById("live");
  const liveText = document.getElementById("live-text");
  const pause = document.getElementById("pause");
  kept.same = kept.written === root.dataset.written ? kept.same + 1 : 0;
  kept.written = root.dataset.written;
  keep();
  const busy = () =>
    document.hidden || kept.paused || !getSelection().isCollapsed || ["INPUT", "SELECT"].includes(document.activeElement?.tagName);
  const reload = () => {
    leave();
    location.reload();
  };
  const tick = () => (busy() ? setTimeout(tick, 1000) : reload());
  const showPause = () => {
    pause.textContent = kept.paused ? "go on" : "pause";
    pause.setAttribute("aria-pressed", String(kept.paused));
    live.classList.toggle("stopped", kept.paused);
  };
  pause.addEventListener("click", () => {
    kept.paused = !kept.paused;
    keep();
    showPause();
  });
  showPause();
  if (kept.same >= 4) {
    live.classList.add("stopped");
    liveText.textContent = "The watcher has stopped: the file is no longer written anew.";
    pause.textContent = "load again";
    pause.replaceWith(pause.cloneNode(true));
    document.getElementById("pause").addEventListener("click", () => {
      kept.same = 0;
      kept.written = null;
      reload();
    });
    return;
  }
  setTimeout(tick, seconds * 1050 + 100); // a little later than the watcher writes
})();
