// A click on a column's head sorts the table by it: figures from high to low first, names from a to z; another click turns it round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const key = (row) => row.cells[column].dataset.value;
    const numeric = [...table.tBodies[0].rows].every((row) => !Number.isNaN(Number(key(row))));
    const before = head.getAttribute("aria-sort");
    const rising = before ? before === "descending" : !numeric;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].sort((a, b) =>
      (numeric ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b))) * (rising ? 1 : -1));
    table.tBodies[0].append(...rows);
  }));
}
