package grwkeras.stream

import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import org.json.JSONObject

/** The start of a TFLite file, with bytes that look like an archive's but are none. */
val MODEL = byteArrayOf(28, 0, 0, 0) + "TFL3 PK\u0003\u0004 weights".toByteArray()

fun describe(vararg changes: Pair<String, Any>) = JSONObject(
    mapOf(
        "format_version" to 1,
        "kind" to "stream",
        "name" to "tiny",
        "fps" to 5.0,
        "resize_px" to 3,
        "crop_px" to 2,
        "num_classes" to 2,
        "labels" to listOf("hugging", "käse")
    ) + changes
)

fun modelFile(description: Any?, entry: String = "grw_keras.json"): ByteBuffer {
    val archive = ByteArrayOutputStream()
    ZipOutputStream(archive).use {
        it.putNextEntry(ZipEntry("labels.txt"))
        it.write("hugging\nkäse\n".toByteArray())
        it.putNextEntry(ZipEntry(entry))
        it.write(description.toString().toByteArray())
    }
    return ByteBuffer.wrap(MODEL + archive.toByteArray())
}
