// Elements are made from text nodes alone: nothing that comes from data is ever read as markup.
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const counted = (number) => number.toLocaleString("en-US");
const signed = (text) => text.replace("-", "\u2212");

function scoreText(value) {
  if (value === null) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return signed(size >= 0.001 && size < 1e5 ? value.toPrecision(4) : value.toExponential(3));
}

const shareText = (value) => (value === null ? "\u2013" : `${(100 * value).toFixed(1)} %`);

function saveText(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const data = JSON.parse(byId("data").textContent);
