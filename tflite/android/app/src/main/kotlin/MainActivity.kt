package grwkeras.stream

import android.Manifest
import android.os.Bundle
import android.widget.Button
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.core.Preview
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.view.PreviewView
import androidx.core.content.ContextCompat
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.util.concurrent.ExecutionException
import java.util.concurrent.Executors

/** Shows what the camera sees and what the model of assets/model.tflite makes of it. */
class MainActivity : ComponentActivity() {
    /** The camera's frames, resets and the model's end all happen here: no locks are needed. */
    private val worker = Executors.newSingleThreadExecutor()
    private var model: LiteRtModel? = null
    private var classifier: Classifier? = null

    private val permission =
        registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
            if (granted) startCamera() else show(getString(R.string.no_permission))
        }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_main)
        try {
            val file = modelFile()
            val description = Description.of(file)
            val loaded = LiteRtModel(file).also { model = it }
            classifier = Classifier(loaded, description)
        } catch (e: BadModelException) {
            return show(checkNotNull(e.message))
        } catch (e: IOException) {
            return show(getString(R.string.no_model))
        }
        findViewById<Button>(R.id.reset).setOnClickListener { reset() }
        permission.launch(Manifest.permission.CAMERA)
    }

    /** What was seen before the app was left is another scene. */
    override fun onStart() {
        super.onStart()
        reset()
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.execute { model?.close() }
        worker.shutdown()
    }

    private fun reset() = worker.execute { classifier?.reset() }

    private fun show(text: String) {
        findViewById<TextView>(R.id.answers).text = text
    }

    private fun modelFile(): ByteBuffer = assets.openFd("model.tflite").use { asset ->
        asset.createInputStream().use {
            it.channel.map(FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength)
        }
    }

    private fun startCamera() {
        val future = ProcessCameraProvider.getInstance(this)
        val bind = Runnable {
            val preview = Preview.Builder().build()
            preview.setSurfaceProvider(findViewById<PreviewView>(R.id.preview).surfaceProvider)
            val analysis = ImageAnalysis.Builder()
                .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
                .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
                .setOutputImageRotationEnabled(true) // upright, however the phone is held
                .build()
            analysis.setAnalyzer(worker) { analyze(it) }
            try {
                future.get().bindToLifecycle(
                    this,
                    CameraSelector.DEFAULT_BACK_CAMERA,
                    preview,
                    analysis
                )
            } catch (e: ExecutionException) {
                show(getString(R.string.no_camera, e.message))
            } catch (e: IllegalArgumentException) { // there is no back camera
                show(getString(R.string.no_camera, e.message))
            }
        }
        future.addListener(bind, ContextCompat.getMainExecutor(this))
    }

    private fun analyze(image: ImageProxy) = image.use {
        val plane = image.planes[0]
        val frame =
            Frame(plane.buffer, image.width, image.height, plane.rowStride, plane.pixelStride)
        val answer = classifier?.take(frame, image.imageInfo.timestamp / 1e9) ?: return@use
        val lines = answer.top.map { (label, p) -> "%3.0f %%  %s".format(100 * p, label) }
        runOnUiThread {
            show(lines.joinToString("\n"))
            findViewById<TextView>(R.id.speed).text =
                getString(R.string.speed, answer.fps, answer.modelFps, answer.latencyMs)
        }
    }
}
