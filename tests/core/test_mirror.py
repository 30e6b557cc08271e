"""A run's folder kept at an address: what is copied and fetched when, and what a copy that was cut off costs."""

from __future__ import annotations

import json
from threading import Event

import pytest
from store import registered

from mfm_core.errors import UserError
from mfm_core.mirror import BEFORE, LISTS, Mirror, checked

ADDRESS = "store://runs/one"
CHECKPOINT = "checkpoints/checkpoint_epoch_00001.pyth"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "here"))
    return registered(tmp_path / "store", monkeypatch)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Calls from then on come from a machine that has nothing yet."""
    return lambda: monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "elsewhere"))


def filled(**files: str) -> Mirror:
    mirror = Mirror(ADDRESS)
    mirror.fetch()
    write(mirror, **files)
    return mirror


def write(mirror: Mirror, **files: str) -> None:
    for name, text in files.items():
        path = mirror.folder / {"checkpoint": CHECKPOINT, "log": "log.jsonl"}.get(name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def listed(store) -> dict[str, int]:
    places = [place for name in LISTS if (place := store.place(f"{ADDRESS}/{name}")).is_file()]
    return max((json.loads(place.read_text()) for place in places), key=lambda found: found["number"])["files"]


def ended(address: str) -> str:
    """The name, "list" for either list."""
    name = address.removeprefix(f"{ADDRESS}/")
    return "list" if name in LISTS else name


def test_another_machine_gets_all_that_was_copied(store, elsewhere):
    mirror = filled(checkpoint="weights", log="lines")
    write(mirror, **{".checkpoint_epoch_00002.pyth.tmp": "half"})
    mirror.push()
    assert listed(store) == {CHECKPOINT: 7, "log.jsonl": 5}
    assert list(map(ended, store.written)) == [CHECKPOINT, "log.jsonl", "list"], "weights first, list last"
    elsewhere()
    other = filled()
    assert other.folder != mirror.folder
    assert (other.folder / CHECKPOINT).read_text() == "weights" and (other.folder / "log.jsonl").read_text() == "lines"


def test_only_what_changed_is_copied_and_what_is_gone_is_removed(store):
    mirror = filled(checkpoint="weights", log="lines")
    mirror.push()
    store.written.clear()
    write(mirror, log="more lines")
    (mirror.folder / CHECKPOINT).rename(mirror.folder / "checkpoints" / "checkpoint_epoch_00002.pyth")
    mirror.push()
    new = CHECKPOINT.replace("1.", "2.")
    assert list(map(ended, store.written)) == [new, "log.jsonl", "list"]
    assert listed(store).keys() == {new, "log.jsonl"} and not store.place(f"{ADDRESS}/{CHECKPOINT}").exists()


def test_a_start_removes_nothing(store):
    """What is missing before this process has written a list went by another's hands."""
    filled(checkpoint="weights", log="lines").push()
    again = filled()
    (again.folder / CHECKPOINT).unlink()
    again.push()
    assert store.place(f"{ADDRESS}/{CHECKPOINT}").exists()
    (again.folder / "log.jsonl").unlink()
    again.push()
    assert not store.place(f"{ADDRESS}/log.jsonl").exists(), "later copies do"


def test_the_machine_that_copied_last_fetches_nothing(store):
    filled(checkpoint="weights").push()
    write(Mirror(ADDRESS), log="written after the last copy")
    store.written.clear()
    again = filled()
    assert (again.folder / "log.jsonl").exists() and set(map(ended, store.read)) == {"list"}
    again.push()
    assert list(map(ended, store.written)) == ["log.jsonl", "list"]


def test_what_another_machine_wrote_since_counts(store, elsewhere, tmp_path, monkeypatch):
    first = filled(checkpoint="weights", log="lines")
    first.push()
    elsewhere()
    other = filled(log="longer lines")
    other.push()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "here"))
    write(first, stale="of nobody's interest")
    back = filled()
    assert (back.folder / "log.jsonl").read_text() == "longer lines" and not (back.folder / "stale").exists()
    assert (back.folder.with_name(back.folder.name + BEFORE) / "stale").exists(), "what only lies here is not lost"


