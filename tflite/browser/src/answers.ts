/** From logits to what is shown: probabilities, smoothed over time, and the likeliest. */

export function softmax(logits: ArrayLike<number>): Float32Array {
  const largest = Array.from(logits).reduce((a, b) => Math.max(a, b));
  const powers = Float64Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return Float32Array.from(powers, (power) => power / sum);
}

/** p ← s p + (1 − s) new, s in [0, 1); the first is taken as it is. */
export class Smoother {
  smoothing = 0;
  private last: Float32Array | null = null;

  add(probabilities: Float32Array): Float32Array {
    const { last, smoothing: s } = this;
    this.last = last ? probabilities.map((p, i) => s * last[i] + (1 - s) * p) : probabilities;
    return this.last;
  }

  reset(): void {
    this.last = null;
  }
}

/** The k likeliest classes; of equally likely ones the earlier comes first. */
export function top(probabilities: ArrayLike<number>, k: number): number[] {
  const classes = Array.from({ length: probabilities.length }, (_, index) => index);
  return classes.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, k);
}
