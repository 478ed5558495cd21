"""Columns under the names a user gives them: ``dataset_map``."""

from collections.abc import Collection, Mapping

from pipeline.runtime.errors import UserError, did_you_mean


def parse_map(dataset_map: str | Mapping[str, str] | None) -> dict[str, str]:
    """``old=new,…``, or a mapping from YAML, as ``{old: new}``.

    Raises:
        UserError: a part without ``=``, or two columns renamed to one.
    """
    if not dataset_map:
        return {}
    if isinstance(dataset_map, Mapping):
        renames = {str(old): new for old, new in dataset_map.items()}
        for old, new in renames.items():
            if not (isinstance(new, str) and new):
                raise UserError(f"dataset_map: {old}: the new name of a column must be text, found {new!r}")
    else:
        renames = {}
        for part in str(dataset_map).split(","):
            old, equals, new = (piece.strip() for piece in part.partition("="))
            if not (old and equals and new):
                raise UserError(f"dataset_map {dataset_map!r}: {part.strip()!r} is not old=new (old=new,old2=new2)")
            if old in renames:
                raise UserError(f"dataset_map {dataset_map!r} gives column {old!r} two names")
            renames[old] = new
    if len(set(renames.values())) < len(renames):
        raise UserError(f"dataset_map {dataset_map!r} gives two columns one name")
    return renames


def check_map(renames: Mapping[str, str], columns: Collection[str], where: str) -> None:
    """Raises UserError unless every renamed column is there and no new name hides a column that stays."""
    for old, new in renames.items():
        if old not in columns:
            hint = did_you_mean(old, columns)
            raise UserError(f"{where} has no column {old!r} to rename (dataset_map); it has {listed(columns)}{hint}")
        if new in columns and new not in renames:
            raise UserError(
                f"{where} already has a column {new!r}: free the name in dataset_map too ({new}=old_{new},{old}={new})"
            )


def rename(row: Mapping[str, object], renames: Mapping[str, str]) -> dict[str, object]:
    """The row under its new column names."""
    return {renames.get(key, key): value for key, value in row.items()} if renames else dict(row)


def listed(columns: Collection[str]) -> str:
    """The columns as a message lists them."""
    return ", ".join(columns) if columns else "no columns"
