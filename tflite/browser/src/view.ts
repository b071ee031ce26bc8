/** All that touches the page's elements. */

import { Chart } from './chart';
import { Trends } from './trends';

/** How many frames the chart shows: 20 s at 5 frames a second. */
export const SHOWN_FRAMES = 100;

/** Frames that the shown speed is the mean of. */
const TIMED_FRAMES = 10;

type Saved = 'csv' | 'json';

export class View {
  readonly canvas = element<HTMLCanvasElement>('canvas');
  onModel = (_file: File): void => {};
  onStart = (): void => {};
  onStop = (): void => {};
  onReset = (): void => {};
  onSave = (_kind: Saved): void => {};

  private readonly smoothingInput = element<HTMLInputElement>('smoothing');
  private readonly chart = new Chart(element('chart'), element('legend'));
  private trends = new Trends();
  private frames = 0;
  private ticks: { timeMs: number; latencyMs: number }[] = [];

  constructor() {
    const modelFile = element<HTMLInputElement>('model-file');
    modelFile.addEventListener('change', () => {
      if (modelFile.files?.length) this.onModel(modelFile.files[0]);
    });
    element('start').addEventListener('click', () => this.onStart());
    element('stop').addEventListener('click', () => this.onStop());
    element('reset').addEventListener('click', () => this.onReset());
    element('save-csv').addEventListener('click', () => this.onSave('csv'));
    element('save-json').addEventListener('click', () => this.onSave('json'));
    this.smoothingInput.addEventListener('input', () => {
      element('smoothing-value').textContent = String(this.smoothing);
    });
    for (const radio of document.getElementsByName('source')) {
      radio.addEventListener('change', () => this.showSource());
    }
    this.showSource();
    document.addEventListener('dragover', (event) => event.preventDefault());
    document.addEventListener('drop', (event) => {
      event.preventDefault();
      if (event.dataTransfer?.files.length) this.take(event.dataTransfer.files);
    });
  }

  get smoothing(): number {
    return this.smoothingInput.valueAsNumber;
  }

  get source(): { kind: string; files: File[] } {
    const kind = document.querySelector<HTMLInputElement>('[name=source]:checked')!.value;
    return { kind, files: Array.from(this.fileInput(kind)?.files ?? []) };
  }

  showError(sentence: string): void {
    element('error').textContent = sentence;
    element('error').hidden = false;
  }

  clearError(): void {
    element('error').hidden = true;
  }

  showModel(about: string): void {
    element('model-about').textContent = about;
  }

  showRunning(running: boolean): void {
    element<HTMLButtonElement>('stop').disabled = !running;
    element<HTMLButtonElement>('reset').disabled = !running;
  }

  /** Clears what an earlier stream left. */
  restart(): void {
    this.trends = new Trends();
    this.ticks = [];
    this.frames = 0;
    this.chart.clear();
    element('bars').replaceChildren();
    element('answer').hidden = true;
    for (const id of ['fps', 'latency', 'seen']) element(id).textContent = '–';
    for (const id of ['from', 'to']) element(id).textContent = '';
    this.allowSaving(false);
  }

  showSpeed(latencyMs: number, wantedFps: number): void {
    this.ticks = [...this.ticks.slice(-TIMED_FRAMES), { timeMs: performance.now(), latencyMs }];
    const [first] = this.ticks;
    const count = this.ticks.length - 1;
    const mean = this.ticks.reduce((sum, tick) => sum + tick.latencyMs, 0) / this.ticks.length;
    element('seen').textContent = String(++this.frames);
    element('latency').textContent = `${mean.toFixed(0)} ms`;
    if (count) {
      const fps = (1000 * count) / (this.ticks[count].timeMs - first.timeMs);
      element('fps').textContent = fps.toFixed(1) + (fps < wantedFps ? ` of ${wantedFps}` : '');
    }
  }

  /** @param likeliest classes with their probabilities, the likeliest first. */
  showAnswer(
    labels: string[],
    likeliest: [number, number][],
    times: number[],
    probabilities: Float32Array[],
  ): void {
    const [[first, probability]] = likeliest;
    element('hint').hidden = true;
    element('answer').hidden = false;
    setText('answer-label', labels[first]);
    setText('answer-probability', percent(probability));

    const colours = this.trends.update(probabilities);
    this.chart.draw(labels, colours, times, probabilities);
    element('from').textContent = `${times[0].toFixed(1)} s`;
    element('to').textContent = `${times[times.length - 1].toFixed(1)} s`;
    element('bars').replaceChildren(
      ...likeliest.map(([index, p]) => bar(labels[index], p, colours.get(index))),
    );
    this.allowSaving(true);
  }

  save(name: string, text: string): void {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text]));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  private take(files: FileList): void {
    const [type] = files[0].type.split('/');
    const kind = { image: 'images', video: 'video' }[type];
    if (!kind) {
      this.onModel(files[0]);
      return;
    }
    document.querySelector<HTMLInputElement>(`[name=source][value=${kind}]`)!.checked = true;
    this.fileInput(kind)!.files = files;
    this.showSource();
  }

  private showSource(): void {
    const { kind } = this.source;
    for (const group of document.querySelectorAll<HTMLElement>('[data-source]')) {
      group.hidden = group.dataset.source !== kind;
    }
  }

  private fileInput(kind: string): HTMLInputElement | null {
    return document.querySelector(`[data-source=${kind}] input`);
  }

  private allowSaving(allowed: boolean): void {
    for (const id of ['save-csv', 'save-json']) {
      element<HTMLButtonElement>(id).disabled = !allowed;
    }
  }
}

function element<E extends Element = HTMLElement>(id: string): E {
  return document.getElementById(id) as unknown as E;
}

/** Writes only what is new: screen readers say every change. */
function setText(id: string, text: string): void {
  if (element(id).textContent !== text) element(id).textContent = text;
}

function percent(probability: number): string {
  return `${(100 * probability).toFixed(0)} %`;
}

function bar(label: string, probability: number, colour: number | undefined): HTMLElement {
  const row = document.createElement('li');
  const name = document.createElement('span');
  const value = document.createElement('span');
  const track = document.createElement('span');
  name.textContent = label;
  value.textContent = percent(probability);
  track.className = 'track';
  track.style.setProperty('--share', `${100 * probability}%`);
  if (colour !== undefined) track.style.setProperty('--colour', `var(--colour-${colour})`);
  row.append(name, value, track);
  return row;
}
