"""Sections made of the samples' table: fixed false match rates, people from the worst on, groups of people.

Every figure here is a mean over people of the mean over their samples, so that intervals and differences are
those of people (evaluation/bootstrap.py).
"""

import itertools
from dataclasses import dataclass

import numpy as np

from evaluation.bootstrap import mean_interval, paired_difference, percentile_interval, unpaired_difference
from evaluation.image_sets import REAL
from evaluation.inputs import MetricError
from evaluation.measure_identity import RATE, verified
from evaluation.measure_sets import METHOD
from evaluation.measurements import FEW
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value
from id_booth.prompts import AGES, find_attributes_file, load_attributes
from utils.errors import UserError
from utils.identities import natural_key

RATES = {"1 %": 0.01, "0.1 %": 0.001}
FEW_PEOPLE = 10  # in a group, below which its figures say little
WORST = 20  # rows of the people's table that the page shows
SHARE = dict(scale=100.0, unit=" %", digits=1)
KINDS = {"gender": ("female", "male"), "age": tuple(filter(None, AGES))}


@dataclass(frozen=True)
class Measure:
    """A measurement of samples with a table column; `values` (N,), NaN where a sample has none."""

    column: Column
    values: np.ndarray


def people_measures(measurements):
    """The :class:`Measure` of everything that these sections average."""
    face = ~np.isnan(measurements["detection_score"])
    found = [Measure(Column("share", "with a face", "high", **SHARE), face.astype(float))]
    for judge in measurements.judges:
        similarity, threshold = measurements[f"{judge}_similarity"], measurements.threshold(judge, 0.01)[0]
        title = f"similarity to own photos, {judge}"
        found.append(Measure(Column(f"{judge}_similarity", title, "high"), similarity))
        title = f"margin to others, {judge}"
        found.append(Measure(Column(f"{judge}_margin", title, "high"), measurements[f"{judge}_margin"]))
        if not np.isnan(threshold):
            accepted = np.where(np.isnan(similarity), np.nan, similarity >= threshold)
            column = Column(f"{judge}_accepted", f"accepted at FMR 1 %, {judge}", "high", **SHARE)
            found.append(Measure(column, accepted))
    if not np.isnan(measurements["quality"]).all():
        found.append(Measure(Column("quality", "quality", "high"), measurements["quality"]))
    return found


def per_person(measurements, values, rows):
    """{identity: mean of its values} over the rows (N,) bool that have one."""
    rows = rows & ~np.isnan(values)
    names, codes = np.unique(measurements["identity"][rows].astype(str), return_inverse=True)
    means = np.bincount(codes, values[rows]) / np.bincount(codes)
    return dict(zip(names.tolist(), means.tolist(), strict=True))


def methods_of(measurements):
    """Real photos first, then the methods."""
    return list(dict.fromkeys(measurements["method"]))


def mean_cell(values, config):
    """A table's cell of {identity: value}: its mean with an interval over people; None for nobody."""
    return Value(*mean_interval(values, config.replicates, config.seed)) if values else None


# ------------------------------------------------------------------------------- fixed false match rates


def threshold_section(comparison, measurements):
    """Each judge's thresholds at fixed false match rates of the real photos, and whom they accept."""
    config, rows = comparison.config, []
    methods = methods_of(measurements)
    for judge, (title, rate) in itertools.product(measurements.judges, RATES.items()):
        threshold, matches = measurements.threshold(judge, rate)
        if np.isnan(threshold):
            raise UserError("false match rates: the real photos are of one person; give photos of several")
        row = {"method": f"{judge}, FMR {title}", "threshold": threshold, "matches": matches}
        row |= {"comparisons": measurements.judges[judge]["comparisons"]}
        similarity = measurements[f"{judge}_similarity"]
        accepted = np.where(np.isnan(similarity), np.nan, similarity >= threshold)
        for place, method in enumerate(methods):
            values = per_person(measurements, accepted, measurements.of_method(method))
            row[f"accepted_{place}"] = mean_cell(values, config)
        rows.append(row)
    columns = [
        Column("method", "judge and rate"),
        Column("threshold", "threshold", help="lowest similarity that counts as a match"),
        Column("matches", "false matches", help="that the threshold rests on; fewer than ten say little"),
        Column("comparisons", "comparisons", help="of a photo with all photos of another person"),
    ]
    columns += [Column(f"accepted_{k}", f"accepted: {name}", **SHARE) for k, name in enumerate(methods)]
    few = [row["method"] for row in rows if row["matches"] < FEW]
    note = "Similarity here is a picture's mean cosine to a person's photos, as in measurements.csv."
    note += f" Fewer than {FEW} false matches, so no more than a hint: {'; '.join(few)}." if few else ""
    table = Table("thresholds", "Accepted at a fixed false match rate", columns, rows, note)
    return Section("Fixed false match rates", "Thresholds come from real photos alone.", [table])


