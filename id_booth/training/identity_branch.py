"""From predicted latents to face embeddings, with gradient: decode, crop, recognise (paper, section III)."""

import torch
import torch.nn.functional as F

from arcface_files.faces import ARCFACE_SIZE, choose_face, warp_aligned
from id_booth.diffusion.denoising import decoder_dtype
from utils.devices import to_device


class IdentityBranch:
    """The frozen networks behind the identity terms.

    Args:
        config: TrainConfig (identity_decode, face_crop).
        decoder: AutoencoderKL, or AutoencoderTiny for "taesd"; frozen.
        latent_factor: pixels per latent.
        recogniser: from load_recogniser; frozen, float32.
        analyser: FaceAnalyser for face_crop "detect", else None.
    """

    def __init__(self, config, decoder, latent_factor, recogniser, analyser=None):
        self.config, self.decoder, self.factor = config, decoder, latent_factor
        self.recogniser, self.analyser = recogniser, analyser

    def embeddings(self, latents, matrices, windows):
        """Embeddings of the faces in predicted latents.

        Args:
            latents: (N, C, h, w) float32, scaled as the UNet sees them.
            matrices: (N, 2, 3) float64 similarity from image to aligned crop, on the latents' device; unused
                for "detect".
            windows: (N, 4) int64 on the CPU: top, left, height, width in latents; unused for "full".

        Returns:
            (embeddings, found): (N, D) float32 with gradient, and (N,) bool on the CPU. Rows without a face
            (only "detect" can miss one) are zero.
        """
        rows, parts = [], []
        for group in self.groups(windows):
            own, crop_of = (self.pick(tensor, group) for tensor in (latents, matrices))
            window = None if self.config.identity_decode == "full" else windows[group]
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
        """Decoded images (N, 3, H, W) float32 in [-1, 1], of the window when one is given.

        Saturated pixels are clamped but keep their gradient: the clamp of the official code would silence
        exactly the pixels that are most wrong.
        """
        if window is not None:
            pairs = zip(latents, window.tolist(), strict=True)
            latents = torch.stack(
                [z[:, top : top + height, left : left + width] for z, (top, left, height, width) in pairs]
            )
        decoder_config = self.decoder.config
        latents = latents / decoder_config.scaling_factor + (decoder_config.get("shift_factor") or 0)
        images = self.decoder.decode(latents.to(decoder_dtype(self.decoder))).sample.float()
        return images + (images.clamp(-1, 1) - images).detach()

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
            box = None if face is None else clipped_box(face.box, height, width)
            if box is not None:
                left, top, right, bottom = box
                piece = images[index : index + 1, :, top:bottom, left:right]
                crops.append(F.interpolate(piece, (ARCFACE_SIZE, ARCFACE_SIZE), mode="bilinear"))
                kept.append(index)
        return (torch.cat(crops) if crops else None), kept


def clipped_box(box, height, width):
    """Integer box inside the image, or None where less than two pixels of it are."""
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(width, int(box[2])), min(height, int(box[3]))
    return (left, top, right, bottom) if right - left >= 2 and bottom - top >= 2 else None
