package grwkeras.stream

import kotlin.math.floor

/** Thins a camera's frames to [fps] a second; ticks count from the first frame. */
class FrameClock(private val fps: Double) {
    private var startS: Double? = null
    private var nextTick = 0L

    /** Whether the frame of this time is to be taken. Times grow from call to call. */
    fun takes(timeS: Double): Boolean {
        val start = startS ?: timeS.also { startS = it }
        val tick = floor((timeS + EARLY_S - start) * fps).toLong()
        if (tick < nextTick) return false
        nextTick = tick + 1
        return true
    }

    fun reset() {
        startS = null
        nextTick = 0
    }

    private companion object {
        /** So much early is still on the tick: times are often rounded to a millisecond. */
        const val EARLY_S = 1e-3
    }
}
