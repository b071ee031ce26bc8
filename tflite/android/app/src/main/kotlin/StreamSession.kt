package grwkeras.stream

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** A model's one signature: shapes by name, float32 all; what a session needs of an interpreter. */
interface Signature {
    val inputs: Map<String, IntArray>
    val outputs: Map<String, IntArray>

    fun run(inputs: Map<String, ByteBuffer>, outputs: Map<String, ByteBuffer>)
}

/**
 * One stream of frames through a `stream` file. The states after a frame are those before the next:
 * two sets of buffers change places, nothing is copied. For one thread.
 */
class StreamSession(private val signature: Signature, description: Description) {
    private val preprocess = Preprocess(description.resizePx, description.cropPx)
    private val image: ByteBuffer
    private val logits: ByteBuffer
    private var before: Map<String, ByteBuffer>
    private var after: Map<String, ByteBuffer>

    init {
        checkTensors(signature, description)
        image = buffer(signature.inputs.getValue(IMAGE))
        logits = buffer(signature.outputs.getValue(LOGITS))
        before = (signature.inputs - IMAGE).mapValues { buffer(it.value) }
        after = (signature.outputs - LOGITS).mapValues { buffer(it.value) }
    }

    /** The logits after this frame. */
    fun step(frame: Frame): FloatArray {
        preprocess.write(frame, image.asFloatBuffer())
        val inputs = before + (IMAGE to image)
        val outputs = after + (LOGITS to logits)
        // The interpreter writes from a buffer's position on, and moves it.
        (inputs.values + outputs.values).forEach { it.rewind() }
        signature.run(inputs, outputs)
        before = after.also { after = before }
        logits.rewind()
        return FloatArray(logits.capacity() / FLOAT_BYTES) { logits.getFloat() }
    }

    /** Starts another stream. */
    fun reset() {
        for (state in before.values) {
            for (at in 0 until state.capacity()) state.put(at, 0)
        }
    }

    private companion object {
        const val IMAGE = "image"
        const val LOGITS = "logits"
        const val FLOAT_BYTES = 4

        fun buffer(shape: IntArray): ByteBuffer =
            ByteBuffer.allocateDirect(shape.fold(FLOAT_BYTES) { bytes, n -> bytes * n })
                .order(ByteOrder.nativeOrder())

        fun checkTensors(signature: Signature, description: Description) {
            val side = description.cropPx
            val image = IMAGE to intArrayOf(1, 1, side, side, 3)
            val logits = LOGITS to intArrayOf(1, description.numClasses)
            // Each state goes in as it comes out.
            checkShapes(signature.inputs, (signature.outputs - LOGITS) + image)
            checkShapes(signature.outputs, (signature.inputs - IMAGE) + logits)
        }

        fun checkShapes(found: Map<String, IntArray>, wanted: Map<String, IntArray>) {
            for (name in wanted.keys + found.keys) {
                val shape = found[name]?.contentToString() ?: "absent"
                val due = wanted[name]?.contentToString() ?: "absent"
                if (shape != due) {
                    throw BadModelException(
                        "The file contradicts its description: \"$name\" should be $due, " +
                            "and is $shape."
                    )
                }
            }
        }
    }
}
