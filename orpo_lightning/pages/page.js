"use strict";
// The page reads without this. It adds tabs, the value under the pointer or the arrow keys, and the other colours.
(() => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  const moved = (event, from, count) => {
    const step = event.altKey || event.ctrlKey || event.metaKey ? undefined : steps[event.key];
    if (step === undefined) return null;
    event.preventDefault();
    return Math.max(0, Math.min(count - 1, from + step));
  };

  // Light and dark
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  button.hidden = false;
  name();

  // Tabs: without a script they are links to panels that stand one below the other
  const tabs = all(".tabs a");
  const panels = tabs.map((tab) => document.querySelector(tab.hash));
  const show = (chosen) => tabs.forEach((tab, index) => {
    const on = index === chosen;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    panels[index].hidden = !on;
  });
  const reveal = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const index = target ? panels.findIndex((panel) => panel.contains(target)) : -1;
    if (index < 0 || !panels[index].hidden) return;
    show(index);
    target.scrollIntoView();
  };
  if (tabs.length > 1) {
    tabs[0].parentElement.setAttribute("role", "tablist");
    tabs.forEach((tab, index) => {
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panels[index].id);
      panels[index].setAttribute("role", "tabpanel");
      panels[index].setAttribute("aria-labelledby", tab.id);
      tab.addEventListener("click", (event) => { event.preventDefault(); show(index); });
      tab.addEventListener("keydown", (event) => {
        if (event.key === " ") { event.preventDefault(); show(index); }
        const next = moved(event, index, tabs.length);
        if (next !== null) { show(next); tabs[next].focus(); }
      });
    });
    show(0);
    addEventListener("hashchange", reveal);
    reveal();
  }

  // Charts: what stands at one bar or place is written where the summary stands
  all(".chart svg[role=img]").forEach((svg) => {
    const hits = all(".hit", svg);
    const readout = svg.closest(".chart").querySelector(".readout");
    const summary = readout.textContent;
    const words = hits.map((hit) => hit.querySelector("title").textContent);
    hits.forEach((hit) => hit.querySelector("title").remove()); // else the browser's own label comes up as well
    let at = -1;
    const mark = (index) => {
      if (hits[at]) hits[at].classList.remove("on");
      at = index;
      if (hits[at]) hits[at].classList.add("on");
      readout.textContent = hits[at] ? words[at] : summary;
    };
    svg.tabIndex = 0;
    svg.setAttribute("aria-label", svg.getAttribute("aria-label") + " Arrow keys read the values.");
    hits.forEach((hit, index) => hit.addEventListener("pointerenter", () => mark(index)));
    svg.addEventListener("pointerleave", () => mark(-1));
    svg.addEventListener("focus", () => { if (at < 0 && svg.matches(":focus-visible")) mark(0); });
    svg.addEventListener("blur", () => mark(-1));
    svg.addEventListener("keydown", (event) => {
      const next = moved(event, at, hits.length);
      if (next !== null) mark(next);
    });
  });
})();
