//! Which dead tasks are meant by the names that a person gives: a key, an id, or the beginning of either.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::browse::Key;

/// So many tasks that a name may mean are told; of any further ones only that there are some.
const TOLD: usize = 10;
/// What is shorter begins no key: people give short ids, and a key begins with any digits.
const SHORTEST_OF_A_KEY: usize = 4;

/// Names, and the tasks that they may mean as far as is known. What is kept does not grow with the number of tasks.
pub struct Search {
    wanted: BTreeMap<String, Wanted>,
    /// Of the names, in bytes.
    lengths: BTreeSet<usize>,
}

/// How a task goes by a name. One that goes by it in a better way is meant, whatever else begins so. A key comes first: it
/// is not chosen by whoever sends a task, and so nobody can take it away from another task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Beginning,
    Id,
    Key,
}

#[derive(Default)]
struct Wanted {
    by: Option<By>,
    /// All different.
    tasks: Vec<Candidate>,
}

/// A task that a name may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its key.
    pub key: Key,
    /// Its id, which may be empty.
    pub id: String,
}

/// A name that several tasks go by.
#[derive(Debug, PartialEq, Eq)]
pub struct Ambiguous {
    /// As it was given.
    pub name: String,
    /// Some of them.
    pub candidates: Vec<Candidate>,
    /// These are not all.
    pub more: bool,
}

/// Names that mean no task, or no single one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unclear {
    /// Nothing goes by these.
    pub missing: Vec<String>,
    /// Several tasks go by these.
    pub ambiguous: Vec<Ambiguous>,
}

/// How a search ended. All in the order of the names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The keys of the tasks that are meant, and the names by which.
    pub(super) meant: HashMap<Key, Vec<String>>,
    /// Those of these names that only begin an id or a key, and what they were taken for.
    pub(super) taken_for: Vec<(String, Candidate)>,
    pub(super) unclear: Unclear,
}

impl Search {
    /// For these names. An empty one means nothing.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let wanted: BTreeMap<_, _> = names.into_iter().map(|name| (name, Wanted::default())).collect();
        let lengths = wanted.keys().map(String::len).filter(|length| *length > 0).collect();
        Self { wanted, lengths }
    }

    /// One more task. Returns whether some name means this one, as far as is known now.
    pub fn meet(&mut self, id: &str, key: Key) -> bool {
        let digits = key.to_string();
        let mut meant = false;
        for &length in &self.lengths {
            let of_key = digits.get(..length).filter(|_| length >= SHORTEST_OF_A_KEY);
            let by_key =
                of_key.map(|name| (name, if length == digits.len() { By::Key } else { By::Beginning }));
            let by_id =
                id.get(..length).map(|name| (name, if length == id.len() { By::Id } else { By::Beginning }));
            for (name, by) in by_key.into_iter().chain(by_id) {
                if let Some(wanted) = self.wanted.get_mut(name) {
                    meant |= wanted.meet(by, id, key);
                }
            }
        }
        meant
    }

    /// When all tasks were met.
    #[must_use]
    pub fn unclear(self) -> Unclear {
        self.found().unclear
    }

    pub(super) fn found(self) -> Found {
        let mut found = Found::default();
        for (name, Wanted { by, tasks: mut candidates }) in self.wanted {
            let more = candidates.len() > TOLD;
            candidates.truncate(TOLD);
            match candidates.as_slice() {
                [] => found.unclear.missing.push(name),
                [task] => {
                    if by == Some(By::Beginning) {
                        found.taken_for.push((name.clone(), task.clone()));
                    }
                    found.meant.entry(task.key).or_default().push(name);
                }
                _ => found.unclear.ambiguous.push(Ambiguous { name, candidates, more }),
            }
        }
        found
    }
}

impl Wanted {
    fn meet(&mut self, by: By, id: &str, key: Key) -> bool {
        if self.by > Some(by) {
            return false;
        }
        let better = self.by < Some(by);
        if better {
            self.by = Some(by);
            self.tasks.clear();
        }
        if self.tasks.len() <= TOLD && self.tasks.iter().all(|task| task.key != key) {
            self.tasks.push(Candidate { key, id: id.to_owned() });
        }
        better
    }
}

impl Unclear {
    /// All names are clear.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.ambiguous.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Record;

    fn key(n: usize) -> Key {
        Key::of("", &Record::default(), n.to_string().as_bytes())
    }

