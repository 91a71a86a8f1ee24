"""The database's tables, as the newest migration leaves them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

versions = Table(
    "saeclamp_variant_versions",
    metadata,
    Column("base", String(256), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("steering", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("meaning", String(71), nullable=False),
    Column("created", BigInteger, nullable=False),
)
"""Versions. Rows are never updated."""

names = Table(
    "saeclamp_variant_names",
    metadata,
    Column("base", String(256), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),
    ForeignKeyConstraint(
        ["base", "name", "sha256"], [versions.c.base, versions.c.name, versions.c.sha256], name="names_a_version"
    ),
)
"""Names, each with the version that it means."""

aliases = Table(
    "saeclamp_variant_aliases",
    metadata,
    Column("alias", String(64), primary_key=True),
    Column("base", String(256), nullable=False),
    Column("name", String(64), nullable=False),
    UniqueConstraint("base", "name", name="one_alias_each"),
    ForeignKeyConstraint(["base", "name"], [names.c.base, names.c.name], name="is_of_a_name"),
)
"""Aliases: other names of names, without a colon."""

vectors = Table(
    "saeclamp_vectors",
    metadata,
    Column("model", String(256), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("site", String(64), nullable=False),
    Column("file", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
)
"""Uploaded vectors: the safetensors file that the server made of each. Rows are never updated."""

fleets = Table(
    "saeclamp_fleets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("lengths", Text, nullable=False),
    Column("is_ready", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
)
"""Fleets: what their first server was, as JSON, the lengths that it measured, and whether any server has come to answer."""
