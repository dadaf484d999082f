"""Unfinished trainings are kept while somebody may go on with them, and no longer."""

import os

from tfx_pipeline.runners.old_trainings import remove_old_trainings


def test_the_newest_stay_and_the_others_go_with_a_line(tmp_path):
    names = [f"{number:032x}-{number:08x}" for number in range(5)]
    for age, name in enumerate(names):
        checkpoints = tmp_path / name / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "ckpt-1.index").write_text("")
        # Of the fourth the folder is oldest and the last checkpoint newest.
        os.utime(checkpoints, (1e9 - age, 1e9 - age) if age != 3 else (2e9, 2e9))
        os.utime(tmp_path / name, (1e8, 1e8))
    (tmp_path / "notes").mkdir()
    said = []
    removed = remove_old_trainings(tmp_path, said.append, kept=3)
    assert [each.name for each in removed] == [names[2], names[4]]
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {names[0], names[1], names[3], "notes"}
    assert [line.split(": ")[1] for line in said] == [str(each) for each in removed]
    assert remove_old_trainings(tmp_path, said.append, kept=3) == []


def test_a_key_of_a_training_is_told_from_other_names(tmp_path):
    """What ``run_fn`` names its folder after is what is looked for here."""
    from tfx_pipeline.fingerprint import combine
    from tfx_pipeline.training.run_fn import _progress_folder

    folder = _progress_folder(str(tmp_path / combine("data", "settings")), ["/a/b/data-1"])
    os.makedirs(folder)
    assert [str(each) for each in remove_old_trainings(tmp_path, kept=0)] == [folder]
