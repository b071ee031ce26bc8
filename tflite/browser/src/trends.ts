/** Which classes the chart and the bars show in colour: the likeliest of the last while. */

import { top } from './answers';

export const COLOURS = 5;

/** Keeps a class's colour as long as it stays among the likeliest. */
export class Trends {
  private colours = new Map<number, number>();

  /** Colours, 0 to COLOURS − 1, by class, from the probabilities of the last frames. */
  update(recent: Float32Array[]): ReadonlyMap<number, number> {
    const sums = new Float64Array(recent[0].length);
    for (const row of recent) row.forEach((p, index) => (sums[index] += p));
    const likeliest = top(sums, COLOURS);
    const kept = [...this.colours].filter(([index]) => likeliest.includes(index));
    this.colours = new Map(kept);
    const free = new Set(Array.from({ length: COLOURS }, (_, colour) => colour));
    for (const colour of this.colours.values()) free.delete(colour);
    for (const index of likeliest) {
      if (this.colours.has(index)) continue;
      const [colour] = free;
      free.delete(colour);
      this.colours.set(index, colour);
    }
    return this.colours;
  }
}
