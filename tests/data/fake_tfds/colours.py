"""Eight plain images of two classes, with a caption and one box each, written without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Colours(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        objects = tfds.features.Sequence(
            {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=5)}
        )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["dark", "light"]),
                    "caption": tfds.features.Text(),
                    "objects": objects,
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for k in range(8):
            file = io.BytesIO()
            Image.fromarray(np.full((6, 9, 3), 20 * k, np.uint8)).save(file, "png")
            file.seek(0)
            box = tfds.features.BBox(ymin=0.0, xmin=0.25, ymax=0.5, xmax=1.0)
            yield (
                k,
                {
                    "image": file,
                    "label": int(k >= 4),
                    "caption": f"grey {20 * k}",
                    "objects": [{"bbox": box, "label": 3}],
                },
            )
