"""EB-NeRD from tiny files of the published schema."""

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfx_pipeline.datasets import DatasetError, prepare

MONDAY = datetime(2023, 5, 22, 7, 0)
MS = 1_684_738_800_000  # the same in milliseconds
DAY = 86_400_000
TIME = pa.timestamp("us")
IDS = pa.list_(pa.int32())


def behaviors(rows):
    """Rows of (impression, user, time, article page, in view, clicked, next read time)."""
    number, user, time, page, seen, clicked, read = zip(*rows, strict=True)
    count = len(rows)
    return pa.table(
        {
            "impression_id": pa.array(number, pa.uint32()),
            "article_id": pa.array(page, pa.int32()),
            "impression_time": pa.array(time, TIME),
            "read_time": pa.array([30.0] * count, pa.float32()),
            "scroll_percentage": pa.array([None] * count, pa.float32()),
            "device_type": pa.array([2] * count, pa.int8()),
            "article_ids_inview": pa.array(seen, IDS),
            "article_ids_clicked": pa.array(clicked, IDS),
            "user_id": pa.array(user, pa.uint32()),
            "is_sso_user": pa.array([False] * count),
            "gender": pa.array([None] * count, pa.int8()),
            "postcode": pa.array([None] * count, pa.int8()),
            "age": pa.array([40] * count, pa.int8()),
            "is_subscriber": pa.array([True] * count),
            "session_id": pa.array([1] * count, pa.uint32()),
            "next_read_time": pa.array(read, pa.float32()),
            "next_scroll_percentage": pa.array([100.0] * count, pa.float32()),
        }
    )


def history(rows):
    """Rows of (user, times, articles)."""
    user, times, articles = zip(*rows, strict=True)
    return pa.table(
        {
            "user_id": pa.array(user, pa.uint32()),
            "impression_time_fixed": pa.array(times, pa.list_(TIME)),
            "scroll_percentage_fixed": pa.array(
                [[50.0] * len(row) for row in articles], pa.list_(pa.float32())
            ),
            "article_id_fixed": pa.array(articles, IDS),
            "read_time_fixed": pa.array(
                [[12.0] * len(row) for row in articles], pa.list_(pa.float32())
            ),
        }
    )


ARTICLES = pa.table(
    {
        "article_id": pa.array([100, 101, 102, 103], pa.int32()),
        "title": ["a", "b", "c", "d"],
        "published_time": pa.array([MONDAY - timedelta(minutes=90)] * 3 + [None], TIME),
        "premium": [False, True, False, False],
        "article_type": ["article_default", "article_video", "article_default", "article_default"],
        "category": pa.array([118, 118, 140, 142], pa.int16()),
        "subcategory": pa.array([[133, 5], [], None, [127]], pa.list_(pa.int16())),
        "sentiment_score": pa.array([0.99, 0.5, None, 0.1], pa.float32()),
    }
)
NEXT_MONDAY = MONDAY + timedelta(days=7)
TRAIN = [
    (1, 7, MONDAY, None, [100, 101, 102], [101], 45.0),
    (2, 7, MONDAY + timedelta(minutes=10), 101, [100, 102], [102], 5.0),
]
VALIDATION = [(1, 8, NEXT_MONDAY, None, [103, 100], [103], None)]
OLD = [(7, [MONDAY - timedelta(days=2), MONDAY - timedelta(days=1)], [100, 103])]
# The second history repeats an event of the first, and the click on 102 at its exact time.
NEW = [
    (7, [MONDAY - timedelta(days=1), MONDAY + timedelta(minutes=11)], [103, 102]),
    (8, [NEXT_MONDAY - timedelta(hours=1)], [100]),
]


def write(folder, articles=ARTICLES, train=TRAIN, old=OLD):
    for name, log, past in (("train", train, old), ("validation", VALIDATION, NEW)):
        (folder / name).mkdir(parents=True)
        pq.write_table(behaviors(log), folder / name / "behaviors.parquet")
        pq.write_table(history(past), folder / name / "history.parquet")
    pq.write_table(articles, folder / "articles.parquet")
    return folder


