// In the head, before anything is drawn: the chosen theme, so that a reload does not flash.
"use strict";
try {
  const theme = localStorage.getItem("report-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage is switched off: the system's theme */ }
document.documentElement.classList.add("js");
