// What charts and explorer share: the page's data, elements made of text alone, numbers, and how languages are written.
"use strict";

const tracin = (() => {
  // The palette of Okabe and Ito, for readers with any colour vision; markers tell lines apart without it.
  const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255"];
  const MARKERS = ["circle", "square", "triangle", "diamond", "star", "cross", "wye"];

  // The content of a <template> that `page_data.packed` wrote; null if the page has none.
  async function unpacked(id) {
    const place = document.getElementById(id);
    if (!place) return null;
    const bytes = Uint8Array.from(atob(place.content.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // An element with attributes and children; a child that is no element becomes text, never markup.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // A number with three significant digits; "unknown" for null.
  function number(value) {
    if (value === null || value === undefined) return "unknown";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  }

  // Fills a <select> with pairs of value and text.
  function fill(select, choices) {
    select.append(...choices.map(([value, text]) => new Option(text, value)));
  }

  // Draws now, and again whenever the width of the place changes.
  function keepDrawn(place, draw) {
    let width = 0;
    new ResizeObserver(() => {
      const now = Math.floor(place.clientWidth);
      if (now && now !== width) {
        width = now;
        draw(width);
      }
    }).observe(place);
    return () => width && draw(width);
  }

  return { COLOURS, MARKERS, unpacked, element, number, fill, keepDrawn };
})();
