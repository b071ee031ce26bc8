package grwkeras.stream

/** The likeliest labels, and how fast they came: frames a second, of as many as are due. */
class Answer(
    val top: List<Pair<String, Float>>,
    val fps: Double,
    val modelFps: Double,
    val latencyMs: Long
)

/** A camera's frames in, answers out: one clock, one stream, one smoothing. For one thread. */
class Classifier(signature: Signature, private val description: Description) {
    private val clock = FrameClock(description.fps)
    private val session = StreamSession(signature, description)
    private val smoothing = Smoothing(SMOOTHING)
    private var lastS = Double.NEGATIVE_INFINITY

    /** The answer after this frame; null where the frame is not due. */
    fun take(frame: Frame, timeS: Double): Answer? {
        if (!clock.takes(timeS)) return null
        val began = System.nanoTime()
        val probabilities = smoothing.next(softmax(session.step(frame)))
        val latencyMs = (System.nanoTime() - began) / 1_000_000
        val fps = 1 / (timeS - lastS)
        lastS = timeS
        val answers = top(probabilities, TOP).map { description.label(it.index) to it.value }
        return Answer(answers, fps, description.fps, latencyMs)
    }

    /** Starts another stream: for another scene, another camera, or after a gap. */
    fun reset() {
        clock.reset()
        session.reset()
        smoothing.reset()
        lastS = Double.NEGATIVE_INFINITY
    }

    private companion object {
        const val TOP = 3

        /** Steadies the screen: two frames' lag, where the last's weight has fallen to a third. */
        const val SMOOTHING = 0.6f
    }
}
