// Pictures of reactions: fetched with the token, shown as images, so that nothing in them can act on the page.

import { fetchBlob } from "./api.js";

const KEPT = 60;
const drawings = new Map();

/**
 * The URL of a picture of a reaction, in pixels; it lives as long as the page, or until many others were drawn.
 * Throws the server's refusal where the reaction cannot be drawn.
 */
export async function drawingOf(reaction, width, maxHeight, signal) {
  // Few widths, so that a window that is resized finds its pictures again.
  const rounded = Math.min(2000, Math.max(100, Math.round(width / 80) * 80));
  const key = `${rounded} ${maxHeight} ${reaction}`;
  if (!drawings.has(key)) {
    const path = `v1/reactions/drawing?reaction=${encodeURIComponent(reaction)}&width=${rounded}&max_height=${maxHeight}`;
    drawings.set(key, URL.createObjectURL(await fetchBlob(path, { signal })));
    if (drawings.size > KEPT) {
      const [oldest, url] = drawings.entries().next().value;
      drawings.delete(oldest);
      URL.revokeObjectURL(url);
    }
  }
  return drawings.get(key);
}
