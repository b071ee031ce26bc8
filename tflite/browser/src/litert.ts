/** LiteRT's runtime in WebAssembly, from the files beside the page. */

import { loadAndCompile, loadLiteRt, Tensor } from '@litertjs/core';
import { Refusal } from './refusal';
import type { Graph } from './session';

let runtime: Promise<unknown> | undefined;

/** @throws Refusal if LiteRT can't run the file. */
export async function compile(file: Uint8Array): Promise<Graph> {
  await (runtime ??= loadLiteRt(new URL('wasm/', document.baseURI).href));
  const model = await loadAndCompile(file, { accelerator: 'wasm' }).catch((error: unknown) => {
    throw new Refusal(`LiteRT can’t run this file, which may be damaged: ${error}`);
  });
  return {
    inputs: model.getInputDetails(),
    outputs: model.getOutputDetails(),
    tensor: (values, shape) => new Tensor(values, shape),
    run: (feeds) => model.run(feeds as Record<string, Tensor>),
    delete: () => model.delete(),
  };
}