@pytest.mark.parametrize("cut", [CHECKPOINT, "log.jsonl", "list"])
def test_a_copy_that_was_cut_off(cut, store, elsewhere, monkeypatch):
    """A later copy that ended at any file leaves the earlier checkpoint to whoever fetches."""
    mirror = filled(checkpoint="weights", log="lines")
    mirror.push()
    write(mirror, log="more lines", **{"checkpoints/checkpoint_epoch_00002.pyth": "newer"})
    write_out = mirror._write

    def dies(name, path):
        if ended(f"{ADDRESS}/{name}") == cut:
            raise KeyboardInterrupt
        write_out(name, path)

    monkeypatch.setattr(mirror, "_write", dies)
    if cut == CHECKPOINT:
        write(mirror, checkpoint="weights again")
        store.place(f"{ADDRESS}/{CHECKPOINT}").write_text("wei")  # a store that does not write whole files
    with pytest.raises(KeyboardInterrupt):
        mirror.push()
    elsewhere()
    found = filled()
    assert (found.folder / CHECKPOINT).exists() == (cut != CHECKPOINT), "torn ones are left out"
    assert not (found.folder / "checkpoints" / "checkpoint_epoch_00002.pyth").exists(), "and unlisted ones"
    assert (found.folder / "log.jsonl").exists()


@pytest.mark.parametrize("arrives", [False, True])
def test_the_machine_whose_list_was_cut_off_keeps_what_it_has(arrives, store, monkeypatch):
    """Whether the new list got to the address before the end, or did not."""
    mirror = filled(checkpoint="weights")
    mirror.push()
    newer = CHECKPOINT.replace("1.", "2.")
    write(mirror, **{newer: "newer"})
    write_out = mirror._write

    def dies(name, path):
        if name in LISTS:
            if arrives:
                write_out(name, path)
            raise ConnectionError("no more room")
        write_out(name, path)

    monkeypatch.setattr(mirror, "_write", dies)
    with pytest.raises(UserError, match="what the run has lies in"):
        mirror.push()
    store.written.clear()
    again = filled()
    assert (again.folder / newer).read_text() == "newer"
    again.push()
    assert list(map(ended, store.written)) == ["list"] and newer in listed(store)


def test_training_does_not_wait_for_a_copy(store, monkeypatch):
    """What is due meanwhile is left to the next; an old checkpoint that is removed meanwhile harms nobody."""
    mirror, old = filled(checkpoint="weights", log="lines"), CHECKPOINT.replace("1.", "0.")
    write(mirror, **{old: "old"})
    begun, goes_on, write_out = Event(), Event(), mirror._write

    def slow(name, source):
        begun.set()
        assert goes_on.wait(60)
        write_out(name, source)

    monkeypatch.setattr(mirror, "_write", slow)
    mirror.start_push()
    assert begun.wait(60)
    newer = CHECKPOINT.replace("1.", "2.")
    write(mirror, **{newer: "newer"})
    mirror.start_push()
    assert store.written == []
    (mirror.folder / CHECKPOINT).unlink()
    goes_on.set()
    mirror._under_way.result()
    assert listed(store).keys() == {old, "log.jsonl"}
    mirror.push()
    assert listed(store).keys() == {old, newer, "log.jsonl"}


def test_a_copy_that_failed_meanwhile_is_said_with_the_next(store):
    mirror = filled(checkpoint="weights")
    store.full = True
    mirror.start_push()
    assert mirror._under_way.exception() is not None
    store.full = False
    with pytest.raises(UserError, match="the store is closed"):
        mirror.start_push()
    mirror._under_way.result()
    mirror.start_push()
    assert listed(store).keys() == {CHECKPOINT}


def test_a_torn_list_leaves_the_one_before(store, elsewhere):
    mirror = filled(checkpoint="weights")
    for text in ("one", "two", "three"):
        write(mirror, log=text)
        mirror.push()
        newest = store.place(store.written[-1])
    newest.write_text(newest.read_text()[:30])
    elsewhere()
    assert (filled().folder / CHECKPOINT).read_text() == "weights"


def test_a_folder_whose_address_was_emptied_starts_afresh(store):
    mirror = filled(checkpoint="weights")
    mirror.push()
    for name in LISTS:
        store.place(f"{ADDRESS}/{name}").unlink(missing_ok=True)
    assert not (filled().folder / CHECKPOINT).exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "..\\x"])
def test_lists_of_strangers_stay_inside(name, store):
    with pytest.raises(UserError, match="outside"):
        checked(name)
    place = store.place(f"{ADDRESS}/{LISTS[0]}")
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"number": 2, "mark": "x", "files": {name: 1}}))
    with pytest.raises(UserError, match="outside"):
        Mirror(ADDRESS).fetch()


def test_what_cannot_be_written_or_read(store, monkeypatch, site):
    mirror = filled(checkpoint="weights")
    store.full = True
    with pytest.raises(UserError, match=r"OUTPUT_DIR: store://runs/one cannot be written \(the store is closed\)"):
        mirror.push()
    store.full = False
    mirror.push()
    assert CHECKPOINT in listed(store)
    with pytest.raises(UserError, match="no handler for manifold://"):
        Mirror("manifold://runs/one")
    with pytest.raises(UserError, match="OUTPUT_DIR is http.* a web server cannot be written to"):
        Mirror(f"{site.address}/run")
