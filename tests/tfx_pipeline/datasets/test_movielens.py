"""MovieLens from tiny hand-made files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser_features.ids import hash_string
from tfx_pipeline.datasets import DatasetError, prepare

START = 964_980_000
RATINGS = [(1, 10 + index, 0.5 + 0.5 * index, START + 100 * index) for index in range(10)]
MOVIES = [
    (10, "Toy Story (1995)", "Adventure|Animation|Children|Comedy|Fantasy"),
    (11, "American President, The (1995)", "Comedy"),
    (12, "No year", "(no genres listed)"),
]


def write_csv(folder, ratings=RATINGS, header="userId,movieId,rating,timestamp"):
    folder.mkdir()
    rows = [",".join(str(value) for value in row) for row in ratings]
    (folder / "ratings.csv").write_text("\n".join([header, *rows]) + "\n")
    lines = [f'{number},"{title}",{genres}' for number, title, genres in MOVIES]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *lines]) + "\n")
    return folder


def write_parquet(folder):
    folder.mkdir()
    users, items, ratings, times = zip(*RATINGS, strict=True)
    columns = {"user_id": users, "item_id": items, "timestamp": times, "rating": ratings}
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), folder / "events.parquet")
    numbers, titles, genres = zip(*MOVIES, strict=True)
    columns = {"item_id": numbers, "title": titles, "genres": genres}
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), folder / "items.parquet")
    return folder


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_ratings_become_events_and_impressions(tmp_path, write):
    dataset = prepare(write(tmp_path / "raw"), tmp_path / "out")
    assert dataset.counts == {"events": 10, "items": 3, "impressions": 10, "users": 1}
    cut = (START + 800) * 1000
    assert dataset.splits == {
        "train": (START * 1000, cut),
        "eval": (cut, (START + 900) * 1000 + 1),
    }
    events = pq.read_table(dataset.events_path).to_pydict()
    assert events["timestamp"][:2] == [START * 1000, (START + 100) * 1000]
    assert events["rating"] == list(range(1, 11))
    impressions = pq.read_table(dataset.impressions_path).to_pydict()
    assert impressions["like"] == [0] * 7 + [1] * 3
    assert "rating" not in impressions
    items = pq.read_table(dataset.items_path).to_pydict()
    assert items["year"] == [1995, 1995, -1]
    assert items["genre"] == [hash_string("Adventure"), hash_string("Comedy"), -1]
    assert items["third_genre"] == [hash_string("Children"), -1, -1]


def test_bad_ratings_are_reported(tmp_path):
    folder = write_csv(tmp_path / "a", header="userId,movieId,stars,timestamp")
    with pytest.raises(DatasetError, match=r"ratings\.csv lacks the columns \['rating'\]"):
        prepare(folder, tmp_path / "out")
    folder = write_csv(tmp_path / "b", [(1, 2, 3.0, START * 1000)])
    with pytest.raises(DatasetError, match=r"ratings\.csv: timestamp .* looks like milliseconds"):
        prepare(folder, tmp_path / "out")
    folder = write_csv(tmp_path / "c")
    (folder / "movies.csv").unlink()
    with pytest.raises(DatasetError, match=r"has no movies\.csv"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
