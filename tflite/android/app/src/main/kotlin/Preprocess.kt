package grwkeras.stream

import java.nio.ByteBuffer
import java.nio.FloatBuffer
import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/** Pixels of 8 bits with red, green, blue first, at [pixelStride] bytes; rows at [rowStride]. */
class Frame(
    val pixels: ByteBuffer,
    val width: Int,
    val height: Int,
    val rowStride: Int,
    val pixelStride: Int
)

/** The contract's "A frame's way in"; keeps the weights of the last frame's size. */
class Preprocess(private val resizePx: Int, private val cropPx: Int) {
    private var columns = Axis(cropPx, cropPx, cropPx)
    private var rows = columns

    /** Writes [frame] to [image] as [cropPx] × [cropPx] × 3 floats in [0, 1], from its start. */
    fun write(frame: Frame, image: FloatBuffer) {
        // A frame that fits already is "resized" to itself: the weights are then exactly 0 and 1.
        val fits = frame.width == cropPx && frame.height == cropPx
        val resized = if (fits) cropPx else resizePx
        columns = columns.fitted(frame.width, resized)
        rows = rows.fitted(frame.height, resized)

        val narrowed = Array(rows.end) { FloatArray(0) }
        val line = ByteArray(frame.width * frame.pixelStride)
        for (y in rows.first[0] until rows.end) {
            frame.pixels.position(y * frame.rowStride)
            frame.pixels.get(line)
            narrowed[y] = narrow(line, frame.pixelStride)
        }
        for (y in 0 until cropPx) {
            for (x in 0 until cropPx * 3) {
                var sum = 0f
                rows.weights[y].forEachIndexed { j, weight ->
                    sum += weight * narrowed[rows.first[y] + j][x]
                }
                image.put(y * cropPx * 3 + x, sum / 255f)
            }
        }
    }

    private fun narrow(line: ByteArray, pixelStride: Int): FloatArray {
        val out = FloatArray(cropPx * 3)
        for (x in 0 until cropPx) {
            var at = columns.first[x] * pixelStride
            for (weight in columns.weights[x]) {
                for (channel in 0..2) {
                    out[x * 3 + channel] += weight * (line[at + channel].toInt() and 0xff)
                }
                at += pixelStride
            }
        }
        return out
    }
}

/** The central [crop] of [output] pixels along a side, each a mean of some of [input] pixels. */
private class Axis(private val input: Int, private val output: Int, private val crop: Int) {
    /** The first input pixel that counts for an output pixel, and the weights from there on. */
    val first = IntArray(crop)
    val weights: Array<FloatArray>

    /** One past the last input pixel that counts. */
    val end get() = first.last() + weights.last().size

    init {
        val scale = input.toDouble() / output
        val widening = max(scale, 1.0)
        val margin = (output - crop) / 2
        weights = Array(crop) { i ->
            val centre = (margin + i + 0.5) * scale
            val from = max(0, floor(centre - widening - 0.5).toInt() + 1)
            val until = min(input, floor(centre + widening - 0.5).toInt() + 1)
            val raw = DoubleArray(until - from) { j ->
                max(0.0, 1 - abs(from + j + 0.5 - centre) / widening)
            }
            first[i] = from
            val sum = raw.sum()
            FloatArray(raw.size) { (raw[it] / sum).toFloat() }
        }
    }

    fun fitted(input: Int, output: Int) =
        if (input == this.input && output == this.output) this else Axis(input, output, crop)
}
