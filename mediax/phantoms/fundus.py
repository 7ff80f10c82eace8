"""A procedural colour fundus photograph with exact truth: whose eye it is, what is wrong, and where.

`photograph` draws one image from a seed, `pair` two views of one eye; the same arguments give the same bytes in any
process. Geometry is in millimetres on the retina, so that another `size` of the same proportions samples the same
photograph more finely or coarsely.
"""

from mediax.phantoms.fundus_anatomy import SIDES, Person, sample_cup_to_disc, sample_person
from mediax.phantoms.fundus_camera import AIMS, Camera, sample_camera
from mediax.phantoms.fundus_lesions import GRADES, KINDS, Lesion, grade_of, sample_lesions
from mediax.phantoms.fundus_pair import CATEGORIES, Pair, Transform, pair
from mediax.phantoms.fundus_photograph import Fundus, photograph
from mediax.phantoms.fundus_readers import first_reader, second_reader, soft_map

__all__ = [
    "AIMS", "CATEGORIES", "GRADES", "KINDS", "SIDES", "Camera", "Fundus", "Lesion", "Pair", "Person", "Transform",
    "first_reader", "grade_of", "pair", "photograph", "sample_camera", "sample_cup_to_disc", "sample_lesions",
    "sample_person", "second_reader", "soft_map",
]  # fmt: skip
