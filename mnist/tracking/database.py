"""The URI of a store and the SQLite file that it names, checked without MLflow.

MLflow would try for minutes to open a folder, and put its tables into the database of something else. Its
import takes a second.
"""

import os
import re
import shlex
import socket
import sqlite3
from contextlib import closing
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from mnist.core import paths, process
from mnist.core.errors import InputError

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
TIMEOUT_SECONDS = 2.0  # for a connection
STORE = "a store of MLflow: move it away, then run `mnist sync`"


def check(uri: str, *, is_written: bool = True) -> None:
    """Check that MLflow can open a URI: its scheme, and an SQLite file if there is one already.

    Args:
        uri: of the store.
        is_written: whether the file must be open to this user for writing, too.

    Raises:
        InputError: it cannot.
        sqlite3.OperationalError: the file is locked by others.
    """
    if not re.match(rf"({'|'.join(SCHEMES)})(\+\w+)?:/", uri):
        expected = f"a URI that begins with one of {', '.join(SCHEMES)}, or none: `unset MLFLOW_TRACKING_URI`"
        raise InputError("MLFLOW_TRACKING_URI", found=paths.shown(uri), expected=expected)
    if not uri.startswith("sqlite:///"):
        return
    file, where = paths.sqlite_file(uri), f"MLflow at {paths.shown(uri)}"
    if not file.exists():
        if not os.access(file.parent, os.W_OK):
            expected = "one to write to: make it, or run `unset MLFLOW_TRACKING_URI`"
            raise InputError(where, found=f"no folder {file.parent}", expected=expected)
        return
    if not file.is_file() or not file.stat().st_size:
        found = "an empty file" if file.is_file() else "a folder"
        raise InputError(where, found=found, expected=STORE)
    if not os.access(file, os.R_OK | (os.W_OK if is_written else 0)):
        command = "chmod u+rw" if file.stat().st_uid == os.getuid() else "sudo chown $USER"
        expected = f"to read and write it: run `{command} {shlex.quote(str(file))}`"
        raise InputError(where, found="no permission", expected=expected)
    try:
        ((version,),) = query(uri, "SELECT version_num FROM alembic_version")
    except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: no version in it
        if "locked" in str(error):
            raise
        is_other = isinstance(error, ValueError) or "no such table" in str(error)
        found = "a database of something else" if is_other else str(error)
        raise InputError(where, found=found, expected=STORE) from None
    _check_schema(str(version), uri, where)


def query(uri: str, command: str, *values: object) -> list[Any]:
    """Return the rows that a query finds in a store of SQLite."""
    # Not `mode=ro`, which cannot roll back what a killed process left.
    file = paths.sqlite_file(uri).as_uri()
    with closing(sqlite3.connect(f"{file}?mode=rw", uri=True)) as store:
        return store.execute(command, values).fetchall()


def _check_schema(version: str, uri: str, where: str) -> None:
    """Check the version of a store's tables by the files of MLflow's migrations."""
    folder = distribution("mlflow").locate_file("mlflow/store/db_migrations/versions")
    scripts = [script.read_text(encoding="utf-8") for script in Path(str(folder)).glob("*.py")]
    text, version = "\n".join(scripts), re.escape(version)
    if not re.search(rf"(?m)^revision = .{version}.$", text):
        expected = "of this one: use the MLflow that wrote it, or MLFLOW_TRACKING_URI=sqlite:///other.db"
        raise InputError(where, found="tables of a newer MLflow", expected=expected)
    if re.search(rf"(?m)^down_revision = .{version}.$", text):
        expected = f"of this one: run `mlflow db upgrade {shlex.quote(uri)}`"
        raise InputError(where, found="tables of an older MLflow", expected=expected)


def reach(uri: str) -> None:
    """Check that there is a driver for a database, and that its server takes connections.

    Raises:
        InputError: there is none, or it does not.
    """
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
        sqlalchemy.create_engine(url)
        if url.host:
            port = url.port or PORTS[url.get_backend_name()]
            socket.create_connection((url.host, port), TIMEOUT_SECONDS).close()
    except (ImportError, ValueError, OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        expected = "a database that answers, with its driver: start it, or run `unset MLFLOW_TRACKING_URI`"
        # Another error's text may hold the URI.
        found = str(error) if isinstance(error, ImportError | OSError) else type(error).__name__
        raise InputError(f"MLflow at {paths.shown(uri)}", found=found, expected=expected) from None


if __name__ == "__main__":  # for `make ui`
    with process.reported():
        uri = paths.store_uri()
        try:
            check(uri)
        except sqlite3.OperationalError as error:
            where = f"MLflow at {paths.shown(uri)}"
            raise InputError(where, found=str(error), expected="no other process that writes") from None
        print(uri)
