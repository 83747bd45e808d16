from pathlib import Path

import pytest

from polysem.data.scenes import CONCEPTS
from polysem.data.shipped import shipped_names
from polysem.describe.vocabulary import load_vocabulary
from polysem.errors import DataError, MissingError


@pytest.mark.parametrize("name", shipped_names("concepts", ".csv"))
def test_the_lists_that_ship_are_clean(name: str) -> None:
    vocabulary = load_vocabulary(name)
    assert vocabulary.notes == ()
    assert all(concept == concept.strip() for concept in vocabulary.concepts)


def test_their_sizes() -> None:
    sizes = {name: len(load_vocabulary(name)) for name in shipped_names("concepts", ".csv")}
    assert sizes["common"] > 3000
    assert sizes["dermatology"] > 200
    assert set(sizes) == {"common", "dermatology", "shapes"}


def test_the_words_of_drawn_images_are_those_that_they_are_drawn_from() -> None:
    words = {w for concept in load_vocabulary("shapes").concepts for w in concept.split()}
    assert words == {w for names in CONCEPTS.values() for w in names} | {"background"}


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("red  circle\n\n dog\nDog\n\nÉclair\n", encoding="utf-8")
    vocabulary = load_vocabulary(file)
    assert vocabulary.concepts == ("red circle", "dog", "Éclair")
    blank, repeated = vocabulary.notes
    assert blank == f"{file}: 2 blank lines left out"
    assert repeated == f"{file}: 1 repeated concept left out: 'Dog'"


def test_a_csv_gives_its_column(tmp_path: Path) -> None:
    file = tmp_path / "words.csv"
    file.write_text('\ufeffkind,Concept\nanimal,"cat, wild"\nanimal\n', encoding="utf-8")
    assert load_vocabulary(file).concepts == ("cat, wild",)
    file.write_text("cat\ndog\n", encoding="utf-8")
    assert load_vocabulary(file).concepts == ("cat", "dog")
    file.write_text("word,kind\ncat,animal\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'concept'; it has word, kind"):
        load_vocabulary(file)


def test_the_fingerprint_is_that_of_the_concepts_in_order(tmp_path: Path) -> None:
    prints = set()
    for number, text in enumerate(["a\nb\n", "\na\nb", "b\na\n"]):
        file = tmp_path / f"{number}.txt"
        file.write_text(text, encoding="utf-8")
        prints.add(load_vocabulary(file).fingerprint)
    assert len(prints) == 2


def test_bad_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(b"cat\nd\xe9g\n")
    with pytest.raises(DataError, match=r"not UTF-8 text: line 2 holds the byte 0xe9"):
        load_vocabulary(file)
    file.write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no concept"):
        load_vocabulary(file)
    broken = tmp_path / "words.csv"
    broken.write_text('concept\n"cat\n', encoding="utf-8")
    with pytest.raises(DataError, match="not a CSV file"):
        load_vocabulary(broken)
    with pytest.raises(MissingError, match=r"no vocabulary 'comon'; did you mean 'common'\?"):
        load_vocabulary("comon")
    with pytest.raises(MissingError, match="lists that ship: common, dermatology, shapes"):
        load_vocabulary(tmp_path)


def test_columns_that_are_no_words_are_told_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "words.csv"
    file.write_text('a,"b\nc"\n1,2\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_vocabulary(file)
    assert str(caught.value).endswith("has no column 'concept'; it has a, b c")
