"""KuaiRand: the published CSV files and the prepared Parquet form, in tiny hand-made cuts."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfx_pipeline.datasets import DatasetError, prepare

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{index}" for index in range(18))
)
EARLIER = 1_650_700_000_000  # 23 April 2022
TRAIN = 1_650_900_000_000  # 25 April 2022
EVAL = 1_651_700_000_000  # 5 May 2022


def exposure(user, video, date, time_ms, click=0, like=0, long_view=0, play=0, tab=1):
    return (
        f"{user},{video},{date},1200,{time_ms},{click},{like},0,0,0,0,{long_view},{play},20000,"
        f"0,0,0,0,{tab}"
    )


LOG = [
    exposure(1, 10, 20220423, EARLIER, click=1, long_view=1, play=25_000),
    exposure(1, 11, 20220425, TRAIN, click=1, like=1, play=5_000, tab=0),
    exposure(1, 11, 20220425, TRAIN, click=1, like=1, play=5_000, tab=0),
    exposure(2, 10, 20220425, TRAIN + 5),
    exposure(1, 12, 20220505, EVAL, click=1, play=400),
]


def write_csv(folder, log=LOG, header=LOG_HEADER):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join([header, *log]) + "\n")
    random = exposure(2, 11, 20220426, TRAIN + 86_400_000, tab=4)
    (folder / "log_random_4_22_to_5_08_pure.csv").write_text(f"{LOG_HEADER}\n{random}\n")
    videos = [
        VIDEO_HEADER,
        '10,500,NORMAL,2022-04-10,LongImport,1,20000,720,1280,1,9,"39,68"',
        "11,501,AD,2022-04-10,Web,1,,1280,720,1,,3",
        "12,500,NORMAL,2022-04-10,UNKNOWN,1,30000,0,0,1,4,UNKNOWN",
    ]
    (folder / "video_features_basic_pure.csv").write_text("\n".join(videos) + "\n")
    onehot = ",".join(["1"] * 12 + ["1.0", "0.0", "1.0", "0.0", "0.0", "0.0"])
    unknown = ",".join(["1"] * 4 + [""] + ["1"] * 7 + [""] * 6)
    users = [
        USER_HEADER,
        f'1,full_active,0,-124,1,5,"(0,10]",3,"[1,10)",0,0,100,61-90,{onehot}',
        f'2,strange,0,0,0,7,"(0,10]",3,"[1,10)",0,0,900,730+,{unknown}',
    ]
    (folder / "user_features_pure.csv").write_text("\n".join(users) + "\n")
    return folder


@pytest.mark.parametrize("inside", ["", "data"])
def test_csv_files_become_three_tables(tmp_path, inside):
    write_csv(tmp_path / "raw" / inside)
    dataset = prepare(tmp_path / "raw", tmp_path / "out")
    assert dataset.counts == {"events": 5, "items": 3, "impressions": 5, "users": 2}
    # The split follows the logged dates; the time ranges touch.
    assert dataset.splits == {"train": (TRAIN, EVAL), "eval": (EVAL, EVAL + 1)}

    events = pq.read_table(dataset.events_path).to_pydict()
    assert events["user_id"] == [1, 1, 1, 2, 2]
    assert events["timestamp"] == [EARLIER, TRAIN, EVAL, TRAIN + 5, TRAIN + 86_400_000]
    assert events["item_id"] == [10, 11, 12, 10, 11]
    assert events["scenario"] == [1, 0, 1, 1, 4]
    assert events["action"] == [2, 3, 1, 0, 0]  # long view, like, click, exposure
    assert events["play_time_ms"] == [25_000, 5_000, 400, 0, 0]
    assert events["play_percent"] == [125, 25, 2, 0, 0]

    items = pq.read_table(dataset.items_path).to_pydict()
    assert items["tag"] == [39, 3, -1] and items["second_tag"] == [68, -1, -1]
    assert items["is_ad"] == [0, 1, 0]
    assert items["orientation"] == [2, 0, -1]  # portrait, landscape, not known
    assert items["duration_ms"] == [20_000, -1, 30_000]
    assert items["music_type"] == [9, -1, 4]
    assert len(set(items["upload_type"])) == 3

    impressions = pq.read_table(dataset.impressions_path).to_pydict()
    # The doubled row of the published log is two impressions, as its authors count.
    assert impressions["timestamp"] == [TRAIN, TRAIN, TRAIN + 5, TRAIN + 86_400_000, EVAL]
    assert impressions["click"] == [1, 1, 0, 0, 1]
    assert impressions["like"] == [1, 1, 0, 0, 0]
    assert impressions["active_degree"] == [0, 0, -1, -1, 0]
    assert impressions["is_live_streamer"] == [-1, -1, 0, 0, -1]
    assert impressions["profile_flags"] == [5, 5, -1, -1, 5]
    assert impressions["onehot_feat4"] == [1, 1, -1, -1, 1]
    assert impressions["register_days"] == [100, 100, 900, 900, 100]


def test_nothing_of_the_candidates_own_exposure_is_a_feature(tmp_path):
    dataset = prepare(write_csv(tmp_path / "raw"), tmp_path / "out")
    features = set(dataset.spec.request_fields) | set(dataset.spec.candidate_fields)
    after = {"play_time_ms", "play_percent", "action", "click", "long_view", "like"}
    assert not features & after
    columns = set(pq.read_schema(dataset.impressions_path).names)
    assert columns & after == {"click", "long_view", "like"}  # these are labels
    assert set(dataset.spec.labels) == {"click", "long_view", "like"}


def test_an_exposure_logged_again_is_in_the_history_once_and_late(tmp_path):
    """Else the impression that was logged again would find its own outcome in its history."""
    log = [
        *LOG,
        exposure(3, 10, 20220426, TRAIN, click=1, play=4_321),
        exposure(3, 10, 20220426, TRAIN + 30_000, click=1, play=4_321),  # logged again
        exposure(3, 10, 20220426, TRAIN + 60_000, click=1, play=9_999),  # watched again
        exposure(3, 10, 20220427, TRAIN + 90_000_000, click=1, play=9_999),  # a day later
    ]
    dataset = prepare(write_csv(tmp_path / "raw", log), tmp_path / "out")
    events = pq.read_table(dataset.events_path).to_pandas()
    times = events.timestamp[events.user_id == 3].tolist()
    assert times == [TRAIN + 30_000, TRAIN + 60_000, TRAIN + 90_000_000]
    impressions = pq.read_table(dataset.impressions_path).to_pandas()
    assert (impressions.user_id == 3).sum() == 4


def test_a_user_without_profile_gets_missing_values(tmp_path):
    folder = write_csv(tmp_path / "raw", [*LOG, exposure(9, 10, 20220506, EVAL + 9, click=1)])
    impressions = pq.read_table(prepare(folder, tmp_path / "out").impressions_path).to_pydict()
    assert impressions["user_id"][-1] == 9
    assert impressions["active_degree"][-1] == impressions["register_days"][-1] == -1


def test_prepared_parquet_becomes_three_tables(tmp_path):
    folder = write_parquet(tmp_path / "raw")
    dataset = prepare(folder, tmp_path / "out")
    events = pq.read_table(dataset.events_path).to_pydict()
    assert events["timestamp"] == [1_650_700_000_000, 1_650_900_000_000, 1_651_700_000_000]
    assert events["action"] == [0, 1, 0]
    assert events["play_time_ms"] == [-1, 9_000, 100]
    assert events["play_percent"] == [-1, 90, 1]
    impressions = pq.read_table(dataset.impressions_path).to_pydict()
    assert impressions["click"] == [1, 0]
    assert dataset.splits["eval"][0] == 1_651_700_000_000


def write_parquet(folder, **changes):
    folder.mkdir()
    events = {
        "user_id": [1, 1, 1],
        "item_id": [0, 1, 0],
        "timestamp": [1_650_700_000, 1_650_900_000, 1_651_700_000],
        "scenario": [-1, 1, 1],
        "label": [-1, 1, 0],
        **{
            name: [-1, 0, 0]
            for name in ("long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate")
        },
        "play_time_ms": [-1, 9_000, 100],
        "duration_ms": [-1, 10_000, 10_000],
        "date": [0, 20220425, 20220505],
        "action": [0, 1, 0],
        "is_candidate": [0, 1, 1],
        **changes,
    }
    pq.write_table(
        pa.table({name: values for name, values in events.items() if values is not None}),
        folder / "events.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "item_id": [0, 1],
                "author_id": [7, 8],
                "video_type": ["NORMAL", "AD"],
                "upload_type": ["Web", "Web"],
                "duration_ms": [10_000.0, None],
                "width": [720.0, 720.0],
                "height": [1280.0, 1280.0],
                "music_type": [9.0, None],
                "tag": ["39,68", ""],
            }
        ),
        folder / "items.parquet",
    )
    users = {"user_id": [1], "user_active_degree": ["day_new"]}
    for name in USER_HEADER.split(","):
        if name not in users:
            users[name] = [1.0]
    pq.write_table(pa.table(users), folder / "users.parquet")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user_features_pure.csv", "has no user_features_"),
        ("video_features_basic_pure.csv", "has no video_features_basic_"),
    ],
)
def test_a_missing_file_is_named(tmp_path, name, message):
    folder = write_csv(tmp_path / "raw")
    (folder / name).unlink()
    with pytest.raises(DatasetError, match=f"{message}.*add the missing file"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(tmp_path):
    folder = write_csv(tmp_path / "raw", header=LOG_HEADER.replace("tab", "page"))
    with pytest.raises(DatasetError, match=r"log_standard.*lacks the columns \['tab'\]"):
        prepare(folder, tmp_path / "out")


def test_a_value_that_is_no_number_is_reported(tmp_path):
    broken = exposure(1, 10, 20220426, "yesterday")
    folder = write_csv(tmp_path / "raw", [*LOG, broken])
    with pytest.raises(DatasetError, match=r"cannot be read as CSV.*yesterday"):
        prepare(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("factor", "message"), [(1 / 1000, "looks like seconds"), (1000, "looks like microseconds")]
)
def test_a_wrong_time_unit_is_reported(tmp_path, factor, message):
    log = [exposure(1, 10, 20220425, int(TRAIN * factor)), exposure(1, 10, 20220505, EVAL)]
    folder = write_csv(tmp_path / "raw", log)
    with pytest.raises(DatasetError, match=f"time_ms of log_standard.*{message}"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_milliseconds_in_the_prepared_form_are_reported(tmp_path):
    times = [1_650_700_000_000, 1_650_900_000_000, 1_651_700_000_000]
    folder = write_parquet(tmp_path / "raw", timestamp=times)
    with pytest.raises(DatasetError, match=r"events\.parquet: timestamp .*milliseconds"):
        prepare(folder, tmp_path / "out")


def test_a_log_without_its_last_days_has_no_evaluation(tmp_path):
    folder = write_csv(tmp_path / "raw", LOG[:-1])
    with pytest.raises(DatasetError, match=r"split 'eval' .* holds no impression"):
        prepare(folder, tmp_path / "out")


def test_a_log_without_rows_is_reported(tmp_path):
    folder = write_csv(tmp_path / "raw", [])
    with pytest.raises(DatasetError, match=r"log_standard.* has no rows"):
        prepare(folder, tmp_path / "out")


def test_a_missing_column_of_the_prepared_form_is_named(tmp_path):
    folder = write_parquet(tmp_path / "raw", duration_ms=None)
    with pytest.raises(DatasetError, match=r"events\.parquet lacks the columns \['duration_ms'\]"):
        prepare(folder, tmp_path / "out")
