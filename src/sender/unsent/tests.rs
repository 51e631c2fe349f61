use crossbeam_channel::never;

use super::*;

/// An empty directory of the test's own.
pub(super) fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("taskq-unsent-{name}-{:x}", crate::backoff::random()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

const LINES: UnsentForm = UnsentForm { separator: Some(b'\n'), input: None };

fn fingerprint(read: &str) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    fingerprint.add(read.as_bytes());
    fingerprint
}

/// Saves these after a run that has read all of its input.
fn save(path: &Path, form: &UnsentForm, read: &str, bodies: &[&str]) -> Result<Saved, Unsaved> {
    let mut file = UnsentFile::create(path, form).unwrap();
    for body in bodies {
        file.add(body.as_bytes()).unwrap();
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
    unfinished.add(b"a part").unwrap();
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
    file.add(b"one").unwrap();
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
    file.add(b"body").unwrap();
    fs::write(&path, "other").unwrap();
    let unsaved = file.finish(Some(fingerprint("body")), &never()).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"other");
    assert_eq!(fs::read(unsaved.kept.as_ref().unwrap()).unwrap(), b"body");
    assert!(unsaved.to_string().contains("holds something already"), "{unsaved}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_file_is_for_its_owner_only() {
    let folder = folder("mode");
    let path = folder.join("unsent");
    fs::write(&path, "open to all\n").unwrap();
    let mut file = UnsentFile::create(&path, &LINES).unwrap();
    assert_eq!(fs::metadata(&file.temporary).unwrap().mode() & 0o777, 0o600);
    file.add(b"secret").unwrap();
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
    assert_eq!(whole_tasks(b"one\ntwo\nth", Some(b'\n')), 8);
    assert_eq!(whole_tasks(b"one", Some(b'\n')), 0);
    assert_eq!(whole_tasks(b"one\ntwo\n", None), 0);
}
