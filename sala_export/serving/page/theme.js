// Runs before the page is drawn, so that it does not flash in the other colours.
try {
  const theme = JSON.parse(localStorage.getItem("sala-settings") ?? "{}").theme;
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Without storage, or with one that others wrote into, the colours are those of the system.
}
