/** Runs a `stream` file over one stream of frames. */

import { Smoother, softmax } from './answers';
import type { Description } from './description';
import { Preprocess, type Picture } from './preprocess';
import { Refusal } from './refusal';

const IMAGE = 'image';
const LOGITS = 'logits';

/** A tensor in the runtime's memory, which is freed by hand. */
export interface Tensor {
  toTypedArray(): ArrayLike<number>;
  delete(): void;
}

export interface TensorDetails {
  readonly name: string;
  readonly dtype: string;
  readonly shape: ArrayLike<number>;
}

/** A model's one signature, as LiteRT has it. */
export interface Graph {
  readonly inputs: readonly TensorDetails[];
  readonly outputs: readonly TensorDetails[];
  tensor(values: Float32Array<ArrayBuffer>, shape: number[]): Tensor;
  run(feeds: Record<string, Tensor>): Promise<Record<string, Tensor>>;
  delete(): void;
}

export class StreamSession {
  private readonly preprocess: Preprocess;
  private readonly smoother = new Smoother();
  private readonly stateShapes: Map<string, number[]>;
  private states: Record<string, Tensor> = {};

  /** @throws Refusal if the graph isn't what the description says. */
  constructor(
    private readonly graph: Graph,
    private readonly description: Description,
  ) {
    const { resizePx, cropPx, labels } = description;
    this.preprocess = new Preprocess(resizePx, cropPx);
    this.stateShapes = new Map(
      graph.inputs.filter(({ name }) => name !== IMAGE).map((i) => [i.name, Array.from(i.shape)]),
    );
    requireTensors('input', graph.inputs, [[IMAGE, this.imageShape], ...this.stateShapes]);
    requireTensors('output', graph.outputs, [[LOGITS, [1, labels.length]], ...this.stateShapes]);
    this.reset();
  }

  set smoothing(smoothing: number) {
    this.smoother.smoothing = smoothing;
  }

  /** Forgets all frames: what follows is another scene. Not while a step is under way. */
  reset(): void {
    deleteAll(this.states);
    this.states = {};
    for (const [name, shape] of this.stateShapes) {
      const size = shape.reduce((a, b) => a * b, 1);
      this.states[name] = this.graph.tensor(new Float32Array(size), shape);
    }
    this.smoother.reset();
  }

  /** Probabilities after one more frame. */
  async step(frame: Picture): Promise<Float32Array> {
    const image = this.graph.tensor(this.preprocess.prepare(frame), this.imageShape);
    const feeds = { [IMAGE]: image, ...this.states };
    let answers: Record<string, Tensor>;
    try {
      answers = await this.graph.run(feeds);
    } catch (error) {
      image.delete(); // the states stay for the next frame
      throw error;
    }
    deleteAll(feeds);
    const { [LOGITS]: logits, ...states } = answers;
    this.states = states;
    const probabilities = this.smoother.add(softmax(logits.toTypedArray()));
    logits.delete();
    return probabilities;
  }

  delete(): void {
    deleteAll(this.states);
    this.graph.delete();
  }

  private get imageShape(): number[] {
    const { cropPx } = this.description;
    return [1, 1, cropPx, cropPx, 3];
  }
}

function requireTensors(
  side: string,
  found: readonly TensorDetails[],
  wanted: [string, number[]][],
): void {
  const byName = new Map(found.map((tensor) => [tensor.name, tensor]));
  for (const [name, shape] of wanted) {
    const tensor = byName.get(name);
    const due = `float32 [${shape}]`;
    const is = tensor ? `${tensor.dtype} [${Array.from(tensor.shape)}]` : 'missing';
    if (is !== due) {
      throw new Refusal(
        `The file contradicts its description: ${side} “${name}” should be ${due}, and is ${is}.`,
      );
    }
  }
}

function deleteAll(tensors: Record<string, Tensor>): void {
  for (const tensor of Object.values(tensors)) tensor.delete();
}