# ------------------------------------------------------------------------------------------------ people


def people_section(comparison, measurements):
    """Every person under every method, the least similar first, and paired differences between methods."""
    measures, judge = people_measures(measurements), next(iter(measurements.judges))
    rows = []
    for method in methods_of(measurements):
        here = measurements.of_method(method) if method != REAL else np.zeros(len(measurements), bool)
        means = {one.column.key: per_person(measurements, one.values, here) for one in measures}
        others = f"{judge}_other_person"
        for name in dict.fromkeys(measurements["identity"][here]):
            mine = here & (measurements["identity"] == name)
            row = {"method": method, "identity": name, "images": int(mine.sum())}
            row |= {key: of.get(name) for key, of in means.items()}
            rows.append(row | {"other": most_common(measurements[others][mine])})
    rows.sort(key=lambda row: np.nan_to_num(row[f"{judge}_similarity"] or np.nan, nan=-2.0))
    columns = [METHOD, Column("identity", "person"), Column("images", "images")]
    columns += [Column(**vars(one.column) | {"better": ""}) for one in measures]
    columns.append(Column("other", f"most often nearest other person, {judge}"))
    note = f"Least similar first, by the {judge}. Means over a person's samples."
    table = Table("people", "Person by person", columns, rows, note, page_rows=WORST)
    return Section("People", tables=[table, *paired_tables(comparison, measurements, measures)])


def most_common(names):
    """The most frequent text of a column; None without any."""
    known, counts = np.unique([name for name in names if name is not None], return_counts=True)
    return str(known[counts.argmax()]) if len(known) else None


def paired_tables(comparison, measurements, measures):
    """[Table] of the differences of every two methods in every measure, paired by person; [] without any."""
    config, rows = comparison.config, []
    methods = [name for name in methods_of(measurements) if name != REAL]
    for first, second in itertools.combinations(methods, 2):
        row = {"method": f"{first} minus {second}"}
        for one in measures:
            sides = (per_person(measurements, one.values, measurements.of_method(m)) for m in (first, second))
            try:
                paired = paired_difference(*sides, config.replicates, config.seed)
            except MetricError:
                continue  # they share nobody with this measurement
            row[one.column.key] = Value(paired["difference"], paired["low"], paired["high"])
            row["people"] = paired["identities"]
        rows.append(row)
    if not rows:
        return []
    columns = [METHOD, Column("people", "identities")]
    columns += [Column(**vars(one.column) | {"better": ""}) for one in measures]
    note = "Mean differences over the people of both, 95 % intervals over the same redrawn people."
    return [Table("method_differences", "Methods against each other, paired by person", columns, rows, note)]


# ------------------------------------------------------------------------------------------------ groups


