"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const named = (name) => ["ivlens", data.title, name].join("-").replace(/[^A-Za-z0-9.]+/g, "-").slice(0, 120);

  // Figures

  const config = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "toImage"] };
  const plots = [...document.querySelectorAll(".plot")];
  const waiting = [...plots];
  // On a screen that is too narrow for a figure it is the one for a paper's column.
  const isNarrow = (plot) =>
    !printing && plot.closest(".scroll").clientWidth < data.figures[plot.dataset.figure].layout.width - 40;
  const figureOf = (plot) => (isNarrow(plot) ? data.narrow : data.figures)[plot.dataset.figure];
  let printing = false;
  const drawNext = () => {
    const plot = waiting.shift();
    plot.drawn = figureOf(plot);
    Plotly.newPlot(plot, structuredClone(plot.drawn.data), structuredClone(plot.drawn.layout), config);
  };
  // One after the other, so that the page can be read and scrolled meanwhile.
  const draw = () => {
    if (!waiting.length) return;
    drawNext();
    setTimeout(draw);
  };
  setTimeout(draw);

  // A figure has the size that it has on paper: on a wide screen it grows, on a narrow one it shrinks a little.
  const fit = (most) => {
    for (const plot of plots) {
      const { width, height } = figureOf(plot).layout;
      const box = plot.parentElement;
      const least = isNarrow(plot) ? 0.5 : 0.9;
      const scale = Math.max(least, Math.min(box.parentElement.clientWidth / width, most));
      plot.style.width = `${width}px`;
      plot.style.transform = scale === 1 ? "" : `scale(${scale})`;
      box.style.width = `${Math.floor(width * scale)}px`;
      box.style.height = `${Math.ceil(height * scale)}px`;
      if (plot.drawn && plot.drawn !== figureOf(plot)) waiting.push(plot);
    }
  };
  const onScreen = () => {
    fit(1.25);
    draw();
  };
  fit(1.25);
  addEventListener("resize", onScreen);
  addEventListener("beforeprint", () => {
    printing = true;
    fit(1);
    while (waiting.length) drawNext();
  });
  addEventListener("afterprint", () => {
    printing = false;
    onScreen();
  });

  // A box that hides something to its right fades out there.
  const boxes = [...document.querySelectorAll(".scroll")];
  const fade = (box) => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  for (const box of boxes) box.addEventListener("scroll", () => fade(box), { passive: true });
  boxes.forEach(fade);
  addEventListener("resize", () => boxes.forEach(fade));

  for (const button of document.querySelectorAll("[data-image]")) {
    button.addEventListener("click", () => {
      const { figureName: name, image: format } = button.dataset;
      const plot = plots.find((one) => one.dataset.figure === name);
      const { width, height } = plot.layout;
      Plotly.downloadImage(plot, { format, filename: named(name), width, height, scale: format === "png" ? 3 : 1 });
    });
  }

  // Tables: upwards, downwards, as they were. What is no number comes last in a column of numbers.

  const number = /^\[?([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=$|[,\s%])(?:, [+-]?[\d.e+-]+\]| ±[\d.e+-]+|)$/;
  const value = (text) => {
    const found = number.exec(text.trim().replace("−", "-"));
    return found ? parseFloat(found[1]) : NaN;
  };
  const missing = (text) => text === "" || text === "not measured" || text === "nothing lost";
  const compare = (texts) => {
    const present = texts.filter((text) => !missing(text));
    if (present.length && present.every((text) => !Number.isNaN(value(text)))) return (a, b) => value(a) - value(b);
    return (a, b) => a.localeCompare(b, "en", { numeric: true });
  };
  const sort = (table, column, direction) => {
    const bodies = [...table.tBodies];
    table.lines ??= bodies.map((body) => [...body.rows]);
    if (direction === "none") {
      bodies.forEach((body, index) => body.append(...table.lines[index]));
      return;
    }
    const text = (row) => row.cells[column].textContent;
    const lines = table.lines.flat();
    const order = compare(lines.map(text));
    const sign = direction === "ascending" ? 1 : -1;
    lines.sort((a, b) => missing(text(a)) - missing(text(b)) || sign * (missing(text(a)) ? 0 : order(text(a), text(b))));
    bodies[0].append(...lines);
  };
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  for (const head of document.querySelectorAll("thead th")) {
    head.firstElementChild.addEventListener("click", () => {
      const direction = next[head.ariaSort];
      for (const other of head.parentElement.cells) other.ariaSort = "none";
      head.ariaSort = direction;
      sort(head.closest("table"), head.cellIndex, direction);
    });
  }

  // Downloads and the clipboard

  for (const button of document.querySelectorAll("[data-csv]")) {
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([data.tables[button.dataset.csv]], { type: "text/csv" }));
      link.download = `${named(button.dataset.csv)}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch { // Pages of a file may be refused the clipboard: the text is selected for the user to copy.
        getSelection().selectAllChildren(text);
      }
    });
  }
})();
