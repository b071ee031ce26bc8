/** Files good and broken. */

import { deflateRawSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { readDescription } from '../src/description';
import { Refusal } from '../src/refusal';

const ABOUT = {
  format_version: 1,
  kind: 'stream',
  name: 'tiny',
  fps: 5,
  resize_px: 10,
  crop_px: 8,
  value_range: [0, 1],
  num_classes: 2,
  labels: ['hugging', 'käse'],
};
// Bytes like the start of an archive: a reader that looks for that falls for them.
const MODEL = Buffer.from('\x1c\0\0\0TFL3 weights PK\x03\x04 more weights', 'latin1');

interface Archive {
  entries: [name: string, text: string][];
  deflated?: boolean;
  comment?: string;
  /** What the archive's offsets count from. */
  origin?: number;
}

/** An archive as zip's specification has it. */
function zip({ entries, deflated = false, comment = '', origin = 0 }: Archive): Buffer {
  const locals: Buffer[] = [];
  const headers: Buffer[] = [];
  let at = origin;
  for (const [entryName, text] of entries) {
    const name = Buffer.from(entryName);
    const data = deflated ? deflateRawSync(Buffer.from(text)) : Buffer.from(text);
    const local = Buffer.alloc(30);
    local.write('PK\x03\x04', 'latin1');
    local.writeUInt16LE(name.length, 26);
    const header = Buffer.alloc(46);
    header.write('PK\x01\x02', 'latin1');
    header.writeUInt16LE(deflated ? 8 : 0, 10);
    header.writeUInt32LE(data.length, 20);
    header.writeUInt32LE(Buffer.byteLength(text), 24);
    header.writeUInt16LE(name.length, 28);
    header.writeUInt32LE(at, 42);
    locals.push(local, name, data);
    headers.push(header, name);
    at += 30 + name.length + data.length;
  }
  const directory = Buffer.concat(headers);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(directory.length, 12);
  end.writeUInt32LE(at, 16);
  end.writeUInt16LE(comment.length, 20);
  return Buffer.concat([...locals, directory, end, Buffer.from(comment)]);
}

const LABELS: [string, string] = ['labels.txt', 'hugging\nkäse\n'];

function file(about: object | string, archive: Partial<Archive> = {}): Buffer {
  const text = typeof about === 'string' ? about : JSON.stringify(about);
  return Buffer.concat([MODEL, zip({ entries: [LABELS, ['grw_keras.json', text]], ...archive })]);
}

describe('a stream file', () => {
  const expected = { name: 'tiny', fps: 5, resizePx: 10, cropPx: 8, labels: ['hugging', 'käse'] };

  it.each([
    ['stored', {}],
    ['deflated', { deflated: true }],
    ['with a comment', { comment: 'PK and more' }],
    ['with offsets that count from the start of the file', { origin: MODEL.length }],
  ])('%s', async (_, archive) => {
    expect(await readDescription(file(ABOUT, archive))).toEqual(expected);
  });

  it('without labels has numbers', async () => {
    const { labels } = await readDescription(file({ ...ABOUT, labels: null }));
    expect(labels).toEqual(['class 0', 'class 1']);
  });
});

const whole = file(ABOUT);
const deflated = file(ABOUT, { deflated: true });
const damaged = Buffer.from(deflated).fill(0xff, MODEL.length + 80, MODEL.length + 140);
const farAway = Buffer.from(whole);
farAway.writeUInt32LE(0xfffffff0, whole.length - 22 + 12);

describe('is refused', () => {
  it.each([
    ['no bytes', Buffer.alloc(0), /not a TFLite file/],
    ['text', Buffer.from('model: tiny, in words'), /not a TFLite file/],
    ['an archive without a model', whole.subarray(MODEL.length), /not a TFLite file/],
    ['a model alone', MODEL, /cut short, or was not written by grw_keras/],
    ['one cut short', whole.subarray(0, -1), /cut short, or was not written by grw_keras/],
    ['one cut in the model', whole.subarray(0, 20), /cut short, or was not written by grw_keras/],
    ['another archive', file(ABOUT, { entries: [LABELS] }), /no grw_keras.json/],
    ['a damaged entry', damaged, /damaged/],
    ['a damaged directory', farAway, /damaged/],
    ['no JSON', file('{"format_version": 1,'), /damaged/],
    ['no object', file('7'), /format version undefined/],
    ['a null', file('null'), /format version undefined/],
    ['a later version', file({ ...ABOUT, format_version: 2 }), /version 2, .* knows only 1/],
    ['an embed file', file({ ...ABOUT, kind: 'embed' }), /“embed”, half of a split export/],
    ['a classify file', file({ ...ABOUT, kind: 'classify' }), /“classify”, half of a split/],
    ['a clip file', file({ ...ABOUT, kind: 'clip' }), /“clip”, for whole clips/],
    ['a kind unheard of', file({ ...ABOUT, kind: 'x' }), /of kind “x”\.$/],
    ['too few labels', file({ ...ABOUT, labels: ['a'] }), /1 labels for 2 classes/],
    ['labels of another type', file({ ...ABOUT, labels: [1, 2] }), /“labels”/],
    ['a crop that is no number', file({ ...ABOUT, crop_px: '8' }), /“crop_px” \(8\)/],
    ['a crop larger than all', file({ ...ABOUT, crop_px: 11 }), /“crop_px” \(11\)/],
    ['no fps', file({ ...ABOUT, fps: undefined }), /“fps”/],
    ['fps of 0', file({ ...ABOUT, fps: 0 }), /“fps” \(0\)/],
    ['other pixels', file({ ...ABOUT, value_range: [-1, 1] }), /“value_range” \(\[-1,1\]\)/],
  ])('%s', async (_, bytes, message) => {
    const error = await readDescription(bytes).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(Refusal);
    expect((error as Refusal).message).toMatch(message);
  });
});
