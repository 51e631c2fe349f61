use crossbeam_channel::never;

use super::*;

/// An empty directory of the test's own.
pub(super) fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("taskq-unsent-{name}-{:x}", crate::backoff::random()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

const LINES: UnsentForm = UnsentForm { separator: Some(b'\n'), input: None };

fn fingerprint(read: &str) -> FileFingerprint {
    let mut fingerprint = FileFingerprint::default();
    fingerprint.add(read.as_bytes());
    fingerprint
}

/// Saves these after a run that has read all of its input.
fn save(path: &Path, form: &UnsentForm, read: &str, bodies: &[&str]) -> Result<Saved, Unsaved> {
    let mut file = UnsentFile::create(path, form).unwrap();
    for (number, body) in (1..).zip(bodies) {
        file.add(number, body.as_bytes()).unwrap();
    }
    file.finish(Some(fingerprint(read)), &never())
}

#[test]
fn what_an_earlier_run_left_is_kept() {
    let folder = folder("kept");
    let path = folder.join("unsent");
    for bodies in [&["one"][..], &["two"], &[]] {
        assert_eq!(save(&path, &LINES, "", bodies).unwrap(), Saved::InPlace);
    }
    assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    let single = UnsentForm { separator: None, input: None };
    assert!(UnsentFile::create(&path, &single).is_err(), "a body would be put after others");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a temporary file was left");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn an_input_is_replaced_by_what_remains_of_it() {
    let folder = folder("input");
    let path = folder.join("tasks");
    fs::write(&path, "one\ntwo\n").unwrap();
    let form = || UnsentForm { input: InputFile::of(&File::open(&path).unwrap()), ..LINES };
    assert_eq!(save(&path, &form(), "one\ntwo\n", &["two"]).unwrap(), Saved::InPlace);
    assert_eq!(fs::read(&path).unwrap(), b"two\n");
    let mut unfinished = UnsentFile::create(&path, &form()).unwrap();
    unfinished.add(1, b"a part").unwrap();
    assert_eq!(unfinished.finish(None, &never()).unwrap(), Saved::InputLeft);
    assert_eq!(fs::read(&path).unwrap(), b"two\n", "it was replaced by less than what remains");
    save(&path, &form(), "two\n", &[]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a temporary file was left");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_remains_of_an_input_that_was_taken_away_is_saved() {
    let folder = folder("away");
    let path = folder.join("tasks");
    fs::write(&path, "one\ntwo\n").unwrap();
    let form = UnsentForm { input: InputFile::of(&File::open(&path).unwrap()), ..LINES };
    let mut file = UnsentFile::create(&path, &form).unwrap();
    file.add(1, b"one").unwrap();
    fs::write(folder.join("other"), "other\n").unwrap();
    fs::rename(folder.join("other"), &path).unwrap();
    assert_eq!(file.finish(None, &never()).unwrap(), Saved::InPlace);
    assert_eq!(fs::read(&path).unwrap(), b"other\none\n");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_single_body_is_not_put_after_what_has_come_meanwhile() {
    let folder = folder("single");
    let path = folder.join("body");
    let mut file = UnsentFile::create(&path, &UnsentForm { separator: None, input: None }).unwrap();
    file.add(1, b"body").unwrap();
    fs::write(&path, "other").unwrap();
    let unsaved = file.finish(Some(fingerprint("body")), &never()).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"other");
    let Remains::Beside { path, kept: 1 } = &unsaved.remains else { panic!("{unsaved:?}") };
    assert_eq!(fs::read(path).unwrap(), b"body");
    assert!(unsaved.told(1).contains("holds something already"), "{unsaved:?}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_file_is_for_its_owner_only() {
    let folder = folder("mode");
    let path = folder.join("unsent");
    fs::write(&path, "open to all\n").unwrap();
    let mut file = UnsentFile::create(&path, &LINES).unwrap();
    assert_eq!(fs::metadata(&file.temporary).unwrap().mode() & 0o777, 0o600);
    file.add(1, b"secret").unwrap();
    file.finish(None, &never()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_trusted_link_stays_and_its_target_is_written() {
    let folder = folder("links");
    let (target, link) = (folder.join("target"), folder.join("link"));
    fs::write(&target, "one\n").unwrap();
    std::os::unix::fs::symlink("target", &link).unwrap();
    save(&link, &LINES, "", &["two"]).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"one\ntwo\n");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "the link was replaced");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn nothing_is_left_where_nothing_was_added() {
    let folder = folder("nothing");
    save(&folder.join("unsent"), &LINES, "", &[]).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn only_whole_tasks_are_left_of_what_was_written_in_part() {
    assert_eq!(whole_tasks(b"one\ntwo\nth", Some(b'\n')), (2, 8));
    assert_eq!(whole_tasks(b"\n\none", Some(b'\n')), (2, 2));
    assert_eq!(whole_tasks(b"one", Some(b'\n')), (0, 0));
    assert_eq!(whole_tasks(b"one\ntwo\n", None), (0, 0));
}

#[test]
fn what_had_no_room_is_told_by_number() {
    let folder = folder("room");
    let mut file = UnsentFile::create(&folder.join("unsent"), &LINES).unwrap();
    for number in [3, 4] {
        file.add(number, b"first").unwrap();
    }
    file.flush().unwrap();
    for number in [7, 8, 9] {
        file.add(number, b"second").unwrap();
    }
    // The disk has taken a task and a half.
    file.file.write_all(b"second\nsec").unwrap();
    assert!(file.cut(10, io::ErrorKind::StorageFull.into()).is_err());
    let temporary = file.temporary.clone();
    let unsaved = file.give_up(&io::ErrorKind::StorageFull.into());
    assert_eq!(fs::read(&temporary).unwrap(), b"first\nfirst\nsecond\n");
    let beside = Some((temporary, 3));
    assert_eq!(unsaved.remains, Remains::Until { line: 8, beside, input_remains: false });
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_remains_is_told_with_exact_numbers() {
    let path = || PathBuf::from(".unsent.1");
    let told = |remains, unconfirmed| Unsaved { signal: None, why: "full".into(), remains }.told(unconfirmed);
    let beside = |kept| Remains::Beside { path: path(), kept };
    assert_eq!(told(beside(1), 1), "full; it is kept in .unsent.1");
    assert_eq!(told(beside(2), 2), "full; they are kept in .unsent.1");
    assert_eq!(told(beside(2), 3), "full; 2 of them are kept in .unsent.1");
    let until = |kept: u64, input_remains| Remains::Until {
        line: 7,
        beside: (kept > 0).then(|| (path(), kept)),
        input_remains,
    };
    assert_eq!(
        told(until(1, false), 3),
        "full; 1 of them is kept in .unsent.1, 2 are lost: nothing is kept from line 7 on"
    );
    assert_eq!(
        told(until(2, true), 3),
        "full; 2 of them are kept in .unsent.1, 1 is in the input only: nothing is kept from line 7 on"
    );
    assert_eq!(told(until(0, false), 1), "full; nothing is kept, 1 is lost");
    assert_eq!(told(Remains::InputLeft, 3), "full; it was left as it was, the confirmed ones included");
    assert_eq!(told(Remains::Nothing, 0), "full");
}
