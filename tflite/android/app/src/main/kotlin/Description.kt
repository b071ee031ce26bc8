package grwkeras.stream

import java.io.ByteArrayInputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipInputStream
import org.json.JSONException
import org.json.JSONObject

/** A file that this app can't run; the message is for the person who put it there. */
class BadModelException(message: String, cause: Exception? = null) : Exception(message, cause)

/** What a stream file says of itself in the contract's `grw_keras.json`. */
class Description(
    val name: String,
    val fps: Double,
    val resizePx: Int,
    val cropPx: Int,
    val numClasses: Int,
    private val labels: List<String>?
) {
    fun label(index: Int) = labels?.get(index) ?: "class $index"

    companion object {
        private const val FORMAT_VERSION = 1
        private const val ENTRY = "grw_keras.json"
        private const val DAMAGED = "The archive with the description at the file's end is damaged."

        /** Reads the description of a stream file out of its bytes. */
        fun of(model: ByteBuffer): Description {
            val file = model.duplicate().order(ByteOrder.LITTLE_ENDIAN)
            // The identifier of TFLite's schema, after the offset of the root table.
            if (file.limit() < 8 || file.ascii(4, 4) != "TFL3") {
                throw BadModelException("This is not a TFLite file.")
            }
            return parse(
                try {
                    entry(file)
                } catch (e: IOException) {
                    throw BadModelException(DAMAGED, e)
                } catch (e: IndexOutOfBoundsException) {
                    throw BadModelException(DAMAGED, e)
                }
            )
        }

        /**
         * The text of [ENTRY] in the zip archive that ends the file. Found through the central
         * directory, for the archive begins somewhere in the file, and a model may hold bytes
         * that look like its start.
         */
        private fun entry(file: ByteBuffer): String {
            val end = (file.limit() - 22 downTo maxOf(0, file.limit() - 22 - 0xffff))
                .firstOrNull { file.getInt(it) == 0x06054b50 }
                ?: throw BadModelException(
                    "The file has no description at its end: it was cut short, or was not " +
                        "written by grw_keras.export."
                )
            var header = end - file.getInt(end + 12)
            // Offsets count from the archive's start or from the file's, as the writer has it.
            val start = header - file.getInt(end + 16)
            while (header < end) {
                val nameSize = file.uint16(header + 28)
                if (file.ascii(header + 46, nameSize) == ENTRY) {
                    return inflate(file, start + file.getInt(header + 42), end)
                }
                header += 46 + nameSize + file.uint16(header + 30) + file.uint16(header + 32)
            }
            throw BadModelException("The archive at the file's end has no $ENTRY.")
        }

        private fun inflate(file: ByteBuffer, from: Int, until: Int): String {
            if (from !in 0 until until) throw IOException("entry out of range")
            val bytes = ByteArray(until - from)
            file.position(from)
            file.get(bytes)
            return ZipInputStream(ByteArrayInputStream(bytes)).use {
                it.nextEntry ?: throw IOException("no entry at $from")
                it.readBytes().toString(Charsets.UTF_8)
            }
        }

        private fun parse(text: String): Description {
            try {
                val json = JSONObject(text)
                val version = json.getInt("format_version")
                if (version != FORMAT_VERSION) {
                    throw BadModelException(
                        "The file is of format version $version, and this app knows only " +
                            "$FORMAT_VERSION: take an app and a grw_keras of the same time."
                    )
                }
                val kind = json.getString("kind")
                if (kind != "stream") {
                    throw BadModelException(
                        "The file is of kind \"$kind\", and this app runs only \"stream\"."
                    )
                }
                val labels = json.optJSONArray("labels")
                return Description(
                    name = json.getString("name"),
                    fps = json.getDouble("fps"),
                    resizePx = json.getInt("resize_px"),
                    cropPx = json.getInt("crop_px"),
                    numClasses = json.getInt("num_classes"),
                    labels = labels?.let { List(it.length(), it::getString) }
                ).also(::checkNumbers)
            } catch (e: JSONException) {
                throw BadModelException("The description is incomplete: ${e.message}", e)
            }
        }

        private fun checkNumbers(it: Description) {
            if (!(it.fps > 0) || it.cropPx < 1 || it.resizePx < it.cropPx) {
                throw BadModelException(
                    "The description has impossible numbers: fps=${it.fps}, " +
                        "resize_px=${it.resizePx}, crop_px=${it.cropPx}."
                )
            }
            if (it.labels != null && it.labels.size != it.numClasses) {
                throw BadModelException(
                    "The description has ${it.labels.size} labels for ${it.numClasses} classes."
                )
            }
        }

        private fun ByteBuffer.uint16(at: Int) = getShort(at).toInt() and 0xffff

        private fun ByteBuffer.ascii(at: Int, size: Int) =
            String(ByteArray(size) { get(at + it) }, Charsets.ISO_8859_1)
    }
}
