/** The session's handling of states, on a graph that adds up what it is fed. */

import { expect, it } from 'vitest';
import { softmax } from '../src/answers';
import type { Description } from '../src/description';
import { StreamSession, type Graph, type TensorDetails } from '../src/session';

const ABOUT: Description = { name: 'tiny', fps: 5, resizePx: 1, cropPx: 1, labels: ['a', 'b'] };
const IMAGE = { name: 'image', dtype: 'float32', shape: [1, 1, 1, 1, 3] };
const SUM = { name: 'state_sum', dtype: 'float32', shape: [1] };
const COUNT = { name: 'state_count', dtype: 'float32', shape: [] };
const LOGITS = { name: 'logits', dtype: 'float32', shape: [1, 2] };

/** Logits are the sum of all frames' reds, and their number. Counts the tensors that live. */
class Adder implements Graph {
  living = new Set<object>();

  constructor(
    readonly inputs: TensorDetails[] = [COUNT, IMAGE, SUM],
    readonly outputs: TensorDetails[] = [SUM, LOGITS, COUNT],
  ) {}

  tensor(values: Float32Array) {
    const tensor = {
      toTypedArray: () => {
        expect(this.living).toContain(tensor);
        return values;
      },
      delete: () => this.living.delete(tensor),
    };
    this.living.add(tensor);
    return tensor;
  }

  async run(feeds: Record<string, ReturnType<Adder['tensor']>>) {
    const value = (name: string) => feeds[name].toTypedArray()[0];
    const sum = value('state_sum') + value('image');
    const count = value('state_count') + 1;
    return {
      state_sum: this.tensor(Float32Array.of(sum)),
      state_count: this.tensor(Float32Array.of(count)),
      logits: this.tensor(Float32Array.of(sum, count)),
    };
  }

  delete(): void {}
}

function picture(red: number) {
  return { data: Uint8ClampedArray.of(red, 0, 0, 255), width: 1, height: 1 };
}

it('feeds states back by name, and forgets them by reset', async () => {
  const session = new StreamSession(new Adder(), ABOUT);
  for (let round = 0; round < 2; round++) {
    expect(await session.step(picture(255))).toEqual(softmax([1, 1]));
    expect(await session.step(picture(255))).toEqual(softmax([2, 2]));
    expect(await session.step(picture(0))).toEqual(softmax([2, 3]));
    session.reset();
  }
});

it('smooths, from the first frame after a reset anew', async () => {
  const session = new StreamSession(new Adder(), ABOUT);
  session.smoothing = 0.75;
  for (let round = 0; round < 2; round++) {
    const first = await session.step(picture(0));
    expect(first).toEqual(softmax([0, 1]));
    const [, second] = await session.step(picture(0));
    expect(second).toBeCloseTo(0.75 * first[1] + 0.25 * softmax([0, 2])[1], 6);
    session.reset();
  }
});

it('leaves no tensor behind', async () => {
  const graph = new Adder();
  const session = new StreamSession(graph, ABOUT);
  for (let frame = 0; frame < 5; frame++) {
    await session.step(picture(9));
    expect(graph.living.size).toBe(2);
  }
  session.reset();
  expect(graph.living.size).toBe(2);
  session.delete();
  expect(graph.living.size).toBe(0);
});

it.each([
  ['labels', new Adder(), { labels: ['a'] }, /output “logits” should be float32 \[1,1\].*\[1,2\]/],
  ['crop_px', new Adder(), { cropPx: 2 }, /input “image” should be float32 \[1,1,2,2,3\]/],
  ['no state out', new Adder(undefined, [SUM, LOGITS]), {}, /output “state_count”.*missing/],
  ['no image', new Adder([SUM, COUNT]), {}, /input “image”.*missing/],
  ['integers', new Adder([IMAGE, { ...SUM, dtype: 'int32' }]), {}, /“state_sum”.*is int32/],
])('refuses a file that contradicts itself: %s', (_, graph, changes, message) => {
  expect(() => new StreamSession(graph, { ...ABOUT, ...changes })).toThrow(message);
});
