// Follow a run: ask for its state, and put changed parts of a fresh page in place of the old ones.
const LATER = 2000; // ms
const parts = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part, part.innerHTML])); // as they came

function say(status, text, detail) {
  const line = document.getElementById("following"), word = line.querySelector("b");
  line.className = status;
  if (word.textContent !== text) word.textContent = text; // a screen reader says it again otherwise
  line.querySelector("span").textContent = detail;
}

async function follow() {
  let wait = LATER;
  try {
    const state = await (await fetch("/state", { cache: "no-store" })).json();
    if (state.version !== document.body.dataset.version && state.version) {
      const page = await fetch("/", { cache: "no-store" });
      if (!page.ok) throw new Error(page.status);
      const text = await page.text();
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
    say(state.status, state.text, state.detail);
    wait = Math.max(LATER, state.wait_s * 1000);
  } catch {
    say("ended", "rlhf-pg watch has ended, or cannot be reached.", "This is what it showed last.");
  }
  setTimeout(follow, wait);
}

document.addEventListener("DOMContentLoaded", follow);
