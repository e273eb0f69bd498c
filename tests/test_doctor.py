"""What the doctor finds."""
import shutil

from ppssl import doctor
from tests.pictures import image_folder


def test_a_sound_place_has_no_problems(tmp_path, capsys):
    data = image_folder(tmp_path / "data")
    assert doctor.main(["--data_path", str(data), "--output_dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "train: 16 images in 2 classes" in said and "everything is in order" in said and "WRONG" not in said


def test_every_problem_of_a_data_set_is_named(tmp_path, capsys):
    data = image_folder(tmp_path / "data")
    shutil.move(data / "val" / "class1", data / "val" / "klass1")
    (data / "train" / "class0" / "0.png").write_bytes(b"")
    (tmp_path / "file").touch()
    assert doctor.main(["--data_path", str(data), "--output_dir", str(tmp_path / "file" / "out")]) == 1
    said = capsys.readouterr().out
    assert said.count("[WRONG]") == 3 and "other classes" in said and "0.png" in said and "cannot be written" in said


def test_a_missing_split_is_a_problem(tmp_path, capsys):
    data = image_folder(tmp_path / "data", splits=("train",))
    assert doctor.main(["--data_path", str(data), "--output_dir", str(tmp_path / "out")]) == 1
    assert "[WRONG] val:" in capsys.readouterr().out
