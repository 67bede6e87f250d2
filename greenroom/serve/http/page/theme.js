// Loaded before the first paint, and not as a module, so that nothing flashes in the wrong colours.
(() => {
  const REMEMBERED = "greenroom.theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  const remembered = () => {
    try {
      return localStorage.getItem(REMEMBERED);
    } catch {
      return null; // storage may be forbidden
    }
  };

  const current = () => document.documentElement.dataset.theme;

  const show = () => {
    const chosen = remembered();
    document.documentElement.dataset.theme = chosen === "dark" || chosen === "light" ? chosen : systemTheme();
  };

  const systemTheme = () => (system.matches ? "dark" : "light");

  // What is the same as the system's is not remembered: the page follows the system again.
  const toggle = () => {
    const next = current() === "dark" ? "light" : "dark";
    try {
      if (next === systemTheme()) localStorage.removeItem(REMEMBERED);
      else localStorage.setItem(REMEMBERED, next);
    } catch {
      // it holds until the page is left
    }
    document.documentElement.dataset.theme = next;
    return next;
  };

  system.addEventListener("change", show);
  show();
  window.greenroomTheme = { current, toggle };
})();
