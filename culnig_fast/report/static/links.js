// Beside a table or figure, "Download" saves the file whose bytes the list of downloads holds once.
document.querySelectorAll("[data-get]").forEach((link) => {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    byId(link.dataset.get).click();
  });
});
