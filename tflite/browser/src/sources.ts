/** Where frames come from: all draw on the canvas that is shown, and give what stands on it. */

import { EARLY_S, FrameClock } from './clock';
import type { Picture } from './preprocess';
import { Refusal } from './refusal';

export interface Frame {
  timeS: number;
  picture: Picture;
  /** Whether frames are missing before it: what came before is then another scene. */
  afterGap: boolean;
}

/** Frames until there are no more, or the signal is aborted. */
export type Source = (fps: number, signal: AbortSignal) => AsyncGenerator<Frame>;

const DENIED: Record<string, string> = {
  NotAllowedError: 'The camera was refused: allow it in the browser’s settings for this page.',
  NotFoundError: 'No camera was found.',
  NotReadableError: 'The camera is in use by another program.',
};

/** The longest wait for a picture after its seek has ended. */
const PRESENTING_MS = 1000;

/** Draws pictures of any size, and reads them back. */
export class Screen {
  private readonly context: CanvasRenderingContext2D;

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext('2d', { alpha: false, willReadFrequently: true })!;
  }

  draw(picture: CanvasImageSource, width: number, height: number): void {
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    this.context.drawImage(picture, 0, 0, width, height);
  }

  read(): Picture {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }
}

/** Pictures in the order of their names, as consecutive frames at the model's rate. */
export function imageFiles(screen: Screen, files: File[]): Source {
  const { compare } = new Intl.Collator('en', { numeric: true });
  const sorted = files.toSorted((a, b) => compare(a.name, b.name));
  return async function* (fps, signal) {
    for (const [index, file] of sorted.entries()) {
      const bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none' }).catch(() => {
        throw new Refusal(`“${file.name}” can’t be decoded as an image.`);
      });
      if (signal.aborted) return;
      screen.draw(bitmap, bitmap.width, bitmap.height);
      bitmap.close();
      yield { timeS: index / fps, picture: screen.read(), afterGap: false };
    }
  };
}

/** What a video shows at each tick of the model's rate, however long each takes. */
export function videoFile(screen: Screen, file: File): Source {
  return async function* (fps, signal) {
    const video = document.createElement('video');
    video.muted = true;
    video.playsInline = true;
    video.preload = 'auto';
    const first = presented(video);
    video.src = URL.createObjectURL(file);
    try {
      await decoded(video, 'loadeddata', file.name);
      await first();
      if (!Number.isFinite(video.duration)) {
        throw new Refusal(`“${file.name}” doesn’t say how long it is: convert it to MP4.`);
      }
      for (let tick = 0; tick / fps < video.duration; tick++) {
        const shown = presented(video);
        video.currentTime = tick / fps + EARLY_S;
        await decoded(video, 'seeked', file.name);
        await shown();
        if (signal.aborted) return;
        screen.draw(video, video.videoWidth, video.videoHeight);
        yield { timeS: tick / fps, picture: screen.read(), afterGap: false };
      }
    } finally {
      URL.revokeObjectURL(video.src);
      video.removeAttribute('src');
    }
  };
}

/** The camera, thinned to the model's rate. */
export function camera(screen: Screen): Source {
  return async function* (fps, signal) {
    const stream = await openCamera();
    const video = document.createElement('video');
    video.muted = true;
    video.playsInline = true;
    video.srcObject = stream;
    // Browsers give hidden pages no frames.
    let wasHidden = false;
    const onHidden = () => (wasHidden = true);
    document.addEventListener('visibilitychange', onHidden);
    try {
      await video.play();
      const clock = new FrameClock(fps);
      let startS: number | null = null;
      for (;;) {
        const timeS = await nextFrame(video, stream, signal);
        if (signal.aborted) return;
        screen.draw(video, video.videoWidth, video.videoHeight);
        if (!clock.wants(timeS)) continue;
        startS ??= timeS;
        const afterGap = wasHidden;
        wasHidden = false;
        yield { timeS: timeS - startS, picture: screen.read(), afterGap };
      }
    } finally {
      document.removeEventListener('visibilitychange', onHidden);
      for (const track of stream.getTracks()) track.stop();
    }
  };
}

async function openCamera(): Promise<MediaStream> {
  // Absent where the page was loaded without encryption.
  if (!navigator.mediaDevices) {
    throw new Refusal('Browsers give the camera only to pages over HTTPS or from localhost.');
  }
  const video = { facingMode: 'environment', width: { ideal: 640 }, height: { ideal: 480 } };
  return navigator.mediaDevices.getUserMedia({ video }).catch((error: DOMException) => {
    throw new Refusal(DENIED[error.name] ?? `The camera can’t be opened: ${error.message}`);
  });
}

/** The time of the camera's next frame, seconds; any number once the signal is aborted. */
function nextFrame(
  video: HTMLVideoElement,
  stream: MediaStream,
  signal: AbortSignal,
): Promise<number> {
  const done = new AbortController();
  const once = { once: true, signal: done.signal };
  return new Promise<number>((resolve, reject) => {
    video.requestVideoFrameCallback((now, { captureTime }) => resolve((captureTime ?? now) / 1000));
    signal.addEventListener('abort', () => resolve(0), once);
    const onEnded = () => reject(new Refusal('The camera was disconnected.'));
    stream.getVideoTracks()[0].addEventListener('ended', onEnded, once);
  }).finally(() => done.abort());
}

/**
 * To be called before a seek of a paused video: gives what waits, after the seek, until its picture
 * can be drawn, for browsers say `seeked` a moment before that. Every seek presents one picture,
 * unless the page is hidden: then the wait ends after a while.
 */
function presented(video: HTMLVideoElement): () => Promise<void> {
  let handle: number;
  const picture = new Promise<void>((resolve) => {
    handle = video.requestVideoFrameCallback(() => resolve());
  });
  return async () => {
    let timer: number;
    const late = new Promise<void>((resolve) => {
      timer = window.setTimeout(resolve, PRESENTING_MS);
    });
    await Promise.race([picture, late]).finally(() => clearTimeout(timer));
    video.cancelVideoFrameCallback(handle);
  };
}

/** Waits until a video has a picture to show. */
async function decoded(video: HTMLVideoElement, event: string, name: string): Promise<void> {
  const refusal = new Refusal(`“${name}” can’t be decoded: this browser plays no such video.`);
  const done = new AbortController();
  const once = { once: true, signal: done.signal };
  await new Promise((resolve, reject) => {
    video.addEventListener(event, resolve, once);
    video.addEventListener('error', () => reject(refusal), once);
  }).finally(() => done.abort());
  if (!video.videoWidth) throw refusal;
}
