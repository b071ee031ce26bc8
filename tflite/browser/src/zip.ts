/** Reads one entry of a zip archive that ends a file. */

const END_RECORD = 0x06054b50;
const END_RECORD_SIZE = 22;
const LONGEST_COMMENT = 0xffff;
const DEFLATED = 8;

/**
 * The bytes of the entry, or null where the file ends in no archive or the archive has no such
 * entry. Found through the central directory: the archive begins somewhere in the file, and what
 * stands before it may hold bytes that look like its start.
 *
 * @throws RangeError or TypeError if the archive is damaged.
 */
export async function zipEntry(file: Uint8Array, name: string): Promise<Uint8Array | null> {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const u16 = (at: number) => view.getUint16(at, true);
  const u32 = (at: number) => view.getUint32(at, true);

  let end = file.length - END_RECORD_SIZE;
  const earliest = Math.max(0, end - LONGEST_COMMENT);
  while (end >= earliest && u32(end) !== END_RECORD) end--;
  if (end < earliest) return null;

  let header = end - u32(end + 12);
  // Offsets count from the archive's start or from the file's, as the writer has it.
  const start = header - u32(end + 16);
  while (header < end) {
    const nameSize = u16(header + 28);
    const nameAt = header + 46;
    if (new TextDecoder().decode(file.subarray(nameAt, nameAt + nameSize)) === name) {
      const local = start + u32(header + 42);
      const from = local + 30 + u16(local + 26) + u16(local + 28);
      const bytes = file.slice(from, from + u32(header + 20));
      return u16(header + 10) === DEFLATED ? inflate(bytes) : bytes;
    }
    header = nameAt + nameSize + u16(header + 30) + u16(header + 32);
  }
  return null;
}

async function inflate(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
