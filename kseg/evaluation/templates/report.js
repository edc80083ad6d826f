// Makes tables sortable: a click on a column header sorts by that column. The page is readable without scripts.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = header.ariaSort !== "ascending";
      const value = row => {
        const cell = row.cells[column];
        if (!("value" in cell.dataset)) return cell.textContent.trim();
        return cell.dataset.value === "" ? null : Number(cell.dataset.value);
      };
      const compare = (one, other) => {
        const [a, b] = [value(one), value(other)];
        // Rows without a value stay last in both directions.
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" ? a - b : a.localeCompare(b);
        return ascending ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
      headers.forEach(other => { other.ariaSort = null; });
      header.ariaSort = ascending ? "ascending" : "descending";
    });
  });
}
