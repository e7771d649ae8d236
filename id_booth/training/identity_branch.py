"""From predicted latents to face embeddings, with gradient: decode, crop, recognise (paper, section III)."""

import torch

from arcface_files.faces import FaceAnalyser, box_crop, choose_face, warp_aligned
from id_booth.diffusion.denoising import decoder_dtype
from utils.devices import device_of, to_device

WHOLE = (0, 0, 0, 0)  # the window that stands for the whole picture, decoded by the VAE itself


class IdentityBranch:
    """The frozen networks behind the identity terms.

    Args:
        config: TrainConfig (identity_decode, face_crop, saturated_pixels).
        decoder: AutoencoderKL, or AutoencoderTiny for "taesd"; frozen. vae: AutoencoderKL, where that is
            not the decoder.
        latent_factor: pixels per latent.
        recogniser: from load_recogniser; frozen, float32.
        analyser: FaceAnalyser for face_crop "detect", else None.
    """

    def __init__(self, config, decoder, latent_factor, recogniser, analyser=None, vae=None):
        self.config, self.decoder, self.factor = config, decoder, latent_factor
        self.vae = vae or decoder
        self.recogniser, self.analyser = recogniser, analyser

    def open_analyser(self):
        """The analyser, also for photos of which nobody has said where the face is."""
        if self.analyser is None:
            self.analyser = FaceAnalyser(self.config.pack, device=device_of(self.recogniser))
        return self.analyser

    def embeddings(self, latents, matrices, windows):
        """Embeddings of the faces in predicted latents.

        Args:
            latents: (N, C, h, w) float32, scaled as the UNet sees them.
            matrices: (N, 2, 3) float64 similarity from image to aligned crop, on the latents' device; unused
                for "detect".
            windows: (N, 4) int64 on the CPU: top, left, height, width in latents, or WHOLE; unused for
                "full".

        Returns:
            (embeddings, found): (N, D) float32 with gradient, and (N,) bool on the CPU. Rows without a face
            (only "detect" can miss one) are zero.
        """
        rows, parts = [], []
        for group in self.groups(windows):
            own, crop_of = (self.pick(tensor, group) for tensor in (latents, matrices))
            whole = self.config.identity_decode == "full" or tuple(windows[group[0]].tolist()) == WHOLE
            window = None if whole else windows[group]
            crops, kept = self.crop(self.decode(own, window), crop_of, window)
            if kept:
                rows += [group[place] for place in kept]
                parts.append(self.recogniser(crops))
        found = torch.zeros(len(latents), dtype=torch.bool)
        found[rows] = True
        if rows == list(range(len(latents))):
            return torch.cat(parts), found
        embeddings = latents.new_zeros(len(latents), self.recogniser.embedding_size)
        if rows:
            place = to_device(torch.tensor(rows), latents.device)
            embeddings = embeddings.index_put((place,), torch.cat(parts))
        return embeddings, found

    def pick(self, tensor, group):
        """Some items of a tensor; the tensor itself where these are all."""
        return tensor if len(group) == len(tensor) else tensor[to_device(torch.tensor(group), tensor.device)]

    def groups(self, windows):
        """Lists of items that decode together: all for "full", those of one window size for the others.

        The size belongs to an identity, so who else is in the cohort changes nothing.
        """
        if self.config.identity_decode == "full":
            return [list(range(len(windows)))]
        by_size = {}
        for index, (_, _, *size) in enumerate(windows.tolist()):
            by_size.setdefault(tuple(size), []).append(index)
        return list(by_size.values())

    def decode(self, latents, window):
        """Decoded images (N, 3, H, W) float32 in [-1, 1], of the window, or with None whole and by the VAE.

        Saturated pixels are clamped. With "straight-through" they keep their gradient: the published clamp
        silences exactly the pixels that are most wrong.
        """
        decoder = self.vae if window is None else self.decoder
        if window is not None:
            pairs = zip(latents, window.tolist(), strict=True)
            latents = torch.stack(
                [z[:, top : top + height, left : left + width] for z, (top, left, height, width) in pairs]
            )
        decoder_config = decoder.config
        latents = latents / decoder_config.scaling_factor + (decoder_config.get("shift_factor") or 0)
        images = decoder.decode(latents.to(decoder_dtype(decoder))).sample.float()
        clamped = images.clamp(-1, 1)
        return clamped if self.config.saturated_pixels == "clamp" else images + (clamped - images).detach()

    def crop(self, images, matrices, windows):
        """112 x 112 faces (M, 3, 112, 112) in [-1, 1] and the indices of the M images that have one."""
        if self.config.face_crop == "detect":
            return self.detected_crops(images)
        if windows is not None:
            offset = to_device(windows[:, [1, 0]].double() * self.factor, matrices.device)
            shift = (matrices[:, :, :2] @ offset.unsqueeze(-1)).squeeze(-1)
            matrices = torch.cat([matrices[:, :, :2], (matrices[:, :, 2] + shift).unsqueeze(-1)], -1)
        return warp_aligned(images, matrices, border=-1.0), list(range(len(images)))

    def detected_crops(self, images):
        """The published crop: the largest detected box, resized to 112 x 112 without keeping its aspect."""
        height, width = images.shape[-2:]
        pixels = ((images.detach() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        crops, kept = [], []
        for index, faces in enumerate(self.analyser.detect(list(pixels))):
            face = choose_face(faces, (height, width))
            crop = None if face is None else box_crop(images[index : index + 1], face.box)
            if crop is not None:
                crops.append(crop)
                kept.append(index)
        return (torch.cat(crops) if crops else None), kept
