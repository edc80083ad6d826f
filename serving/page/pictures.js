// Converts picture files for the model, and the PNG of its response to class ids.

import { Failure } from "./requests.js";

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const ORIENTATION = 0x0112;
// A large picture is read in strips of this many pixels.
const STRIP_PIXELS = 2 ** 21;

// Returns a picture as a bitmap to show and a blob to send, with a note about its conversion.
//
// JPEG and PNG files are sent unchanged. A browser applies the EXIF orientation of a file, while a model sees the
// stored pixels. A rotated file, or a file of another format, is therefore sent as a PNG of the picture as shown.
export async function openPicture(file) {
  const head = new Uint8Array(await file.arrayBuffer());
  const format = fileFormat(head);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw format
      ? new Failure("The picture cannot be read", `${file.name} is damaged, incomplete, or too large for this browser.`)
      : new Failure("This is not a picture", `This browser cannot show ${file.name}. Choose a JPEG or PNG file.`);
  }
  const rotated = format !== "" && exifOrientation(head, format) !== 1;
  if (format && !rotated) return { name: file.name, bitmap, blob: file, note: "" };
  // The colors stay as stored, like those of a file that is sent unchanged.
  const stored = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(stored.width, stored.height);
  canvas.getContext("2d").drawImage(stored, 0, 0);
  stored.close();
  const blob = await canvas.convertToBlob({ type: "image/png" });
  return { name: file.name, bitmap, blob, note: rotated ? "rotated upright" : "sent as PNG" };
}

function fileFormat(data) {
  if (PNG.every((value, index) => data[index] === value)) return "png";
  return data[0] === 0xff && data[1] === 0xd8 && data[2] === 0xff ? "jpeg" : "";
}

// Returns the EXIF orientation of a file; 1 means upright, and is also the default.
function exifOrientation(data, format) {
  const view = new DataView(data.buffer);
  try {
    const start = format === "png" ? findPngExif(view) : findJpegExif(view);
    return start ? readOrientation(view, start) : 1;
  } catch (error) {
    // The metadata is incomplete, which image decoders ignore as well.
    if (error instanceof RangeError) return 1;
    throw error;
  }
}

function findJpegExif(view) {
  let at = 2;
  // The loop ends at the start-of-scan marker, which precedes the pixels.
  while (view.getUint8(at) === 0xff && view.getUint8(at + 1) !== 0xda) {
    if (view.getUint8(at + 1) === 0xe1 && view.getUint32(at + 4) === 0x45786966) return at + 10;
    at += 2 + view.getUint16(at + 2);
  }
  return 0;
}

function findPngExif(view) {
  let at = PNG.length;
  while (at + 8 < view.byteLength) {
    if (view.getUint32(at + 4) === 0x65584966) return at + 8;
    at += 12 + view.getUint32(at);
  }
  return 0;
}

function readOrientation(view, start) {
  const little = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, little);
  const count = view.getUint16(directory, little);
  for (let entry = directory + 2; entry < directory + 2 + 12 * count; entry += 12) {
    if (view.getUint16(entry, little) === ORIENTATION) return view.getUint16(entry + 8, little);
  }
  return 1;
}

// Decodes a grayscale PNG to {width, height, ids, counts}: one byte per pixel, and the number of pixels of each id.
export async function decodeIds(png) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(png, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Failure("The response is invalid", "The server's class ids are not a readable PNG.");
  }
  const { width, height } = bitmap;
  const ids = new Uint8Array(width * height), counts = new Uint32Array(256);
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += rows) {
    context.drawImage(bitmap, 0, -top);
    const count = Math.min(rows, height - top) * width, pixels = context.getImageData(0, 0, width, rows).data;
    for (let index = 0, to = top * width; index < count; index++, to++) {
      const id = pixels[4 * index];
      ids[to] = id;
      counts[id]++;
    }
  }
  bitmap.close();
  return { width, height, ids, counts };
}

// Draws the classes' colors onto a canvas of any size; hidden classes stay transparent.
export function paintIds(canvas, answer, colorOf, hidden) {
  const { width, height } = canvas;
  const table = new Uint32Array(256), one = new Uint8ClampedArray(4);
  for (let id = 0; id < 256; id++) {
    one.set([...colorOf(id), 255]);
    // The view of the same bytes gives the word in this machine's byte order.
    table[id] = hidden.has(id) ? 0 : new Uint32Array(one.buffer)[0];
  }
  const columns = Uint32Array.from({ length: width }, (_, x) => Math.floor((x + 0.5) * answer.width / width));
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (let y = 0, to = 0; y < height; y++) {
    const row = Math.floor((y + 0.5) * answer.height / height) * answer.width;
    for (let x = 0; x < width; x++, to++) pixels[to] = table[answer.ids[row + columns[x]]];
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Returns a canvas of the picture's size with the picture under the classes' colors.
export function drawOverlay(bitmap, answer, colorOf, hidden, opacity) {
  const colors = new OffscreenCanvas(bitmap.width, bitmap.height);
  paintIds(colors, answer, colorOf, hidden);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  context.globalAlpha = opacity;
  context.drawImage(colors, 0, 0);
  return canvas;
}

// Offers a file as a download.
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The URL must outlive the start of the download.
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