def test_published_files_become_three_tables(tmp_path):
    dataset = prepare(write(tmp_path / "raw"), tmp_path / "out")
    assert dataset.splits == {"train": (MS, MS + 7 * DAY), "eval": (MS + 7 * DAY, MS + 7 * DAY + 1)}

    impressions = pq.read_table(dataset.impressions_path).to_pydict()
    assert impressions["item_id"] == [100, 101, 102, 100, 102, 103, 100]
    assert impressions["click"] == [0, 1, 0, 0, 1, 1, 0]
    assert impressions["on_article"] == [0, 0, 0, 1, 1, 0, 0]
    assert impressions["gender"] == [-1] * 7 and impressions["is_subscriber"] == [1] * 7
    # Impression 1 is there in both splits: two requests.
    assert len(set(impressions["request_id"])) == 3

    items = pq.read_table(dataset.items_path).to_pydict()
    assert items["category"] == [118, 118, 140, 142]
    assert items["subcategory"] == [133, -1, -1, 127]
    assert items["premium"] == [0, 1, 0, 0]
    assert items["sentiment_percent"] == [99, 50, -1, 10]
    assert items["article_type"] == [0, 1, 0, 0]
    assert items["published_ms"] == [MS - 90 * 60_000] * 3 + [0]
    assert dataset.spec.derived_candidate_fields["article_age"].of == "published_ms"


def test_large_lists_as_some_writers_make_them_are_read_alike(tmp_path):
    folder = write(tmp_path / "raw")
    plain = prepare(folder, tmp_path / "plain")
    for path in folder.rglob("*.parquet"):
        pq.write_table(with_large_types(pq.read_table(path)), path)
    large = prepare(folder, tmp_path / "large")
    for name in ("events_path", "items_path", "impressions_path"):
        assert pq.read_table(getattr(large, name)).equals(pq.read_table(getattr(plain, name)))


def with_large_types(table):
    """Lists and texts with 64-bit offsets."""
    fields = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_list(kind):
            kind = pa.large_list(kind.value_type)
        if pa.types.is_string(kind):
            kind = pa.large_string()
        fields.append(pa.field(field.name, kind))
    columns = [pa.array(table[field.name].to_pylist(), field.type) for field in fields]
    return pa.table(columns, schema=pa.schema(fields))


def test_each_reading_is_one_event(tmp_path):
    dataset = prepare(write(tmp_path / "raw"), tmp_path / "out")
    events = pq.read_table(dataset.events_path).to_pydict()
    rows = list(
        zip(
            events["user_id"],
            events["timestamp"],
            events["item_id"],
            events["read_seconds"],
            events["scroll_percent"],
            strict=True,
        )
    )
    assert rows == [
        (7, MS - 2 * DAY, 100, 12, 50),
        (7, MS - DAY, 103, 12, 50),
        # The page view of 101 stands for the click on it; its reading began at the view.
        (7, MS + 600_000, 101, 30, -1),
        # The click on 102 is in the second history, with its exact time.
        (7, MS + 660_000, 102, 12, 50),
        (8, MS + 7 * DAY - 3_600_000, 100, 12, 50),
        # Nothing else tells of the click on 103: it is an event at its impression's time.
        (8, MS + 7 * DAY, 103, -1, 100),
    ]


def test_a_folder_without_splits_is_cut_by_time(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    log = [(n, 7, MONDAY + timedelta(hours=n), None, [100], [100], 1.0) for n in range(10)]
    pq.write_table(behaviors(log), folder / "behaviors.parquet")
    pq.write_table(history(OLD), folder / "history.parquet")
    pq.write_table(ARTICLES, folder / "articles.parquet")
    dataset = prepare(folder, tmp_path / "out")
    assert dataset.splits["eval"][0] == MS + 8 * 3_600_000


@pytest.mark.parametrize("name", ["behaviors.parquet", "history.parquet"])
def test_missing_and_damaged_files_are_named(tmp_path, name):
    folder = write(tmp_path / "raw")
    path = folder / "validation" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=f"{name} cannot be read as Parquet"):
        prepare(folder, tmp_path / "out")
    path.unlink()
    with pytest.raises(DatasetError, match=f"validation has no {name}"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_columns_and_wrong_types_are_named(tmp_path):
    folder = write(tmp_path / "a", articles=ARTICLES.drop(["category"]))
    with pytest.raises(DatasetError, match=r"articles\.parquet lacks the columns \['category'\]"):
        prepare(folder, tmp_path / "out")
    place = ARTICLES.column_names.index("published_time")
    numbers = ARTICLES.set_column(place, "published_time", pa.array([1, 2, 3, 4]))
    with pytest.raises(DatasetError, match="published_time is int64; expected a timestamp"):
        prepare(write(tmp_path / "b", articles=numbers), tmp_path / "out")


def test_only_what_is_optional_may_be_absent(tmp_path):
    few = ARTICLES.select(["article_id", "published_time", "category"])
    dataset = prepare(write(tmp_path / "raw", articles=few), tmp_path / "out")
    items = pq.read_table(dataset.items_path).to_pydict()
    assert items["subcategory"] == items["premium"] == items["sentiment_percent"] == [-1] * 4