def group_section(comparison, measurements):
    """Identity, error rates and quality by gender and by age group, and the differences between groups.

    Raises:
        UserError: nothing is known of the people.
    """
    config = comparison.config
    path = config.groups_file or find_attributes_file(config.real_folder)
    if path is None:
        raise UserError(
            "groups_file: none given, and no attributes.csv beside the photos; write it (identity,gender,age)"
        )
    known, tables = load_attributes(path), []
    people = sorted({*measurements["identity"].tolist()}, key=natural_key)
    for kind, words in KINDS.items():
        of = {name: getattr(known[name], kind) for name in people if name in known}
        groups = {word: {name for name, value in of.items() if value == word} for word in words}
        groups = {word: names for word, names in groups.items() if names}
        if groups:
            tables += group_tables(comparison, measurements, kind, groups)
    if not tables:
        raise UserError(f"{path}: knows neither gender nor age of anybody here; fill it in")
    text = "A difference between groups is one of these few people, not of all such people in the world."
    return Section("Groups of people", text, tables)


@dataclass(frozen=True)
class Rate:
    """An error rate of some people: its value, that of redrawn people (R,), and how many they are."""

    value: float
    draws: np.ndarray
    people: int

    def cell(self):
        """The rate with its interval."""
        return Value(self.value, *percentile_interval(self.draws, self.people))

    def less(self, other):
        """The difference to a rate of other people, who are redrawn by themselves."""
        people = min(self.people, other.people)
        return Rate(self.value - other.value, self.draws - other.draws, people).cell()


def group_rates(comparison, faces, names):
    """{column: Rate}: the EER by each judge within a group, against its photos or of photos themselves."""
    rates, real = {}, None if faces.name == REAL else comparison.real
    for judge in comparison.judges:
        try:
            _, stats, draws = verified(faces, real, judge, comparison.config, names)
        except MetricError:
            continue  # nobody, or one person
        people = len({*faces.labels} & {*names})
        rates[f"{judge}_eer"] = Rate(stats["eer"], draws["eer"], people)
    return rates


def group_tables(comparison, measurements, kind, groups):
    """[Table of each group, Table of differences]; the second only with two groups."""
    config, measures, rows, differences = comparison.config, people_measures(measurements), [], []
    people = measurements["identity"].astype(str)
    for faces in comparison.sets:
        here = measurements.of_method(faces.name)
        members = {word: here & np.isin(people, [*names]) for word, names in groups.items()}
        means = {
            word: {one.column.key: per_person(measurements, one.values, mine) for one in measures}
            for word, mine in members.items()
        }
        rates = {word: group_rates(comparison, faces, sorted(names)) for word, names in groups.items()}
        for word, of in means.items():
            cells = {key: mean_cell(values, config) for key, values in of.items()}
            cells |= {key: rate.cell() for key, rate in rates[word].items()}
            count = len(np.unique(people[members[word]]))
            rows.append({"method": faces.name, "group": word, "people": count} | cells)
        for first, second in itertools.combinations(means, 2):
            row = {"method": faces.name, "group": f"{first} minus {second}"}
            for key, values in means[first].items():
                if values and means[second][key]:
                    pair = values, means[second][key]
                    row[key] = Value(*unpaired_difference(*pair, config.replicates, config.seed))
            both = rates[first].keys() & rates[second].keys()
            differences.append(row | {key: rates[first][key].less(rates[second][key]) for key in both})
    columns = [METHOD, Column("group", kind), Column("people", "people")]
    means = [Column(**vars(one.column) | {"better": ""}) for one in measures]
    means += [Column(f"{judge}_eer", f"EER, {judge}", **RATE) for judge in comparison.judges]
    note = group_note(groups)
    text = "Means over people; EER of samples against photos, or photos among themselves, within the group."
    tables = [Table(f"groups_{kind}", f"By {kind}", columns + means, rows, note + text)]
    if differences:
        note += "In brackets intervals over redrawn people of each group."
        title = f"By {kind}: differences"
        tables.append(Table(f"groups_{kind}_differences", title, columns[:2] + means, differences, note))
    return tables


def group_note(groups):
    """A warning of small groups; "" without any."""
    few = [f"{word} ({len(names)})" for word, names in groups.items() if len(names) < FEW_PEOPLE]
    return f"Too few people to say, below {FEW_PEOPLE}: {', '.join(few)}. " if few else ""
