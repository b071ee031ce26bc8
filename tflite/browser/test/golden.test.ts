/** The mathematics against the numbers that all clients are tested with. */

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Smoother, softmax, top } from '../src/answers';
import { FrameClock } from '../src/clock';
import { Preprocess } from '../src/preprocess';

interface Golden {
  frames: {
    width: number;
    height: number;
    rgb_base64: string;
    resize_px: number;
    crop_px: number;
    tensor: number[];
  }[];
  smoothing: { s: number; logits: number[][]; probabilities: number[][]; smoothed: number[][] };
  clock: { fps: number; timestamps_s: number[]; kept: number[] };
  top: { probabilities: number[]; labels: string[]; k: number; top: [string, number][] };
}

const path = new URL('../../golden/golden.json', import.meta.url);
const golden: Golden = JSON.parse(readFileSync(path, 'utf8'));

function expectClose(received: ArrayLike<number>, expected: number[], tolerance: number): void {
  expect(received.length).toBe(expected.length);
  const errors = expected.map((value, i) => Math.abs(value - received[i]));
  expect(errors.reduce((a, b) => Math.max(a, b))).toBeLessThan(tolerance);
}

function rgba(rgb: Uint8Array): Uint8ClampedArray<ArrayBuffer> {
  const pixels = new Uint8ClampedArray((rgb.length / 3) * 4).fill(255);
  rgb.forEach((value, i) => (pixels[Math.floor(i / 3) * 4 + (i % 3)] = value));
  return pixels;
}

describe('preprocess', () => {
  it.each(golden.frames)('$width × $height', (frame) => {
    const { width, height } = frame;
    const data = rgba(Buffer.from(frame.rgb_base64, 'base64'));
    const preprocess = new Preprocess(frame.resize_px, frame.crop_px);
    expectClose(preprocess.prepare({ data, width, height }), frame.tensor, 2e-6);
  });

  it('frames of many sizes, one after the other', () => {
    const [{ resize_px, crop_px }] = golden.frames;
    const preprocess = new Preprocess(resize_px, crop_px);
    const alike = golden.frames.filter((frame) => frame.resize_px === resize_px);
    expect(alike.length).toBeGreaterThan(2);
    for (const { width, height, rgb_base64, tensor } of [...alike, ...alike]) {
      const data = rgba(Buffer.from(rgb_base64, 'base64'));
      expectClose(preprocess.prepare({ data, width, height }), tensor, 2e-6);
    }
  });
});

describe('answers', () => {
  const { s, logits, probabilities, smoothed } = golden.smoothing;

  it('softmax', () => {
    logits.forEach((row, i) => expectClose(softmax(row), probabilities[i], 2e-6));
  });

  it('smoothing, and again after a reset', () => {
    const smoother = new Smoother();
    smoother.smoothing = s;
    for (let round = 0; round < 2; round++) {
      logits.forEach((row, i) => expectClose(smoother.add(softmax(row)), smoothed[i], 2e-6));
      smoother.reset();
    }
  });

  it('top', () => {
    const { labels, k, top: expected } = golden.top;
    const likeliest = top(golden.top.probabilities, k);
    expect(likeliest.map((i) => [labels[i], golden.top.probabilities[i]])).toEqual(expected);
  });
});

it('clock', () => {
  const { fps, timestamps_s: times, kept } = golden.clock;
  const clock = new FrameClock(fps);
  const wanted = times.map((time) => clock.wants(time));
  expect(wanted.flatMap((wants, i) => (wants ? [i] : []))).toEqual(kept);
});
