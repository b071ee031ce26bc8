package grwkeras.stream

import java.nio.ByteBuffer
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class StreamSessionTest {
    private val description = Description.of(modelFile(describe()))

    @Test
    fun statesComeBackUnderTheirNamesUntilTheReset() {
        val session = StreamSession(Sums(), description)
        assertEquals(listOf(1f, 10f), session.step(grey(255)).toList())
        assertEquals(listOf(2f, 20f), session.step(grey(255)).toList())
        assertEquals(listOf(2f, 30f), session.step(grey(0)).toList())
        session.reset()
        assertEquals(listOf(1f, 10f), session.step(grey(255)).toList())
    }

    @Test
    fun onlyFramesThatAreDueAreAnswered() {
        val classifier = Classifier(Sums(), description)
        val first = checkNotNull(classifier.take(grey(255), 7.0))
        assertEquals("käse", first.top[0].first)
        assertNull(classifier.take(grey(255), 7.1))
        assertEquals(5.0, checkNotNull(classifier.take(grey(255), 7.2)).fps, 1e-6)
        classifier.reset()
        assertEquals(first.top, checkNotNull(classifier.take(grey(255), 7.3)).top)
    }

    @Test
    fun aFileThatContradictsItsDescriptionIsRefused() {
        refused("\"image\" should be [1, 1, 2, 2, 3]", Sums(side = 4))
        refused("\"logits\" should be [1, 2]", Sums(classes = 3))
        refused("\"state_steps\" should be absent", Sums(lost = "state_steps"))
    }

    private fun refused(message: String, signature: Signature) {
        val error = assertThrows(BadModelException::class.java) {
            StreamSession(signature, description)
        }
        assertTrue(error.message, message in checkNotNull(error.message))
    }

    private fun grey(value: Int) =
        Frame(ByteBuffer.wrap(ByteArray(2 * 2 * 3) { value.toByte() }), 2, 2, 6, 3)
}

/**
 * Logits: the sum of the images' first pixels so far, and ten times the number of steps. As LiteRT
 * does, it reads an input as a whole and puts an output at the buffer's position.
 */
private class Sums(side: Int = 2, classes: Int = 2, lost: String? = null) : Signature {
    private val states = mapOf("state_sum" to intArrayOf(1, 1), "state_steps" to intArrayOf(1))
    override val inputs = states + ("image" to intArrayOf(1, 1, side, side, 3))
    override val outputs = states.filterKeys { it != lost } + ("logits" to intArrayOf(1, classes))

    override fun run(inputs: Map<String, ByteBuffer>, outputs: Map<String, ByteBuffer>) {
        val sum = inputs.getValue("state_sum").getFloat(0) + inputs.getValue("image").getFloat(0)
        val steps = inputs.getValue("state_steps").getFloat(0) + 1
        outputs.getValue("state_sum").putFloat(sum)
        outputs.getValue("state_steps").putFloat(steps)
        outputs.getValue("logits").putFloat(sum).putFloat(10 * steps)
    }
}
