/** A frame's way in: resized as the contract says, its centre cut out, in [0, 1]. */

const CHANNELS = 3;

/** A picture of a canvas: RGBA, 8 bits, rows one after the other. */
export type Picture = Pick<ImageData, 'data' | 'width' | 'height'>;

/** Keeps the weights of the last size; a camera never changes its own. */
export class Preprocess {
  private columns: Axis;
  private rows: Axis;

  constructor(
    private readonly resizePx: number,
    private readonly cropPx: number,
  ) {
    this.columns = this.rows = new Axis(cropPx, cropPx, cropPx);
  }

  /** [cropPx, cropPx, 3] of a picture of any size. */
  prepare({ data, width, height }: Picture): Float32Array<ArrayBuffer> {
    // What fits already is "resized" to itself: all weights are then exactly 0 or 1.
    const fits = width === this.cropPx && height === this.cropPx;
    const resized = fits ? this.cropPx : this.resizePx;
    this.columns = this.columns.fitted(width, resized);
    this.rows = this.rows.fitted(height, resized);

    const line = this.cropPx * CHANNELS;
    const narrowed = new Float32Array(height * line);
    for (let y = this.rows.begin; y < this.rows.end; y++) {
      this.narrow(data.subarray(y * width * 4), narrowed.subarray(y * line));
    }
    const image = new Float32Array(this.cropPx * line);
    const { first, last, weights } = this.rows;
    for (let i = 0; i < this.cropPx; i++) {
      const out = image.subarray(i * line, (i + 1) * line);
      for (let y = first[i]; y <= last[i]; y++) {
        const weight = weights[i][y - first[i]] / 255;
        for (let x = 0; x < line; x++) out[x] += weight * narrowed[y * line + x];
      }
    }
    return image;
  }

  private narrow(rgba: Uint8ClampedArray, out: Float32Array): void {
    const { first, last, weights } = this.columns;
    for (let i = 0; i < this.cropPx; i++) {
      let red = 0;
      let green = 0;
      let blue = 0;
      for (let x = first[i]; x <= last[i]; x++) {
        const weight = weights[i][x - first[i]];
        red += weight * rgba[x * 4];
        green += weight * rgba[x * 4 + 1];
        blue += weight * rgba[x * 4 + 2];
      }
      out[i * CHANNELS] = red;
      out[i * CHANNELS + 1] = green;
      out[i * CHANNELS + 2] = blue;
    }
  }
}

/** The central pixels of a side, each a weighted mean of input pixels `first[i]` to `last[i]`. */
class Axis {
  readonly first: number[] = [];
  readonly last: number[] = [];
  readonly weights: Float64Array[] = [];

  constructor(
    private readonly input: number,
    private readonly output: number,
    private readonly crop: number,
  ) {
    const scale = input / output;
    const reach = Math.max(scale, 1);
    const margin = Math.floor((output - crop) / 2);
    for (let i = 0; i < crop; i++) {
      const centre = (margin + i + 0.5) * scale;
      const first = Math.max(0, Math.floor(centre - reach));
      const last = Math.min(input - 1, Math.floor(centre + reach));
      const weights = Float64Array.from({ length: last - first + 1 }, (_, j) =>
        Math.max(0, 1 - Math.abs(first + j + 0.5 - centre) / reach),
      );
      const sum = weights.reduce((a, b) => a + b);
      this.first.push(first);
      this.last.push(last);
      this.weights.push(weights.map((weight) => weight / sum));
    }
  }

  /** The first input pixel that counts, and one past the last. */
  get begin(): number {
    return this.first[0];
  }

  get end(): number {
    return this.last[this.crop - 1] + 1;
  }

  fitted(input: number, output: number): Axis {
    const fits = input === this.input && output === this.output;
    return fits ? this : new Axis(input, output, this.crop);
  }
}
