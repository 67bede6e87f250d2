// Dark or light, as theme.js keeps it.

import { IconButton } from "./pieces.js";
import { html, useState } from "./preact.js";

export function ThemeSwitch() {
  const { current, toggle } = window.greenroomTheme;
  const [theme, setTheme] = useState(current());
  const other = theme === "dark" ? "light" : "dark";
  return html`<${IconButton}
    icon=${theme === "dark" ? "sun" : "moon"}
    label=${`Use the ${other} theme`}
    data-testid="theme-switch"
    onClick=${() => setTheme(toggle())}
  />`;
}
