package grwkeras.stream

import java.io.Closeable
import java.nio.ByteBuffer
import org.tensorflow.lite.Interpreter

/** A mapped .tflite file in LiteRT's interpreter, on the CPU. */
class LiteRtModel(file: ByteBuffer) : Signature, Closeable {
    private val interpreter: Interpreter
    override val inputs: Map<String, IntArray>
    override val outputs: Map<String, IntArray>

    init {
        try {
            interpreter = Interpreter(file)
        } catch (e: IllegalArgumentException) {
            throw BadModelException("LiteRT can't load the file: ${e.message}", e)
        }
        try {
            inputs = interpreter.getSignatureInputs(KEY).associate {
                it to interpreter.getInputTensorFromSignature(it, KEY).shape()
            }
            outputs = interpreter.getSignatureOutputs(KEY).associate {
                it to interpreter.getOutputTensorFromSignature(it, KEY).shape()
            }
        } catch (e: IllegalArgumentException) {
            interpreter.close()
            throw BadModelException("LiteRT can't read the file's signature: ${e.message}", e)
        }
    }

    override fun run(inputs: Map<String, ByteBuffer>, outputs: Map<String, ByteBuffer>) =
        interpreter.runSignature(inputs, outputs, KEY)

    override fun close() = interpreter.close()

    private companion object {
        const val KEY = "serving_default"
    }
}