    /// Tasks with these ids, and the keys 0, 1, ...
    fn search(names: &[&str], ids: &[&str]) -> Found {
        let mut search = Search::new(names.iter().map(|name| (*name).to_owned()));
        for (n, id) in ids.iter().enumerate() {
            search.meet(id, key(n));
        }
        search.found()
    }

    /// Which of these tasks one name means: `Err` with those that it may mean.
    fn meant(name: &str, ids: &[&str]) -> Result<usize, Vec<String>> {
        let found = search(&[name], ids);
        if let Some(key_meant) = found.meant.keys().next() {
            return Ok((0..ids.len()).find(|n| key(*n) == *key_meant).unwrap());
        }
        let candidates = found.unclear.ambiguous.into_iter().flat_map(|ambiguous| ambiguous.candidates);
        Err(candidates.map(|task| task.id).collect())
    }

    #[test]
    fn an_id_or_a_unique_beginning_means_a_task() {
        let ids = ["alpha-1", "alpha-2", "beta", "", "größe"];
        assert_eq!(meant("alpha-2", &ids), Ok(1));
        assert_eq!(meant("b", &ids), Ok(2));
        assert_eq!(meant("gr\u{f6}", &ids), Ok(4));
        assert_eq!(meant("alpha", &ids), Err(vec!["alpha-1".to_owned(), "alpha-2".to_owned()]));
        for name in ["", "gamma", "alpha-10", "lpha", "-", "Beta"] {
            assert_eq!(meant(name, &ids), Err(vec![]), "{name:?}");
        }
    }

    #[test]
    fn a_key_or_a_beginning_of_four_digits_means_a_task() {
        for (n, ids) in [(0, ["", "a\0b"]), (1, ["a\0b", "a\0b"])] {
            let digits = key(n).to_string();
            assert_eq!(meant(&digits, &ids), Ok(n));
            assert_eq!(meant(&digits[..4], &ids), Ok(n));
            assert_eq!(meant(&digits[..3], &ids), Err(vec![]));
            assert_eq!(meant(&format!("{digits}0"), &ids), Err(vec![]));
        }
    }

    #[test]
    fn what_is_whole_goes_before_what_only_begins_so_in_any_order() {
        assert_eq!(meant("id-1", &["id-1", "id-10", "id-11"]), Ok(0));
        assert_eq!(meant("id-1", &["id-11", "id-10", "id-1"]), Ok(2));
        assert_eq!(meant("id-1", &["id-11", "id-1", "id-10", "id-1"]), Err(vec!["id-1".to_owned(); 2]));
    }

    #[test]
    fn no_id_takes_the_key_of_another_task() {
        let (digits, other) = (key(0).to_string(), key(1).to_string());
        assert_eq!(meant(&digits, &["x", &digits]), Ok(0));
        assert_eq!(meant(&other, &[&other, "x"]), Ok(1));
        // It goes by its id where that is nobody's key.
        assert_eq!(meant(&digits, &[&digits]), Ok(0));
    }

    #[test]
    fn twins_are_one_task() {
        let mut search = Search::new(["twin".to_owned(), "tw".to_owned()]);
        let met = [key(7), key(8), key(7)].map(|key| search.meet("twin", key));
        assert_eq!(met, [true, false, false], "only the first one is shown");
        let mut search = Search::new(["twin".to_owned(), "tw".to_owned()]);
        search.meet("twin", key(7));
        search.meet("twin", key(7));
        let found = search.found();
        assert_eq!(found.meant[&key(7)], ["tw", "twin"]);
        assert_eq!(found.taken_for, [("tw".to_owned(), Candidate { key: key(7), id: "twin".to_owned() })]);
        assert!(found.unclear.is_empty());
    }

    #[test]
    fn a_better_task_replaces_what_was_met_before() {
        let mut search = Search::new(["id-1".to_owned()]);
        assert!(search.meet("id-10", key(0)));
        assert!(!search.meet("id-11", key(1)));
        assert!(search.meet("id-1", key(2)));
        assert!(!search.meet("id-12", key(3)));
        assert!(search.unclear().is_empty());
    }

    #[test]
    fn of_many_tasks_some_are_told() {
        let ids = vec!["same"; TOLD];
        let told = |ids: &[&str]| {
            let ambiguous = search(&["same"], ids).unclear.ambiguous.remove(0);
            (ambiguous.candidates.len(), ambiguous.more)
        };
        assert_eq!(told(&ids), (TOLD, false));
        assert_eq!(told(&[&ids[..], &["same"]].concat()), (TOLD, true));
        assert_eq!(told(&ids.repeat(10)), (TOLD, true));
    }
}
