// Building the page from values. Text is always text: nothing here reads markup out of what a user or the server said.

/** The element of this page with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * A new element. Properties are set as such; `class`, `for`, `role`, `aria-*` and `data-*` as attributes; `on` holds listeners.
 * Children are elements or plain values, which become text; null and false are left out.
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (name === "class") {
      made.className = value;
    } else if (name in made && !name.startsWith("aria-")) {
      made[name] = value;
    } else {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  append(made, children);
  return made;
}

/** Put children in the place of those that an element has. */
export function fill(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
}

function append(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}

/** Say something to who listens to the page instead of looking at it. */
export function announce(text) {
  const announcer = byId("announcer");
  // The same words twice would not be read out again.
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}

/** Show what went wrong in one of the places for it, or empty that. */
export function showProblem(place, problem, ...more) {
  fill(place, problem && element("div", { class: "message error" }, element("p", {}, problem), ...more));
}

/**
 * Open a dialog and wait until it is closed.
 * `accept` is asked when its first button is pressed: what it gives is the answer, and while it throws, the dialog stays open
 * and shows that under `problem`.
 */
export function ask(dialog, accept = () => true, problem = null) {
  const form = dialog.querySelector("form");
  return new Promise((resolve) => {
    let answer = null;
    let isBusy = false;
    const onSubmit = async (event) => {
      event.preventDefault();
      if (event.submitter !== null && event.submitter.value === "cancel") return dialog.close();
      if (isBusy) return undefined;
      isBusy = true;
      if (problem !== null) problem.textContent = "";
      try {
        answer = await accept();
        dialog.close();
      } catch (error) {
        if (problem === null) throw error;
        problem.textContent = error.message;
      } finally {
        isBusy = false;
      }
      return undefined;
    };
    form.addEventListener("submit", onSubmit);
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", onSubmit);
        resolve(answer);
      },
      { once: true },
    );
    dialog.showModal();
  });
}

/** Have the browser keep bytes as a file. */
export function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  // The browser reads it after this turn.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
