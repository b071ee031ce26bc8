/** What a run answered, to keep. */

import type { Description } from './description';

/** An hour at 5 frames a second; of a longer run the end is kept. */
const LONGEST = 18_000;

export class Recording {
  readonly times: number[] = [];
  readonly probabilities: Float32Array[] = [];

  get length(): number {
    return this.times.length;
  }

  add(timeS: number, probabilities: Float32Array): void {
    this.times.push(timeS);
    this.probabilities.push(probabilities);
    if (this.length > LONGEST) {
      this.times.shift();
      this.probabilities.shift();
    }
  }

  clear(): void {
    this.times.length = this.probabilities.length = 0;
  }

  /** A line for each frame: its time in seconds, and a column for each class. */
  csv({ labels }: Description): string {
    const lines = this.times.map((timeS, row) => [timeS, ...this.probabilities[row]].join(','));
    return [['time_s', ...labels.map(quoted)].join(','), ...lines].join('\r\n') + '\r\n';
  }

  json({ name, fps, labels }: Description): string {
    const probabilities = this.probabilities.map((row) => Array.from(row));
    return JSON.stringify({ model: name, fps, labels, times_s: this.times, probabilities });
  }
}

function quoted(cell: string): string {
  return /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}
