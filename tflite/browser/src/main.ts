/** The page: a model, a source, and what the one says of the other. */

import { top } from './answers';
import { readDescription, type Description } from './description';
import { compile } from './litert';
import { Recording } from './recording';
import { Refusal } from './refusal';
import { StreamSession } from './session';
import { camera, imageFiles, Screen, videoFile, type Source } from './sources';
import { SHOWN_FRAMES, View } from './view';

const SHOWN_CLASSES = 5;
const view = new View();
const screen = new Screen(view.canvas);
const recording = new Recording();
let model: { description: Description; session: StreamSession } | null = null;
let resetWanted = false;
let stop = new AbortController();
let last: Promise<void> = Promise.resolve();

/** Stops what goes on, and starts a task after it: no two use a model at once. */
function begin(task: (signal: AbortSignal) => Promise<void>): void {
  stop.abort();
  stop = new AbortController();
  const { signal } = stop;
  last = last.then(async () => {
    view.clearError();
    try {
      await task(signal);
    } catch (error) {
      view.showError(error instanceof Refusal ? error.message : `Something broke: ${error}`);
    }
  });
}

async function openModel(name: string, read: () => Promise<ArrayBuffer>): Promise<void> {
  model?.session.delete();
  model = null;
  recording.clear();
  view.restart();
  view.showModel(`Opening ${name} …`);
  try {
    const file = new Uint8Array(await read());
    const description = await readDescription(file);
    const graph = await compile(file);
    try {
      model = { description, session: new StreamSession(graph, description) };
    } catch (error) {
      graph.delete();
      throw error;
    }
    const { labels, fps } = description;
    view.showModel(`${description.name}: ${labels.length} classes, ${fps} frames a second`);
  } catch (error) {
    view.showModel(`${name} is not open.`);
    throw error;
  }
}

async function run(signal: AbortSignal): Promise<void> {
  if (!model) throw new Refusal('Choose a model file first.');
  const { description, session } = model;
  const source = chosenSource();
  resetWanted = true;
  view.showRunning(true);
  try {
    for await (const frame of source(description.fps, signal)) {
      if (resetWanted || frame.afterGap) session.reset();
      if (resetWanted) {
        recording.clear();
        view.restart();
        resetWanted = false;
      }
      session.smoothing = view.smoothing;
      const startMs = performance.now();
      const probabilities = await session.step(frame.picture);
      view.showSpeed(performance.now() - startMs, description.fps);
      recording.add(frame.timeS, probabilities);
      view.showAnswer(
        description.labels,
        top(probabilities, SHOWN_CLASSES).map((index) => [index, probabilities[index]]),
        recording.times.slice(-SHOWN_FRAMES),
        recording.probabilities.slice(-SHOWN_FRAMES),
      );
      if (signal.aborted) break;
    }
  } finally {
    view.showRunning(false);
  }
}

function chosenSource(): Source {
  const { kind, files } = view.source;
  if (kind === 'camera') return camera(screen);
  if (!files.length) throw new Refusal('Choose a file to look at first.');
  return kind === 'video' ? videoFile(screen, files[0]) : imageFiles(screen, files);
}

async function fetchModel(address: string): Promise<ArrayBuffer> {
  const url = new URL(address, document.baseURI);
  if (url.origin !== location.origin) {
    throw new Refusal('The model must come from where the page comes from.');
  }
  const response = await fetch(url);
  if (!response.ok) throw new Refusal(`The server has no model there (status ${response.status}).`);
  return response.arrayBuffer();
}

view.onModel = (file) => begin(() => openModel(file.name, () => file.arrayBuffer()));
view.onStart = () => begin(run);
view.onStop = () => stop.abort();
view.onReset = () => (resetWanted = true);
view.onSave = (kind) => {
  if (!model) return;
  view.save(`${model.description.name}.${kind}`, recording[kind](model.description));
};

const address = new URLSearchParams(location.search).get('model');
if (address) begin(() => openModel(address, () => fetchModel(address)));
