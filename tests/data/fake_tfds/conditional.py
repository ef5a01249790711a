"""Sets with the features of TFDS's coco_captions and open_images_v4, written without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

WHOLE = tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=1.0, xmax=1.0)


def picture():
    file = io.BytesIO()
    Image.fromarray(np.full((6, 9, 3), 90, np.uint8)).save(file, "jpeg")
    file.seek(0)
    return file


class CocoCaptions(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.1.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "objects": tfds.features.Sequence(
                        {
                            "id": np.int64,
                            "area": np.int64,
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=["person", "bicycle", "car"]),
                            "is_crowd": np.bool_,
                        }
                    ),
                    "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, n) for split, n in (("train", 2), ("restval", 1), ("val", 1))}

    def _generate_examples(self, split, number):
        box = tfds.features.BBox(ymin=0.25, xmin=0.0, ymax=1.0, xmax=0.5)
        for k in range(number):
            yield (
                k,
                {
                    "image": picture(),
                    "image/filename": f"{k}.jpg",
                    "image/id": k,
                    "objects": [
                        {"id": 0, "area": 5, "bbox": box, "label": 1, "is_crowd": False},
                        {"id": 1, "area": 9, "bbox": WHOLE, "label": 0, "is_crowd": True},
                    ],
                    "captions": [{"text": f"{split} {k}, told {letter}", "id": 7} for letter in "abcde"],
                },
            )


class OpenImagesV4(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        source = tfds.features.ClassLabel(names=["verification", "xclick"])
        labels = tfds.features.Sequence(
            {"label": tfds.features.ClassLabel(num_classes=9), "confidence": np.int32, "source": source}
        )
        flags = ("is_occluded", "is_truncated", "is_group_of", "is_depiction", "is_inside")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "image/filename": tfds.features.Text(),
                    "objects": labels,
                    "objects_trainable": labels,
                    "bobjects": tfds.features.Sequence(
                        {
                            "label": tfds.features.ClassLabel(names=["/m/a", "/m/b", "/m/c"]),
                            "source": source,
                            "bbox": tfds.features.BBoxFeature(),
                            **dict.fromkeys(flags, np.int8),
                        }
                    ),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        def thing(label, box, **flags):
            unset = dict(is_occluded=0, is_truncated=0, is_group_of=0, is_depiction=-1, is_inside=0)
            return {"label": label, "source": 1, "bbox": tfds.features.BBox(*box), **unset, **flags}

        boxes = [
            thing(2, (0.0, 0.25, 0.5, 1.0), is_occluded=1, is_inside=1),
            thing(0, (0.5, 0.5, 1.0, 0.75), is_group_of=1, is_depiction=1),
            thing(2, (0.0, 0.0, 0.5, 0.5)),
        ]
        for name, bobjects in (("a.jpg", boxes), ("b.jpg", [])):
            labels = [{"label": 3, "confidence": 10, "source": 0}]
            yield (
                name,
                {
                    "image": picture(),
                    "image/filename": name,
                    "objects": labels,
                    "objects_trainable": labels,
                    "bobjects": bobjects,
                },
            )
