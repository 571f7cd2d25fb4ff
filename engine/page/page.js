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

// A picture enlarges on a click, above its caption and the legend of its row; a click or Escape closes it.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".samples button")) {
  button.addEventListener("click", () => {
    const row = button.closest("section");
    const caption = document.createElement("p");
    caption.textContent = row.querySelector("p").textContent + ": " + button.querySelector("img").alt;
    dialog.replaceChildren(button.querySelector("img").cloneNode(), caption, row.querySelector(".legend").cloneNode(true));
    dialog.showModal();
  });
}
if (dialog) dialog.addEventListener("click", () => dialog.close());

// What is wider than the window says that it scrolls.
const hint = () => document.querySelectorAll(".wide").forEach((part) => part.classList.toggle("scrolls", part.scrollWidth > part.clientWidth));
addEventListener("resize", hint);
hint();
