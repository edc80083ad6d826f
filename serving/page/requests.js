// The server's REST API, and its errors in plain words.

// An error with a title and a text for people, the server's own message, and whether a retry may help.
export class Failure extends Error {
  constructor(title, text, { server = "", retryable = false } = {}) {
    super(text);
    Object.assign(this, { title, text, server, retryable });
  }
}

export function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const [value, unit] = bytes < 1e6 ? [bytes / 1e3, "kB"] : [bytes / 1e6, "MB"];
  return `${value.toFixed(value < 100 ? 1 : 0)} ${unit}`;
}

// Returns the response of fetch and its text. Throws a Failure if the server cannot be reached.
async function fetchText(url, options) {
  try {
    const response = await fetch(url, options);
    return { response, text: await response.text() };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer", `There was no response from ${location.host}. It may have been `
      + "stopped, or the network is down.", { retryable: true });
  }
}

// Returns the JSON of page/models: the models, the names of the samples, and the maximum size of a request.
export async function fetchModels() {
  const { response, text } = await fetchText("page/models");
  if (!response.ok) throw explainError(response.status, text);
  return parseJson(text);
}

// Requests the class ids of an encoded picture. Returns the PNG of ids, the milliseconds until the whole response
// arrived, and the bytes sent and received.
export async function predict(model, version, picture, maxRequestBytes, signal) {
  const body = `{"signature_name": "serving_default", "inputs": [{"b64": "${await base64(picture)}"}]}`;
  if (body.length > maxRequestBytes) {
    throw new Failure("The picture is too large", `It has ${sizeText(picture.size)}, which makes a request of `
      + `${sizeText(body.length)}. This server accepts at most ${sizeText(maxRequestBytes)}.`);
  }
  const started = performance.now();
  const { response, text } = await fetchText(
    `v1/models/${encodeURIComponent(model)}/versions/${version}:predict`,
    { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  const milliseconds = performance.now() - started;
  if (!response.ok) throw explainError(response.status, text);
  const outputs = parseJson(text).outputs;
  // The only output of a signature comes without its name.
  const encoded = (outputs?.png_bytes ?? outputs)?.[0]?.b64;
  if (typeof encoded !== "string") throw invalidResponse(text);
  const png = Uint8Array.from(atob(encoded), character => character.charCodeAt(0));
  return { png: new Blob([png], { type: "image/png" }), milliseconds, sent: body.length, received: text.length };
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Failure("The picture cannot be read", reader.error.message));
    reader.readAsDataURL(blob);
  });
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw invalidResponse(text);
  }
}

function invalidResponse(text) {
  return new Failure("The response is invalid", "It is not a response of this model. Is there a proxy between this "
    + "page and the server?", { server: text.slice(0, 500), retryable: true });
}

// Removes the name of the graph's node, which means nothing to a reader of the page.
function withoutNodeName(message) {
  return message.split(/\s*\n?\s*\[\[/)[0].trim();
}

export function explainError(status, text) {
  let message = text;
  try {
    message = JSON.parse(text).error ?? text;
  } catch {
    // A proxy answers without JSON, and its text is shown unchanged.
  }
  const server = `HTTP ${status}: ${message}`.slice(0, 2000);
  // This is the assertion in an exported model, which has an older wording in older exports.
  const large = /(?:picture|image) of\] \[(\d+) (\d+)\].*\] \[(\d+)\]/s.exec(message);
  if (large) {
    const [height, width, maxPixels] = large.slice(1).map(Number);
    return new Failure("The picture is too large", `It has ${width} × ${height} pixels. This model accepts at most `
      + `${maxPixels.toLocaleString("en")} pixels in total.`, { server });
  }
  const short = withoutNodeName(message);
  const [title, explanation, retryable] = {
    400: ["The server could not use this picture", short, false],
    404: ["This model is no longer available", "It may have been replaced. Choose another version, or try again.",
      true],
    413: ["The picture is too large", "The server refused a request of this size.", false],
    429: ["The server is busy", "Its request queue is full. Try again in a moment.", true],
    503: ["The server is not ready", "It is starting, stopping or overloaded. Try again in a moment.", true],
    504: ["The server took too long", "The request timed out. A smaller picture may work.", true],
  }[status] ?? ["The server failed on this picture", short || "It gave no reason.", true];
  return new Failure(title, explanation, { server, retryable });
}
