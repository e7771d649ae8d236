"""The official scripts' way of extracting, training and sampling: the baseline of the benchmarks.

As in arXiv 2504.07392 and its code, a training step reads and encodes its two images and tokenises their
prompts anew, has one peft LoRA in the UNet, takes x0 from the scheduler's step, decodes it with gradient,
runs the detector on the decoded picture, resizes its box, uses a plain AdamW, and copies four losses from the
device. On a GPU the frozen networks are in float16, the LoRA in float32, the UNet is called within autocast
and the loss is scaled, as accelerate does it for that script. Sampling loads a pipeline per identity and
method and makes one image per call.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from peft import LoraConfig

from id_booth.diffusion.families import BaseModel
from id_booth.objectives import triplet_identity_loss
from utils.devices import device_of
from utils.images import open_picture


class LiteralStep:
    """One identity's training, a step at a time.

    Args:
        fine_tuning: FineTuning of the published recipe, with its networks, class images and negatives;
            weights are shared, not copied.
        photos: Photos of the identity; only their file paths and embeddings are used.
    """

    def __init__(self, fine_tuning, photos):
        config, models, branch = fine_tuning.config, fine_tuning.models, fine_tuning.branch
        self.device, self.dtype = models.device, literal_dtype(models)
        self.config, self.recogniser, self.analyser = config, branch.recogniser, branch.analyser
        self.photos, self.class_photos, self.negatives = (
            photos,
            fine_tuning.class_photos,
            fine_tuning.negatives,
        )
        self.tokenizer, self.text_encoder = models.base.pipe.tokenizer, models.base.text_encoder
        if self.text_encoder.dtype != self.dtype:
            self.text_encoder = copy.deepcopy(self.text_encoder).to(self.dtype)
        self.vae = plain_network(models.vae, models.vae.state_dict(), self.dtype)
        self.unet = unet_with_peft(models, config, self.dtype)
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.adam_weight_decay
        )
        self.scheduler = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=0, num_training_steps=config.max_train_steps or 6400
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.noise_scheduler = DDPMScheduler.from_config(models.base.schedule)

    def step(self, draw):
        """One step on one draw of a cohort of one (see ``Cohort.draw``); the four losses, ID NaN if no face.

        The draws (noise, timesteps, image indices) are given, so that both ways compute the same losses.
        """
        photo, class_image = draw.rows[0], draw.rows[1] - len(self.photos)
        pixels = [self.read(self.photos, photo), self.read(self.class_photos, class_image)]
        noise, timesteps = self.own(draw.noise), draw.timesteps.to(self.device)
        with torch.no_grad():
            posterior = self.vae.encode(self.own(torch.stack(pixels))).latent_dist
            latents = posterior.mean + posterior.std * self.own(draw.posterior_noise)
            latents = latents * self.vae.config.scaling_factor
            context = self.text_encoder(self.tokens())[0]
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.unet(noisy, timesteps, context, return_dict=False)[0]
        output, noise = output.float(), noise.float()
        reconstruction = F.mse_loss(output[:1], noise[:1])
        prior = F.mse_loss(output[1:], noise[1:])
        loss = reconstruction + self.config.prior_loss_weight * prior
        identity = self.identity_loss(output[:1], noisy[:1], timesteps[0], draw)
        if identity is not None:
            loss = loss + identity
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the step was skipped
            self.scheduler.step()
        self.optimizer.zero_grad()
        identity = float("nan") if identity is None else identity.item()
        return reconstruction.item(), prior.item(), identity, loss.item()

    def own(self, tensor):
        """A tensor on the networks' device, in their precision."""
        return tensor.to(self.device, self.dtype)

    def read(self, photos, index):
        """(3, H, W) in [-1, 1], from the file."""
        with open_picture(photos.paths[index]) as image:
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1

    def tokens(self):
        """Token numbers of the instance and the class prompt."""
        return self.tokenizer(
            [self.config.instance_prompt, self.config.class_prompt],
            truncation=True,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids.to(self.device)

    def identity_loss(self, output, noisy, timestep, draw):
        """Weighted triplet loss of the instance item; None where the detector finds no face."""
        x0 = self.noise_scheduler.step(output[0], timestep, noisy[0]).pred_original_sample[None]
        image = self.vae.decode(self.own(x0 / self.vae.config.scaling_factor), return_dict=False)[0]
        image = ((image / 2 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 0)
        faces = self.analyser.detect([image.detach().round().byte().cpu().numpy()])[0]
        if not faces:
            return None
        left, top, right, bottom = (int(v) for v in faces[0].box.clip(0, image.shape[0]))
        if min(right - left, bottom - top) < 2:
            return None
        crop = image[top:bottom, left:right].permute(2, 0, 1)[None]
        crop = F.interpolate(crop, (112, 112), mode="bilinear").float()
        anchor = self.recogniser((crop / 255 - 0.5) / 0.5)
        positive = self.photos.embeddings[draw.rows[:1]].to(self.device)
        negative = self.negatives[draw.negatives[:1]].to(self.device)
        loss = triplet_identity_loss(anchor, positive, negative, self.config.triplet_margin)
        return (1 - timestep / self.noise_scheduler.config.num_train_timesteps) ** 2 * loss.mean()


def literal_dtype(models):
    """float32 where ours is; else float16, the published precision, which a CPU cannot compute in."""
    if models.dtype == torch.float32:
        return torch.float32
    return torch.bfloat16 if models.device.type == "cpu" else torch.float16


def unet_with_peft(models, config, dtype=torch.float32):
    """A UNet with the weights of ``models``, shared where they have that dtype, and peft's LoRA (float32)."""
    names = {name.replace(".base.", "."): value for name, value in models.unet.state_dict().items()}
    unet = plain_network(models.unet, names, dtype)
    unet.add_adapter(
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=list(config.lora_targets),
            init_lora_weights="gaussian",
        )
    )
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return unet


def plain_network(network, weights, dtype=torch.float32):
    """A copy of a network with diffusers' own layers that shares the tensors in ``weights`` of that dtype."""
    with torch.device("meta"):
        plain = type(network).from_config(network.config)
    own = {name: weights[name].to(dtype).contiguous() for name in plain.state_dict()}
    plain.load_state_dict(own, assign=True)
    return plain.requires_grad_(False)


def copy_adapter(unet, layers):
    """Copy the LoRA in slot 0 of the stacked layers to peft's, so that both compute the same function."""
    with torch.no_grad():
        for name, layer in layers.items():
            peft_layer = unet.get_submodule(name)
            peft_layer.lora_A["default"].weight.copy_(layer.down[0])
            peft_layer.lora_B["default"].weight.copy_(layer.up[0])


def literal_pipeline(base, dtype=torch.float32, device="cpu"):
    """A pipeline with diffusers' own layers: loaded from a folder, or with the weights of a BaseModel."""
    options = {"safety_checker": None, "requires_safety_checker": False}
    if isinstance(base, BaseModel):
        networks = {name: getattr(base, name) for name in ("unet", "vae")}
        parts = {name: plain_network(of, of.state_dict(), dtype) for name, of in networks.items()}
        parts["text_encoder"] = copy.deepcopy(base.text_encoder).to(dtype)
        rest = {"tokenizer": base.pipe.tokenizer, "scheduler": base.pipe.scheduler, "feature_extractor": None}
        return StableDiffusionPipeline(**parts, **rest, **options)
    return StableDiffusionPipeline.from_pretrained(base, **options, dtype=dtype).to(device)


def sample_literally(load, lora, items, steps, guidance):
    """Load a pipeline and a LoRA, make one image per call, save it.

    Args:
        load: gives the pipeline (see :func:`literal_pipeline`). lora: checkpoint folder.
        items: list of Item (prompt, negative, seed, path).
    """
    pipe = load()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(lora)
    for item in items:
        image = pipe(
            item.prompt,
            negative_prompt=item.negative,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(item.seed),
        ).images[0]
        item.path.parent.mkdir(parents=True, exist_ok=True)
        image.save(item.path)
    pipe.unload_lora_weights()


def extract_literally(paths, folder, analyser, recogniser):
    """Embed photos one after another and save each: read, find the box, cut it out, resize, recognise.

    Args:
        analyser, recogniser: loaded networks; the official script has MTCNN and ArcFace r100 here.
    """
    device = device_of(recogniser)
    for path in paths:
        with open_picture(path) as image:
            pixels = np.array(image.convert("RGB"))
        faces = analyser.detect([pixels])[0]
        if not faces:
            continue
        left, top, right, bottom = (max(0, int(v)) for v in faces[0].box)
        crop = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)[None].float()
        crop = F.interpolate(crop, (112, 112), mode="bilinear").to(device)
        with torch.no_grad():
            embedding = recogniser((crop / 255 - 0.5) / 0.5).cpu()
        torch.save(embedding, folder / f"{path.stem}.pt")


def train_fr_literally(model, optimizer, paths, labels, batch_size, augment, order, half=False):
    """An epoch of the published recogniser training: files read and augmented one by one, loss fetched.

    Args:
        model: Recogniser (backbone and head). paths, labels: of all crops. order: (N,) of this epoch.
        augment: function of a uint8 crop and its place in the set. half: bfloat16 autocast.
    """
    device = device_of(model)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        images = []
        for row in order[start : start + batch_size]:
            with open_picture(paths[row]) as image:
                pixels = augment(np.array(image.convert("RGB")), row)
            images.append((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.5)
        own = torch.from_numpy(labels[order[start : start + batch_size]])
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(torch.stack(images).to(device), own.to(device))[0]
        optimizer.zero_grad()
        loss.backward()
        for weights in model.clipped_together():
            torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        loss.item()
