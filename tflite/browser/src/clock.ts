/** So much early is still on the tick: times are often rounded to a millisecond. */
export const EARLY_S = 1e-3;

/** Thins a camera's frames to `fps` a second; ticks count from the first frame. */
export class FrameClock {
  private startS: number | null = null;
  private nextTick = 0;

  constructor(private readonly fps: number) {}

  /** Whether to take the frame of this time; times never run backwards. */
  wants(timeS: number): boolean {
    this.startS ??= timeS;
    const tick = Math.floor((timeS - this.startS + EARLY_S) * this.fps);
    if (tick < this.nextTick) return false;
    this.nextTick = tick + 1;
    return true;
  }
}
