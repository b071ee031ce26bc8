package grwkeras.stream

import java.io.File
import java.nio.ByteBuffer
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeNotNull
import org.junit.Test

class DescriptionTest {
    @Test
    fun aStreamFileIsUnderstood() {
        val description = Description.of(modelFile(describe()))
        assertEquals("tiny", description.name)
        assertEquals(5.0, description.fps, 0.0)
        assertEquals(listOf(3, 2, 2), description.run { listOf(resizePx, cropPx, numClasses) })
        assertEquals("käse", description.label(1))
        val unlabelled = Description.of(modelFile(describe("labels" to JSONObject.NULL)))
        assertEquals("class 1", unlabelled.label(1))
    }

    /** Its offsets may count from the file's start, those of Java's archives from their own. */
    @Test
    fun whatTheExporterAppendsIsRead() {
        val path = System.getProperty("exported.model") // given by tests/test_android.py
        assumeNotNull(path)
        assertEquals("käse", Description.of(ByteBuffer.wrap(File(path).readBytes())).label(1))
    }

    @Test
    fun whatIsNoStreamFileIsRefused() {
        val good = modelFile(describe()).array()
        refused("not a TFLite file", ByteBuffer.wrap("PK, an archive only".toByteArray()))
        refused("not a TFLite file", ByteBuffer.wrap(ByteArray(3)))
        refused("no description at its end", ByteBuffer.wrap(MODEL))
        for (size in MODEL.size until good.size - 1) {
            refused("no description at its end", ByteBuffer.wrap(good.copyOf(size)))
        }
        refused("damaged", ByteBuffer.wrap(MODEL + good.takeLast(22)))
        refused("no grw_keras.json", modelFile(describe(), entry = "other.json"))
        refused("format version 2", modelFile(describe("format_version" to 2)))
        refused("kind \"embed\"", modelFile(describe("kind" to "embed")))
        refused("incomplete", modelFile(JSONObject(mapOf("format_version" to 1))))
        refused("incomplete", modelFile("not JSON"))
        refused("impossible numbers", modelFile(describe("crop_px" to 4)))
        refused("impossible numbers", modelFile(describe("fps" to 0)))
        refused("2 labels for 3 classes", modelFile(describe("num_classes" to 3)))
    }

    private fun refused(message: String, model: ByteBuffer) {
        val error = assertThrows(BadModelException::class.java) { Description.of(model) }
        assertTrue(error.message, message in checkNotNull(error.message))
    }
}
