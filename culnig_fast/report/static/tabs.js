// Sections that stand one after another become tabs: arrows move, Home and End go to the ends, one tab is in the tab order.
function makeTabs(group) {
  const panels = [...group.querySelectorAll(":scope > .panel")];
  const list = make("div", { role: "tablist", "aria-label": group.dataset.label });
  const tabs = panels.map((panel) => {
    const name = panel.querySelector("h3").textContent;
    return make("button", { type: "button", role: "tab", id: `${panel.id}-tab`, "aria-controls": panel.id }, name);
  });

  function choose(number, focus) {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === number));
      tab.tabIndex = i === number ? 0 : -1;
      panels[i].hidden = i !== number;
    });
    if (focus) tabs[number].focus();
  }

  tabs.forEach((tab, i) => {
    panels[i].setAttribute("role", "tabpanel");
    panels[i].setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => choose(i, false));
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const targets = { ArrowRight: i === last ? 0 : i + 1, ArrowLeft: i === 0 ? last : i - 1, Home: 0, End: last };
      if (event.key in targets) {
        event.preventDefault();
        choose(targets[event.key], true);
      }
    });
    list.append(tab);
  });
  group.prepend(list);
  group.classList.add("ready");
  choose(0, false);
}

document.querySelectorAll(".tabs").forEach(makeTabs);
