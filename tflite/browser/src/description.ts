/** What a model file says of itself, in the contract's `grw_keras.json`. */

import { Refusal } from './refusal';
import { zipEntry } from './zip';

const FORMAT_VERSION = 1;
const ENTRY = 'grw_keras.json';
const OTHER_KINDS: Record<string, string> = {
  embed: 'half of a split export; export it with split_head=False',
  classify: 'half of a split export; export it with split_head=False',
  clip: 'for whole clips; export it without whole_clip=True',
};

export interface Description {
  name: string;
  fps: number;
  resizePx: number;
  cropPx: number;
  /** One for each class; its number where the model knows no labels. */
  labels: string[];
}

/** @throws Refusal unless these are the bytes of a whole stream file of a known version. */
export async function readDescription(file: Uint8Array): Promise<Description> {
  // The identifier of TFLite's schema, after the offset of the root table.
  if (new TextDecoder('latin1').decode(file.subarray(4, 8)) !== 'TFL3') {
    throw new Refusal('This is not a TFLite file.');
  }
  const entry = await zipEntry(file, ENTRY).catch(() => {
    throw new Refusal(`The archive at the file’s end is damaged: copy the file again.`);
  });
  if (!entry) {
    throw new Refusal(
      `This TFLite file has no ${ENTRY} at its end: it was cut short, or was not written by ` +
        'grw_keras.export.',
    );
  }
  return parse(new TextDecoder().decode(entry));
}

function parse(text: string): Description {
  let about: Record<string, unknown>;
  try {
    about = Object(JSON.parse(text));
  } catch {
    throw new Refusal(`The file’s ${ENTRY} is damaged: copy the file again.`);
  }
  if (about.format_version !== FORMAT_VERSION) {
    throw new Refusal(
      `The file is of format version ${about.format_version}, and this page knows only ` +
        `${FORMAT_VERSION}: take a page and a grw_keras of the same time.`,
    );
  }
  if (about.kind !== 'stream') {
    const what = OTHER_KINDS[String(about.kind)];
    throw new Refusal(
      `This page takes files of kind “stream”; this one is of kind “${about.kind}”` +
        (what ? `, ${what}.` : '.'),
    );
  }
  const { name, fps, resize_px: resizePx, crop_px: cropPx, num_classes: classes } = about;
  const range = JSON.stringify(about.value_range);
  require(typeof name === 'string', 'name', name);
  require(typeof fps === 'number' && fps > 0, 'fps', fps);
  require(isCount(resizePx), 'resize_px', resizePx);
  require(isCount(cropPx) && cropPx <= resizePx, 'crop_px', cropPx);
  require(range === '[0,1]', 'value_range', range);
  require(isCount(classes), 'num_classes', classes);
  return { name, fps, resizePx, cropPx, labels: labelsOf(about.labels, classes) };
}

function labelsOf(labels: unknown, classes: number): string[] {
  if (labels === null) return Array.from({ length: classes }, (_, index) => `class ${index}`);
  require(Array.isArray(labels) && labels.every((label) => typeof label === 'string'), 'labels');
  if (labels.length !== classes) {
    throw new Refusal(
      `The file contradicts itself: it has ${labels.length} labels for ${classes} classes.`,
    );
  }
  return labels;
}

function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) > 0;
}

function require(holds: boolean, key: string, value?: unknown): asserts holds {
  if (holds) return;
  const received = value === undefined ? '' : ` (${value})`;
  throw new Refusal(`The file’s description has no usable “${key}”${received}: export it again.`);
}
