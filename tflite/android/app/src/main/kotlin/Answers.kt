package grwkeras.stream

import kotlin.math.exp

fun softmax(logits: FloatArray): FloatArray {
    // The largest is subtracted, so that exp doesn't overflow.
    val largest = logits.fold(Float.NEGATIVE_INFINITY) { a, b -> maxOf(a, b) }
    val exps = FloatArray(logits.size) { exp(logits[it] - largest) }
    val sum = exps.sum()
    return FloatArray(exps.size) { exps[it] / sum }
}

/** The [k] largest with their indices, the largest first; of equal ones the earlier first. */
fun top(probabilities: FloatArray, k: Int): List<IndexedValue<Float>> =
    probabilities.withIndex().sortedByDescending { it.value }.take(k)

/** p ← s p + (1 − s) q over the probabilities q that come; the first is taken as it is. */
class Smoothing(private val s: Float) {
    private var last: FloatArray? = null

    init {
        require(s >= 0 && s < 1) { "s must be in [0, 1). Received: s=$s" }
    }

    fun next(probabilities: FloatArray): FloatArray {
        val smoothed = last?.let { p ->
            FloatArray(p.size) { s * p[it] + (1 - s) * probabilities[it] }
        } ?: probabilities
        last = smoothed
        return smoothed
    }

    fun reset() {
        last = null
    }
}
