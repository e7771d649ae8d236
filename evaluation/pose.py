"""Head pose: from five landmarks (no weights), from a pack's 3D landmarks, or by 6DRepNet.

Degrees, in the convention of 300W-LP that FSA-Net and 6DRepNet are trained on: + yaw turns the nose to the
image's left, + pitch up, + roll tilts the head clockwise in the image; R = R_roll R_yaw R_pitch.
"""

import numpy as np

from evaluation.inputs import MetricError

# An average face in millimetres, x to image right, y down, z towards the camera; eyes and mouth corners as
# insightface orders them, 63 mm between the eyes. Depths are those of the MediaPipe canonical face.
FACE_MODEL = np.array([[-31.5, 0, 0], [31.5, 0, 0], [0, 35, 36], [-26, 66, 5], [26, 66, 5]], dtype=np.float64)
LANDMARK_SD = 0.02  # of a landmark, as a share of the five points' size
LENGTH_SD = 0.1  # of the log of a face's length
# The same five points among the 68 of the iBUG scheme: eye centres, nose tip, mouth corners.
FIVE_OF_68 = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47), (30,), (48,), (54,))
ANGLES = ("yaw", "pitch", "roll")
ITERATIONS = 30


def rotation_matrices(angles):
    """(N, 3, 3) head-to-camera rotations of (N, 3) yaw, pitch, roll in degrees."""
    yaw, pitch, roll = np.radians(np.asarray(angles, np.float64)).T
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)
    turn = stack3(np.cos(yaw), zero, -np.sin(yaw), zero, one, zero, np.sin(yaw), zero, np.cos(yaw))
    nod = stack3(one, zero, zero, zero, np.cos(pitch), -np.sin(pitch), zero, np.sin(pitch), np.cos(pitch))
    tilt = stack3(np.cos(roll), -np.sin(roll), zero, np.sin(roll), np.cos(roll), zero, zero, zero, one)
    return tilt @ turn @ nod


def stack3(*entries):
    """Nine (N,) arrays as (N, 3, 3)."""
    return np.stack(entries, -1).reshape(-1, 3, 3)


def euler_angles(rotations):
    """(N, 3) yaw, pitch, roll in degrees of (N, 3, 3) rotations; the inverse of :func:`rotation_matrices`."""
    r = np.asarray(rotations, np.float64)
    yaw = np.arctan2(r[:, 2, 0], np.hypot(r[:, 0, 0], r[:, 1, 0]))
    pitch = np.arctan2(r[:, 2, 1], r[:, 2, 2])
    roll = np.arctan2(r[:, 1, 0], r[:, 0, 0])
    return np.degrees(np.stack([yaw, pitch, roll], -1))


def five_point_pose(landmarks):
    """Yaw, pitch, roll in degrees, float64 (N, 3), from five landmarks (N, 5, 2).

    The average face is fitted under scaled orthographic projection by Gauss-Newton: three angles and, because
    a long face and a raised chin look alike, the face's length under a prior of 10 %; scale and shift are in
    closed form. On the 400 AT&T photos it differs from FSA-Net by 2.6 degrees in yaw, 3.5 in pitch and 1.9 in
    roll on average. A person's own proportions remain as an offset in pitch, the same in all their photos.
    """
    points = unit_points(landmarks)
    if not len(points):
        return np.zeros((0, 3))
    eyes = points[:, 1] - points[:, 0]
    state = np.zeros((len(points), 4))
    state[:, 2] = np.degrees(np.arctan2(eyes[:, 1], eyes[:, 0]))
    steps = np.diag([1e-2, 1e-2, 1e-2, 1e-4])  # of the numerical derivative: degrees, and log of the length
    largest = np.array([15, 15, 15, 0.2])
    for _ in range(ITERATIONS):
        base = residuals(state, points)
        jacobian = np.stack([(residuals(state + h, points) - base) / h.sum() for h in steps], -1)
        normal = jacobian.transpose(0, 2, 1) @ jacobian + 1e-9 * np.eye(4)
        update = np.linalg.solve(normal, jacobian.transpose(0, 2, 1) @ -base[..., None])[..., 0]
        state = np.clip(state + np.clip(update, -largest, largest), [-89, -89, -270, -1], [89, 89, 270, 1])
    return state[:, :3]


def unit_points(landmarks):
    """Landmarks (N, 5, 2) centred and scaled to unit norm; MetricError where that is impossible."""
    points = np.asarray(landmarks, np.float64).reshape(-1, 5, 2)
    if not np.isfinite(points).all():
        raise MetricError("pose: landmarks hold NaN or infinite values")
    points = points - points.mean(1, keepdims=True)
    size = np.sqrt((points**2).sum((1, 2), keepdims=True))
    if (size == 0).any():
        raise MetricError("pose: the five landmarks of a face coincide")
    return points / size


def residuals(state, points):
    """(N, 11) in standard deviations: landmarks off the best fitting model, and its length off the prior."""
    model = np.repeat(FACE_MODEL[None], len(state), 0)
    model[:, :, 1] *= np.exp(state[:, 3:])
    model -= model.mean(1, keepdims=True)
    projected = (model @ rotation_matrices(state[:, :3])[:, :2].transpose(0, 2, 1)).reshape(len(state), -1)
    flat = points.reshape(len(points), -1)
    scale = (projected * flat).sum(1) / (projected**2).sum(1)
    return np.hstack([(scale[:, None] * projected - flat) / LANDMARK_SD, state[:, 3:] / LENGTH_SD])


def pose_from_3d(landmarks):
    """Yaw, pitch, roll in degrees (N, 3) from 68 3D landmarks (N, 68, 3) in pixels, x right, y down.

    Rigid alignment (Kabsch) of the average face's five points. Whether z grows towards the camera or away
    from it differs between networks; of the two readings the one that fits the face better is right.
    """
    points = np.asarray(landmarks, np.float64)
    five = np.stack([points[:, list(group)].mean(1) for group in FIVE_OF_68], 1)
    five = five - five.mean(1, keepdims=True)
    fits = [kabsch(five * [1, 1, sign]) for sign in (1, -1)]
    better = (fits[0][1] <= fits[1][1])[:, None, None]
    return euler_angles(np.where(better, fits[0][0], fits[1][0]))


def kabsch(points):
    """Rotations (N, 3, 3) of the face model onto centred points (N, 5, 3), and the misfit (N,)."""
    model = FACE_MODEL - FACE_MODEL.mean(0)
    u, s, vt = np.linalg.svd(points.transpose(0, 2, 1) @ model)
    sign = np.linalg.det(u @ vt)
    flip = np.ones((len(points), 3))
    flip[:, 2] = sign
    fitted = (s * flip).sum(1) ** 2 / ((model**2).sum() * (points**2).sum((1, 2)))
    return (u * flip[:, None]) @ vt, 1 - fitted


def pose_statistics(angles, labels):
    """Mean and spread of poses.

    Args:
        angles: (N, 3) yaw, pitch, roll. labels: (N,) identity of each.

    Returns:
        dict per angle name: mean, std (over images, ddof 0), per_identity (identity -> std of its images,
        ddof 0; identities with one image are left out: they have no spread).
    """
    angles, labels = np.asarray(angles, np.float64), np.asarray(labels)
    if not len(angles):
        raise MetricError("pose: no face")
    result = {}
    for k, name in enumerate(ANGLES):
        values = angles[:, k]
        groups = {str(one): values[labels == one] for one in np.unique(labels)}
        spread = {one: float(group.std()) for one, group in groups.items() if len(group) > 1}
        result[name] = {"mean": float(values.mean()), "std": float(values.std()), "per_identity": spread}
    return result
