"""The other people of a training: class (prior) images with their faces, and negatives."""

from functools import partial

from arcface_files.extraction import embed_folder
from arcface_files.people import class_images, root_of
from arcface_files.stored_faces import StoredFaces
from id_booth.training.class_images import ensure_class_images
from id_booth.training.photos import prepare_photos
from utils.errors import UserError
from utils.files import sha256_bytes, sha256_file
from utils.identities import image_files
from utils.outputs import open_output


def prepare_class_photos(config, models, branch=None):
    """The class images as Photos: made where they are missing, embedded where a training needs faces.

    Args:
        models: FrozenModels. branch: IdentityBranch; None where no objective needs faces.
    """
    classes, most = class_images(config.class_folder, config.embeds_folder), config.num_class_images
    ensure_class_images(config, models, partial(open_class_folder, config, root_of(config.class_folder)))
    if branch:
        begin = partial(open_class_folder, config, classes.embeds_dir.parent)
        embed_folder(classes, branch.open_analyser(), branch.recogniser, config.crop, most, begin)
    return prepare_photos(classes, config, models, most=most)


def open_class_folder(config, folder, write=True):
    """Take the folder of class images, or of their embeddings; True. It is written into only when needed."""
    open_output(folder, [], [config.source_folder], shared=True, write=write)
    return True


def prepare_negatives(config, branch):
    """:func:`read_negatives` of the negatives folder, or else of the class images."""
    folder, most = class_images(config.class_folder, config.embeds_folder), config.num_class_images
    if config.negatives_folder:
        folder, most = class_images(config.negatives_folder), None
    return read_negatives(folder, config.crop, branch.recogniser, branch.open_analyser, most)


def read_negatives(folder, crop, recogniser, open_analyser=None, most=None):
    """The embeddings of a flat class or negatives folder, (M, D) float32, of a crop of CROPS.

    Images without a face have none; they serve the prior loss but never as a negative.

    Args:
        folder: of arcface_files.people.class_images. open_analyser: see StoredFaces. most: only of the first
            so many images, None: of all.
    """
    stored = StoredFaces(folder.embeds_dir, crop, recogniser, open_analyser)
    embeddings, present = stored.embeddings(stored.photos_named(folder.images_dir, most))
    if not present.any():
        raise UserError(f"{stored.folder}: no embedding; the objective needs other people's as negatives")
    return embeddings[present]


def hashes_of_others(config):
    """{content hash: file} of the class images and negatives, which are to show other people."""
    folders = [config.class_folder] if config.with_prior_preservation else []
    folders += [config.negatives_folder] if config.negatives_folder else []
    files = (file for folder in folders for file in image_files(class_images(folder).images_dir))
    return {sha256_file(file): file for file in files}


def refuse_photos_of_others(identity, others):
    """Refuse an IdentityFolder whose photo is among the class images too (``others``: hashes_of_others)."""
    for photo in image_files(identity.images_dir) if others else ():
        if other := others.get(sha256_file(photo)):
            raise UserError(
                f"{photo}: is among the class images too ({other}); take it out of one of the two"
            )


def digests_of_others(config):
    """:func:`content_digest` of the images of the other people whom a training sees, by field of its record.

    ``class_sha256``: None without class images, or while some are missing. ``negatives_sha256``: None without
    a negatives folder, as class images serve then, or without images in it.
    """
    folder, most = config.negatives_folder, config.num_class_images
    images = image_files(class_images(config.class_folder).images_dir)[:most]
    whole = config.with_prior_preservation and len(images) == most
    negatives = image_files(class_images(folder).images_dir) if folder else []
    return {
        "class_sha256": content_digest(images) if whole else None,
        "negatives_sha256": content_digest(negatives) if negatives else None,
    }


def content_digest(paths):
    """One SHA-256 of the contents of files, in this order."""
    try:
        return sha256_bytes("".join(map(sha256_file, paths)).encode())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
