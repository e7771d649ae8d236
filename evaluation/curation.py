"""Which samples are taken and why: the rules of evaluation/curate.py, a person's marks, and its file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.balance import choose
from evaluation.measurements import FEW, REAL
from utils.errors import UserError
from utils.files import read_json

KIND, MARKS_KIND = "id-booth-curation", "id-booth-marks"
KEEP, REJECT = "keep", "reject"
TAKEN, MARKED, REJECTED, OVER = "passes all rules", "marked keep", "marked reject", "more than are wanted"


@dataclass(frozen=True)
class Rule:
    """One rule: what it leaves out (short), what it asks (a sentence), and whom it leaves out, (N,) bool."""

    name: str
    text: str
    out: np.ndarray


def read_marks(path):
    """{content hash: "keep" or "reject"} of a file that the gallery exported; UserError for another."""
    content = read_json(path)
    marks = content.get("marks") if isinstance(content, dict) and content.get("kind") == MARKS_KIND else None
    if not isinstance(marks, dict) or not all(isinstance(one, dict) for one in marks.values()):
        raise UserError(f"{path}: no marks of gallery.html; export them there")
    found = {key: one["mark"] for key, one in marks.items() if one.get("mark")}
    wrong = next((mark for mark in found.values() if mark not in (KEEP, REJECT)), None)
    if wrong is not None:
        raise UserError(f"{path}: mark {wrong!r:.40} is neither keep nor reject; export the marks again")
    return found


def reasons(measurements, config, marks):
    """(reason per row (N,) str: why it is taken or left out, list of :class:`Rule`).

    Rules apply in order, and the first that leaves a sample out names the reason. Real photos' reason is "".
    """
    samples = ~measurements.of_method(REAL)
    if config.methods:
        samples &= np.isin(measurements["method"].astype(str), config.methods)
    given = np.array([marks.get(key) for key in measurements["sha256"]], object)
    free = samples & (given != KEEP)
    rules = [Rule(REJECTED, "no mark of a person that rejects it", given == REJECT)] if marks else []
    rules += measured_rules(measurements, config, judge_of(measurements, config))
    reason = np.where(samples, TAKEN, "").astype(object)
    reason[samples & (given == KEEP)] = MARKED
    for rule in rules:
        reason[free & (reason == TAKEN) & rule.out] = rule.name
    if config.duplicate_likeness is not None:
        order = measurements[f"{judge_of(measurements, config)}_similarity"]
        twins = duplicates(measurements, np.isin(reason, (TAKEN, MARKED)), reason == MARKED, order, config)
        text = f"of samples that correlate by {config.duplicate_likeness:g} or more, the highest similarity"
        rules.append(Rule("duplicate", text, twins))
        reason[twins & free] = "duplicate"
    if config.most is not None:
        text = f"a place among {config.most} of its person and method, balanced over backgrounds and poses"
        over = surplus(measurements, reason, config)
        rules.append(Rule(OVER, f"{text}, seed {config.seed}", over))
        reason[over] = OVER
    return reason.astype(str), rules


def judge_of(measurements, config):
    """The name of the judge that decides, or of the first; UserError for one that did not measure."""
    names = list(measurements.judges)
    if config.judge is None:
        return names[0]
    if config.judge not in names:
        raise UserError(f"judge: no {config.judge!r} in {config.measurements}; there are {', '.join(names)}")
    return config.judge


def measured_rules(measurements, config, judge):
    """The rules on what each sample measures by itself."""
    rules = [Rule("no face", "a usable face", np.isnan(measurements["detection_score"]))]
    similarity, margin = measurements[f"{judge}_similarity"], measurements[f"{judge}_margin"]
    if config.fmr is not None:
        threshold, matches = measurements.threshold(judge, config.fmr)
        if np.isnan(threshold):
            raise UserError(
                "fmr: the real photos are of one person, so nothing matches falsely; set it to None"
            )
        text = (
            f"similarity to the person's photos of {threshold:.3f} or more by the {judge}; {matches:,} of "
            f"{measurements.judges[judge]['comparisons']:,} comparisons with other people's photos reach it "
            f"(FMR {config.fmr:g}{'; fewer than ten say little' if matches < FEW else ''})"
        )
        rules.append(Rule("not similar", text, ~(similarity >= threshold)))
    if config.least_margin is not None:
        text = f"a margin of {config.least_margin:g} or more over the most similar other person"
        rules.append(Rule("like another person", text, ~(margin >= config.least_margin)))
    if config.quality_quantile is not None:
        rules.append(quality_rule(measurements, config.quality_quantile))
    if config.copy_likeness is not None:
        text = f"a correlation below {config.copy_likeness:g} with every real photo of the person"
        rules.append(Rule("copy of a photo", text, measurements["photo_likeness"] >= config.copy_likeness))
    return rules


def quality_rule(measurements, quantile):
    """The rule on quality; UserError where none was measured."""
    quality, photos = measurements["quality"], measurements.of_method(REAL)
    known = quality[photos & ~np.isnan(quality)]
    if not len(known):
        raise UserError(
            "quality_quantile: no quality was measured; evaluate with quality_weights, or set it to None"
        )
    least = np.quantile(known, quantile)
    text = f"quality of {least:.3f} or more, the {quantile:g} quantile of the real photos"
    return Rule("low quality", text, ~(quality >= least))


def duplicates(measurements, here, marked, similarity, config):
    """Rows (N,) bool that show what another row of `here` shows, which stays.

    Samples that are alike directly or through others are one group; the marked ones of it stay, or else that
    of the highest similarity.
    """
    rows = {key: i for i, key in enumerate(zip(measurements["method"], measurements["file"], strict=True))}
    alike = np.flatnonzero(here & (measurements["sample_likeness"] >= config.duplicate_likeness))
    other = np.array(
        [rows.get((measurements["method"][i], measurements["nearest_sample"][i]), i) for i in alike], int
    )
    alike, other = (of[here[other]] for of in (alike, other)) if len(alike) else (alike, other)
    edges = coo_array((np.ones(len(alike)), (alike, other)), shape=(len(here), len(here)))
    group = connected_components(edges, directed=False)[1]
    order = np.lexsort((-np.nan_to_num(similarity, nan=-2.0), ~marked))
    best = np.zeros(len(here), bool)
    best[order[np.unique(group[order], return_index=True)[1]]] = True
    return here & ~best & ~marked


def surplus(measurements, reason, config):
    """Rows (N,) bool that pass but are more than `most` of a person and method; marked ones count first."""
    over = np.zeros(len(measurements), bool)
    piles = {}
    for i in np.flatnonzero(np.isin(reason, (TAKEN, MARKED))):
        piles.setdefault((measurements["method"][i], measurements["identity"][i]), []).append(i)
    for (_, person), pile in piles.items():
        groups = {i: (measurements["background"][i] or "", measurements["pose"][i] or "") for i in pile}
        files = {Path(measurements["file"][i]): i for i in pile if reason[i] == TAKEN}
        kept = [groups[i] for i in pile if reason[i] == MARKED]
        by_stem = {(person, file.stem): groups[i] for file, i in files.items()}
        count = max(0, config.most - len(kept))
        chosen = choose(person, list(files), count, config.seed, by_stem, kept)
        over[[i for file, i in files.items() if file not in set(chosen)]] = True
    return over


def read_curation(path):
    """What evaluation/curate.py wrote: "rules", "samples" as {method: {identity: [{"file", "sha256"}]}}, ...

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    content = read_json(path)
    try:
        if content["kind"] != KIND or not all(isinstance(rule, str) for rule in content["rules"]):
            raise ValueError
        entries = [e for people in content["samples"].values() for of in people.values() for e in of]
        if not all(isinstance(e["file"], str) and isinstance(e["sha256"], str) for e in entries):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: no curation.json of evaluation.curate, or damaged; curate again") from None
    return content
