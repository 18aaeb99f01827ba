// Follow a run: ask for its state, and put changed parts of a fresh page in place of the old ones.
const LATER = 2000; // ms
const parts = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part, part.innerHTML])); // as they came

async function follow() {
  const line = document.getElementById("following");
  let wait = LATER;
  try {
    const state = await (await fetch("/state", { cache: "no-store" })).json();
    if (state.version !== document.body.dataset.version && state.version) {
      const text = await (await fetch("/", { cache: "no-store" })).text();
      const fresh = new DOMParser().parseFromString(text, "text/html");
      for (const [part, before] of parts) {
        const now = fresh.querySelector(`[data-part="${part.dataset.part}"]`).innerHTML;
        if (now !== before) part.innerHTML = now;
        parts.set(part, now);
      }
      document.title = fresh.title;
      document.body.dataset.version = fresh.body.dataset.version;
      startCharts();
      readData();
    }
    line.textContent = state.text;
    line.className = state.status;
    wait = Math.max(LATER, state.wait_s * 1000);
  } catch {
    line.textContent = "rlhf-pg watch has ended, or cannot be reached: this is what it last showed.";
    line.className = "ended";
  }
  setTimeout(follow, wait);
}

document.addEventListener("DOMContentLoaded", follow);
