package grwkeras.stream

import java.io.File
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.util.Base64
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test

/** The mathematics against the numbers that all clients are tested with. */
class GoldenTest {
    private val golden = JSONObject(File("../../golden/golden.json").readText())

    @Test
    fun framesBecomeTheirTensors() {
        for (case in golden.getJSONArray("frames").objects()) {
            val rgb = Base64.getDecoder().decode(case.getString("rgb_base64"))
            val width = case.getInt("width")
            val height = case.getInt("height")
            val preprocess = Preprocess(case.getInt("resize_px"), case.getInt("crop_px"))
            val expected = case.getJSONArray("tensor").floats()
            val plain = Frame(ByteBuffer.wrap(rgb), width, height, 3 * width, 3)
            // The second is as a camera gives it, the third meets the weights of the second.
            for (frame in listOf(plain, padded(rgb, width, height), plain)) {
                val image = FloatBuffer.allocate(expected.size)
                preprocess.write(frame, image)
                assertArrayEquals("$width x $height", expected, image.array(), 1e-5f)
            }
        }
    }

    @Test
    fun oneFrameAfterAnotherOfAnotherSize() {
        val preprocess = Preprocess(28, 24)
        val cases = golden.getJSONArray("frames").objects().filter { it.getInt("resize_px") == 28 }
        for (case in cases) {
            val rgb = ByteBuffer.wrap(Base64.getDecoder().decode(case.getString("rgb_base64")))
            val width = case.getInt("width")
            val image = FloatBuffer.allocate(24 * 24 * 3)
            preprocess.write(Frame(rgb, width, case.getInt("height"), 3 * width, 3), image)
            assertArrayEquals(case.getJSONArray("tensor").floats(), image.array(), 1e-5f)
        }
    }

    @Test
    fun probabilitiesAndTheirSmoothing() {
        val case = golden.getJSONObject("smoothing")
        val smoothing = Smoothing(case.getDouble("s").toFloat())
        val probabilities = case.getJSONArray("probabilities").rows()
        val smoothed = case.getJSONArray("smoothed").rows()
        case.getJSONArray("logits").rows().forEachIndexed { i, logits ->
            assertArrayEquals(probabilities[i], softmax(logits), 1e-5f)
            assertArrayEquals(smoothed[i], smoothing.next(softmax(logits)), 1e-5f)
        }
        smoothing.reset()
        assertArrayEquals(probabilities[1], smoothing.next(probabilities[1]), 0f)
    }

    @Test
    fun clockKeepsTheFramesThatAreDue() {
        val case = golden.getJSONObject("clock")
        val times = case.getJSONArray("timestamps_s").doubles()
        val kept = case.getJSONArray("kept").doubles().map { it.toInt() }
        val clock = FrameClock(case.getDouble("fps"))
        assertEquals(kept, times.indices.filter { clock.takes(times[it]) })
        clock.reset()
        assertEquals(kept, times.indices.filter { clock.takes(times[it] + 3.07) })
    }

    @Test
    fun topAreTheLikeliest() {
        val case = golden.getJSONObject("top")
        val labels = case.getJSONArray("labels")
        val expected = case.getJSONArray("top")
        val top = top(case.getJSONArray("probabilities").floats(), case.getInt("k"))
        assertEquals(expected.length(), top.size)
        top.forEachIndexed { i, (index, probability) ->
            assertEquals(expected.getJSONArray(i).getString(0), labels.getString(index))
            assertEquals(expected.getJSONArray(i).getDouble(1).toFloat(), probability, 1e-6f)
        }
    }
}

/** Four bytes a pixel and six more a row, but for the last, in memory of the system's. */
private fun padded(rgb: ByteArray, width: Int, height: Int): Frame {
    val rowStride = 4 * width + 6
    val pixels = ByteBuffer.allocateDirect(rowStride * height - 6)
    for (y in 0 until height) {
        for (x in 0 until width) {
            for (c in 0..2) pixels.put(y * rowStride + 4 * x + c, rgb[(y * width + x) * 3 + c])
        }
    }
    return Frame(pixels, width, height, rowStride, 4)
}

private fun JSONArray.objects() = List(length()) { getJSONObject(it) }

private fun JSONArray.doubles() = List(length()) { getDouble(it) }

private fun JSONArray.floats() = FloatArray(length()) { getDouble(it).toFloat() }

private fun JSONArray.rows() = List(length()) { getJSONArray(it).floats() }
