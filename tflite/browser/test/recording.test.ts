import { expect, it } from 'vitest';
import { Recording } from '../src/recording';
import { COLOURS, Trends } from '../src/trends';

const ABOUT = { name: 'tiny', fps: 5, resizePx: 1, cropPx: 1, labels: ['a', 'b, or "c"'] };

function recorded(): Recording {
  const recording = new Recording();
  recording.add(0, Float32Array.of(0.25, 0.75));
  recording.add(0.2, Float32Array.of(0.5, 0.5));
  return recording;
}

it('saves CSV', () => {
  const lines = ['time_s,a,"b, or ""c"""', '0,0.25,0.75', '0.2,0.5,0.5', ''];
  expect(recorded().csv(ABOUT)).toBe(lines.join('\r\n'));
});

it('saves JSON', () => {
  expect(JSON.parse(recorded().json(ABOUT))).toEqual({
    model: 'tiny',
    fps: 5,
    labels: ABOUT.labels,
    times_s: [0, 0.2],
    probabilities: [
      [0.25, 0.75],
      [0.5, 0.5],
    ],
  });
});

it('keeps the end of a long run', () => {
  const recording = new Recording();
  for (let frame = 0; frame < 18_002; frame++) recording.add(frame, new Float32Array(1));
  expect(recording.times.length).toBe(18_000);
  expect(recording.probabilities.length).toBe(18_000);
  expect(recording.times[0]).toBe(2);
  recording.clear();
  expect(recording.times).toEqual([]);
});

it('keeps the colours of classes that stay among the likeliest', () => {
  const trends = new Trends();
  const before = new Map(trends.update([Float32Array.of(6, 5, 4, 3, 2, 1, 0)]));
  const after = trends.update([Float32Array.of(0, 1, 5, 4, 6, 3, 2)]);
  expect([...after.keys()].sort()).toEqual([2, 3, 4, 5, 6]);
  for (const index of [2, 3, 4]) expect(after.get(index)).toBe(before.get(index));
  expect(new Set(after.values()).size).toBe(COLOURS);
  expect(trends.update([Float32Array.of(1, 0)]).size).toBe(2);
});
