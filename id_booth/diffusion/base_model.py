"""Loading a base model, its parts checked. Its files are in ``base_files``, what it is in ``families``."""

import contextlib
from pathlib import Path

import torch

from id_booth.diffusion.base_files import (
    INDEX,
    find_base_model,
    loading_trouble,
    published_name,
    read_settings,
    weight_files,
)
from id_booth.diffusion.families import family_of, tokenizer_parts
from utils.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def load_base_model(path_or_id, dtype=torch.float32, device="cpu", revision=None):
    """A base model in evaluation mode, frozen, without safety checker.

    Args:
        path_or_id: a folder in diffusers' layout or a single file (relative to the working folder or to the
            project), or a hub id.
        dtype: torch dtype of the weights.
        device: where the parts go.
        revision: branch, tag or commit of a hub repository.

    Returns:
        :class:`BaseModel` of a family.

    Raises:
        UserError: no such folder, not a model of a known family, broken weights, hub id not to be had.
    """
    source = find_base_model(path_or_id)
    family = family_of(source, revision)
    with quiet_libraries():
        pipe = open_pipeline(family, source, revision, dtype)
    check_parts(pipe, family, source)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, *(getattr(pipe, part) for part in ("unet", *family.text_parts))):
        part.requires_grad_(False).eval()
    return family(pipe.to(device), source, revision)


def open_pipeline(family, source, revision, dtype):
    """The diffusers pipeline of a base model; UserError when it does not load."""
    # Imported here: the import itself already talks about packages this project does without.
    import diffusers

    pipeline, options = getattr(diffusers, family.pipeline), {"dtype": dtype, **family.pipeline_options}
    try:
        if isinstance(source, Path) and source.is_file():
            settings = str(source.with_suffix(""))
            return pipeline.from_single_file(str(source), config=settings, local_files_only=True, **options)
        options |= {"revision": revision, "use_safetensors": True}
        if isinstance(source, Path):
            return pipeline.from_pretrained(str(source), variant=weight_files(source)[1], **options)
        return from_hub(pipeline, source, options)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file, or no network, leads to
        raise UserError(loading_trouble(source, error)) from error


def outline(source):
    """A base model without weights, on torch's meta device: what ``lora_files.check_fits`` asks of one.

    Args:
        source: a folder or single file (Path), as ``base_costs.local_source`` gives it.
    """
    import diffusers
    import transformers

    base = object.__new__(family_of(source))
    base.source, base.revision, base.name, base.parts = source, None, published_name(source), {}
    index = read_settings(source, INDEX)
    try:
        with torch.device("meta"), quiet_libraries():
            settings = read_settings(source, "unet/config.json")
            base.parts["unet"] = diffusers.UNet2DConditionModel.from_config(settings)
            for part in base.text_parts:
                network = getattr(transformers, index[part][1])
                settings = read_settings(source, f"{part}/config.json")
                base.parts[part] = network(network.config_class.from_dict(settings))
    except UserError:
        raise
    except Exception as error:  # whatever damaged settings lead to
        raise UserError(loading_trouble(source, error)) from error
    return base


def from_hub(pipeline, name, options):
    """The pipeline of a hub repository, which may have its weights in the variant "fp16" alone."""
    try:
        return pipeline.from_pretrained(name, **options)
    except Exception:
        with contextlib.suppress(Exception):
            return pipeline.from_pretrained(name, variant="fp16", **options)
        raise


def check_parts(pipe, family, source):
    """Refuse pipelines whose parts are not those of their family, or whose schedule cannot be trained."""
    for part in ("unet", "vae", *family.text_parts, *tokenizer_parts(family), "scheduler"):
        if getattr(pipe, part, None) is None:
            raise UserError(f"{source}: has no {part}; give a complete {family.family} model")
    width = sum(getattr(pipe, part).config.hidden_size for part in family.text_parts)
    if width != (expected := pipe.unet.config.cross_attention_dim):
        raise UserError(f"{source}: text encoder width {width}, UNet takes {expected}; give a matching model")
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise UserError(f"{source}: its UNet takes more than latents (for inpainting?); give a plain model")
    if pipe.vae.config.get("latents_mean") is not None:
        raise UserError(f"{source}: its VAE scales each channel by itself; give a plain model")
    prediction = pipe.scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise UserError(f"{source}: predicts {prediction!r}; read are models of {', '.join(PREDICTIONS)}")
    if prediction == "epsilon" and pipe.scheduler.config.get("rescale_betas_zero_snr"):
        raise UserError(
            f"{source}: its schedule ends in pure noise, where a prediction of the noise says nothing; set "
            "rescale_betas_zero_snr to false in its scheduler_config.json"
        )


@contextlib.contextmanager
def quiet_libraries():
    """Keep diffusers and transformers from printing bars, notices and false alarms meanwhile."""
    import diffusers
    import transformers

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()
