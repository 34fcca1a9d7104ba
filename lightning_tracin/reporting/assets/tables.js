// Tables that sort and filter: those with the class "data", each when it is first seen, so that a page of many opens at once.
"use strict";

(() => {
  // Rows of one page of a table, and how many different values a column with a list of choices has at most.
  const ROWS = 25, CHOICES = 60;

  function enhance(table) {
    const long = table.tBodies[0].rows.length > ROWS;
    const shown = new DataTable(table, {
      order: [], paging: long, pageLength: ROWS, lengthMenu: [ROWS, 100, { label: "all", value: -1 }], info: long, autoWidth: false,
      searching: table.tBodies[0].rows.length > 5,
      language: { search: "Filter", lengthMenu: "Rows _MENU_", emptyTable: "No rows", zeroRecords: "No row has this" },
    });
    if (table.tBodies[0].rows.length > 5) addChoices(table, shown);
  }

  // A list of choices for each column of names, such as "probe_language" or "sign".
  function addChoices(table, shown) {
    const row = document.createElement("div");
    row.className = "choices";
    shown.columns().every(function () {
      const name = this.header().textContent.trim();
      const values = [...new Set(this.nodes().toArray().map((cell) => cell.textContent))].sort();
      if (!/language|sign|label|measure/.test(name) || values.length < 2 || values.length > CHOICES) return;
      const label = document.createElement("label"), choice = document.createElement("select");
      label.append(name.replaceAll("_", " "), " ", choice);
      choice.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
      choice.addEventListener("change", () => {
        const wanted = choice.value;
        // By its cell's own text: the library's search would read a language's name as a pattern.
        this.search.fixed("choice", wanted === "" ? null : (_, __, index) => shown.cell(index, this.index()).node().textContent === wanted);
        shown.draw();
      });
      row.append(label);
    });
    if (row.childElementCount) table.closest(".scroll").before(row);
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      enhance(entry.target);
    }
  });
  document.querySelectorAll("table.data").forEach((table) => watcher.observe(table));
})();
