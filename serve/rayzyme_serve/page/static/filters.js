// Which proteins may be hits: conditions on the columns of the chosen screening set, as the API takes them.

import { byId, element, fill } from "./elements.js";

const OPERATORS = [
  ["=", "is"],
  ["!=", "is not"],
  ["contains", "contains"],
  [">=", "at least"],
  ["<=", "at most"],
];
const EC_COLUMN = "ec";

let columns = [];
let number = 0;

export function setUpFilters() {
  byId("add-filter").addEventListener("click", () => {
    const row = addRow();
    row.querySelector("select").focus();
  });
}

/** Offer the columns of a set; conditions on columns that it lacks go. */
export function offerColumns(names) {
  columns = ["protein_id", ...names];
  byId("ec-field").hidden = !names.includes(EC_COLUMN);
  for (const row of rows()) {
    const chosen = row.querySelector(".column");
    if (columns.includes(chosen.value)) fill(chosen, options(chosen.value));
    else row.remove();
  }
}

/** The conditions as the API takes them; null where there are none. Throws an Error that says which cannot be used. */
export function chosenFilters() {
  const filters = {};
  const ec = byId("ec").value.trim();
  if (ec && !byId("ec-field").hidden) filters[EC_COLUMN] = alternatives(ec);
  for (const row of rows()) {
    const [column, operator, value] = [".column", ".operator", ".value"].map((part) => row.querySelector(part).value.trim());
    if (!value) continue;
    const known = filters[column];
    if (operator === "=") {
      if (known !== undefined) throw new Error(`There is more than one condition on ${column}; list alternatives with commas.`);
      filters[column] = alternatives(value);
    } else {
      if (known !== undefined && (typeof known === "string" || Array.isArray(known))) {
        throw new Error(`The conditions on ${column} cannot be joined: one of them already says what it is.`);
      }
      filters[column] = { ...known, [operator]: value };
    }
  }
  return Object.keys(filters).length ? filters : null;
}

function alternatives(text) {
  const listed = text.split(",").map((part) => part.trim()).filter(Boolean);
  return listed.length > 1 ? listed : listed[0];
}

function rows() {
  return [...byId("filters").children];
}

function addRow() {
  number += 1;
  const named = (what) => `Filter ${number}: ${what}`;
  const row = element(
    "div",
    { class: "filter", role: "group", "aria-label": `Filter ${number}` },
    element("select", { class: "column", "aria-label": named("column") }, options(columns.find((name) => name !== columns[0] && name !== EC_COLUMN) ?? columns[0])),
    element(
      "select",
      { class: "operator", "aria-label": named("comparison") },
      OPERATORS.map(([value, text]) => element("option", { value }, text)),
    ),
    element("input", { class: "value", type: "text", autocomplete: "off", placeholder: "value", "aria-label": named("value") }),
    element(
      "button",
      {
        type: "button",
        class: "plain",
        "aria-label": `Remove filter ${number}`,
        on: {
          click: () => {
            row.remove();
            byId("add-filter").focus();
          },
        },
      },
      "✕",
    ),
  );
  byId("filters").append(row);
  return row;
}

function options(chosen) {
  return columns.map((name) => element("option", { value: name, selected: name === chosen }, name));
}
