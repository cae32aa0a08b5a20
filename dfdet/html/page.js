"use strict";
(() => {
  const plots = [];
  const hover = JSON.parse(document.getElementById("hover").textContent);
  const textColour = () => getComputedStyle(document.body).color;

  function draw(place) {
    const figure = JSON.parse(place.nextElementSibling.textContent);
    figure.layout.font.color = textColour();
    figure.data.filter((trace) => trace.customdata).forEach((trace) => {
      trace.text = trace.customdata.map((number) => hover[number] ?? null);
    });
    const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
    config.toImageButtonOptions = { format: "svg" };
    Plotly.newPlot(place, figure.data, figure.layout, config);
    plots.push(place);
  }

  function recolour(colour) {
    plots.forEach((place) => Plotly.relayout(place, { "font.color": colour }));
  }

  // Plotly needs a width: what is folded away is drawn when it is opened.
  function drawFolded(details) {
    details.addEventListener("toggle", () => details.querySelectorAll(".plot").forEach(draw), { once: true });
  }

  const folded = (place) => place.closest("details:not([open])");
  [...document.querySelectorAll(".plot")].filter((place) => !folded(place)).forEach(draw);
  document.querySelectorAll("details:not([open])").forEach(drawFolded);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolour(textColour()));
  addEventListener("beforeprint", () => recolour("#1c2126"));
  addEventListener("afterprint", () => recolour(textColour()));
})();
