"""Shared by the tests of maths: files of rows."""

import json

import datasets
import pytest


@pytest.fixture
def write(tmp_path):
    """Writes rows (or raw bytes) to a file and returns its name."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif name.endswith(".parquet"):
            datasets.Dataset.from_list(rows).to_parquet(path)
        else:
            text = "\n".join(json.dumps(row) for row in rows) if name.endswith(".jsonl") else json.dumps(rows, indent=1)
            path.write_text(text)
        return str(path)

    return write
