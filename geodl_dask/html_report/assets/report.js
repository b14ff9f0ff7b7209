"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [height, width] = data.size;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const byId = (id) => document.getElementById(id);
  const TILE = 512;

  // The map's plane is the raster's: latitude is the row, longitude the column, and at zoom 0 a pixel is a pixel.
  const crs = L.extend({}, L.CRS.Simple, {
    transformation: new L.Transformation(1, 0, 1, 0),
    distance: (one, other) => {
      const [x, y] = data.metres || [1, 1];
      return Math.hypot((one.lng - other.lng) * x, (one.lat - other.lat) * y);
    },
  });
  const boundsOf = ([row, col, rows, cols]) => L.latLngBounds([row, col], [row + rows, col + cols]);
  const whole = boundsOf([0, 0, height, width]);
  const coarsest = Math.max(data.level, Math.ceil(Math.log2(Math.max(height, width) / TILE)));
  const map = L.map("map", {
    crs, attributionControl: false, zoomControl: false, zoomSnap: 0.25, minZoom: -coarsest - 3, maxZoom: 4, maxBoundsViscosity: 0.6,
    maxBounds: whole.pad(0.6), zoomAnimation: !calm, fadeAnimation: false, markerZoomAnimation: false,
  });
  L.control.zoom({ position: "topleft" }).addTo(map);
  if (data.metres) L.control.scale({ imperial: false, maxWidth: 110 }).addTo(map);

  const Tiles = L.TileLayer.extend({
    initialize(uris, options) {
      this.uris = uris;
      L.TileLayer.prototype.initialize.call(this, "", {
        tileSize: TILE, bounds: whole, noWrap: true, keepBuffer: 1, minZoom: map.getMinZoom(), maxZoom: map.getMaxZoom(),
        minNativeZoom: -coarsest, maxNativeZoom: -data.level, ...options,
      });
    },
    getTileUrl({ x, y, z }) {
      return this.uris[`${-z}/${x}/${y}`] || L.Util.emptyImageUrl;
    },
  });

  const pane = (name, order) => {
    const made = map.createPane(name);
    made.style.zIndex = order;
    made.style.pointerEvents = "none";
    return made;
  };
  pane("sheet", 205);
  L.rectangle(whole, { pane: "sheet", interactive: false, weight: 1, className: "sheet" }).addTo(map);
  const photoPanes = data.photos.map((_, number) => pane(`photo${number}`, 210 + 10 * number));
  const changePane = pane("change", 400);
  pane("marks", 450);
  data.photos.forEach((tiles, number) => new Tiles(tiles, { pane: `photo${number}` }).addTo(map));
  const layers = data.layers.map((tiles) => L.layerGroup([new Tiles(tiles, { pane: "change", className: "pixels" })]).addTo(map));
  for (const detail of data.details) {
    const bounds = boundsOf(detail.window);
    detail.photos.forEach((uri, number) => uri && L.imageOverlay(uri, bounds, { pane: `photo${number}` }).addTo(map));
    for (const [number, uri] of Object.entries(detail.layers))
      layers[number].addLayer(L.imageOverlay(uri, bounds, { pane: "change", className: "pixels" }));
  }
  for (const block of data.failed)
    L.rectangle(boundsOf(block), { pane: "marks", interactive: false, color: "#c4300a", weight: 2, dashArray: "6 5", fillOpacity: 0.12 }).addTo(map);

  // Swipe: the slider is a real one, so keys and screen readers work it; the line follows its thumb.
  const swipe = byId("swipe"), THUMB = 48;
  const cut = () => {
    if (!swipe) return;
    const size = map.getSize(), at = THUMB / 2 + (swipe.value / 100) * (size.x - THUMB);
    const { x: left, y: top } = map.containerPointToLayerPoint([0, 0]), right = left + size.x, bottom = top + size.y;
    const box = (from, to) => `polygon(${from}px ${top}px, ${to}px ${top}px, ${to}px ${bottom}px, ${from}px ${bottom}px)`;
    photoPanes[0].style.clipPath = box(left, left + at);
    photoPanes[1].style.clipPath = box(left + at, right);
    byId("divider").style.left = `${at}px`;
    swipe.setAttribute("aria-valuetext", `${Math.round(swipe.value)} percent before`);
  };
  if (swipe) swipe.addEventListener("input", cut);
  map.on("move zoom zoomend resize viewreset", cut);

  const opacity = byId("opacity");
  const shade = () => { changePane.style.opacity = opacity.value / 100; };
  if (opacity) { opacity.addEventListener("input", shade); shade(); }
  for (const box of document.querySelectorAll("input.layer"))
    box.addEventListener("change", () => (box.checked ? layers[box.value].addTo(map) : layers[box.value].remove()));

  const place = byId("place"), [a, b, c, d, e, f] = data.transform, digits = data.isGeographic ? 5 : 1;
  const tell = () => {
    const { lat: row, lng: col } = map.getCenter();
    const spell = (value) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    place.textContent = `${spell(a * col + b * row + c)}, ${spell(d * col + e * row + f)} (${data.crs})`;
  };
  map.on("moveend", tell);

  let mark = null;
  const buttons = [...document.querySelectorAll("button.area")];
  const press = (pressed) => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === pressed)));
  const show = (button) => {
    const area = data.areas[button.dataset.area], bounds = boundsOf(area.window);
    if (mark) mark.remove();
    mark = L.layerGroup([["#fff", 5], ["#101417", 2]].map(([color, weight]) =>
      L.rectangle(bounds, { pane: "marks", interactive: false, fill: false, color, weight }))).addTo(map);
    map.fitBounds(bounds.pad(0.35), { maxZoom: 2, animate: !calm });
    press(button);
    byId("said").textContent = `The map shows ${area.text}.`;
    const stage = byId("stage"), { top, bottom } = stage.getBoundingClientRect();
    if (top < 0 || bottom > innerHeight) stage.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  };
  buttons.forEach((button) => button.addEventListener("click", () => show(button)));
  press(null);
  byId("whole").addEventListener("click", () => {
    if (mark) mark.remove();
    press(null);
    map.fitBounds(whole, { animate: !calm });
  });
  map.fitBounds(whole, { animate: false });
  cut();
  window.geodlReport = { map };
})();
