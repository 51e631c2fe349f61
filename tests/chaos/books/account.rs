//! The balance of a run: every confirmed task is done, dead or still queued, and every run too many has its fault.

use super::explain::{Cause, Evidence};
use super::record::{Confirmed, Errand, Left, Outcome, Run, Session};
use super::strike::Strike;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All that a run left behind.
#[derive(Default)]
pub(crate) struct Books {
    pub(crate) sessions: Vec<Session>,
    pub(crate) confirmed: Vec<Confirmed>,
    pub(crate) runs: Vec<Run>,
    pub(crate) dead: Vec<Left>,
    pub(crate) queued: Vec<Left>,
    pub(crate) strikes: Vec<Strike>,
    /// What `--attempts` said.
    pub(crate) attempts: u32,
}

/// A run that nobody asked for, and the fault that it is put down to.
pub(crate) struct Repeat {
    pub(crate) run: Run,
    /// None when the books have no fault for it.
    pub(crate) cause: Option<Cause>,
}

#[derive(Default)]
pub(crate) struct Account {
    pub(crate) confirmed: usize,
    pub(crate) done: usize,
    pub(crate) dead: usize,
    pub(crate) queued: usize,
    /// Tasks that came although their sender did not print their id: it was killed, or gave up.
    pub(crate) unconfirmed: usize,
    pub(crate) done_twice: usize,
    pub(crate) repeats: Vec<Repeat>,
    /// What must not be, a line each, the task's id first.
    pub(crate) wrong: Vec<String>,
}

/// Everything about one task.
#[derive(Default)]
struct Story<'b> {
    confirmed: Option<&'b Confirmed>,
    runs: Vec<&'b Run>,
    dead: Vec<&'b Left>,
    queued: Vec<&'b Left>,
}

impl Story<'_> {
    fn session(&self) -> Option<&str> {
        let run = self.runs.iter().map(|run| &run.body);
        let left = self.dead.iter().chain(&self.queued).map(|left| &left.body);
        run.chain(left).next().map(|body| body.session.as_str())
    }

    fn count(&self, wanted: impl Fn(&Run) -> bool) -> usize {
        self.runs.iter().filter(|run| wanted(run)).count()
    }
}

impl Books {
    pub(crate) fn settle(&self) -> Account {
        let sessions: HashMap<&str, &Session> =
            self.sessions.iter().map(|session| (session.name.as_str(), session)).collect();
        let mut account = Account::default();
        for (task, story) in self.stories() {
            account.count(&story);
            let session = story.session().and_then(|name| sessions.get(name).copied());
            if let Err(what) = self.find_fault(&story, session) {
                account.wrong.push(format!("{task}: {what}"));
            }
            let evidence = Evidence {
                runs: &story.runs,
                confirmed: story.confirmed.map(|confirmed| confirmed.at),
                delayed: session.is_some_and(|session| session.delayed),
                strikes: &self.strikes,
            };
            for run in evidence.repeats() {
                let cause = evidence.explain(run);
                if cause.is_none() {
                    account.wrong.push(format!("{task}: no fault explains this run: {run}"));
                }
                account.repeats.push(Repeat { run: run.clone(), cause });
            }
        }
        account
    }

    fn stories(&self) -> BTreeMap<&str, Story<'_>> {
        let mut stories = BTreeMap::<&str, Story<'_>>::new();
        for confirmed in &self.confirmed {
            stories.entry(&confirmed.task).or_default().confirmed = Some(confirmed);
        }
        // The body is unknown to a run that got no whole one, and it is not the task's fault.
        for run in self.runs.iter().filter(|run| run.outcome != Outcome::Truncated) {
            stories.entry(&run.task).or_default().runs.push(run);
        }
        for left in &self.dead {
            stories.entry(&left.task).or_default().dead.push(left);
        }
        for left in &self.queued {
            stories.entry(&left.task).or_default().queued.push(left);
        }
        for story in stories.values_mut() {
            story.runs.sort_by_key(|run| (run.start, run.end));
        }
        stories
    }

    /// What is wrong with a task, its repeats aside.
    fn find_fault(&self, story: &Story<'_>, session: Option<&Session>) -> Result<(), String> {
        let done = story.count(|run| run.outcome == Outcome::Done);
        if story.confirmed.is_some() && done + story.dead.len() + story.queued.len() == 0 {
            return Err(format!("lost: confirmed, and neither done nor dead nor queued; {}", told(story)));
        }
        if story.confirmed.is_none() && session.is_none_or(|session| session.succeeded) {
            return Err(format!("its id was not printed, and its sender exited with 0; {}", told(story)));
        }
        let bodies: BTreeSet<String> = story.runs.iter().map(|run| run.body.to_string()).collect();
        if bodies.len() > 1 {
            return Err(format!("came with different bodies: {bodies:?}"));
        }
        self.find_wrong_end(story, done)
    }

    /// A task ends as its errand says: done, or dead after all its attempts and not before.
    fn find_wrong_end(&self, story: &Story<'_>, done: usize) -> Result<(), String> {
        let mortal = |left: &&Left| matches!(left.body.errand(), Errand::Fail | Errand::Refuse);
        if let Some(left) = story.dead.iter().find(|left| !mortal(left)) {
            return Err(format!("dead, and should not be: {}; {}", left.body, told(story)));
        }
        let fatal = story.count(|run| match run.outcome {
            Outcome::Refused => true,
            Outcome::Failed | Outcome::Hung => run.attempt >= self.attempts,
            Outcome::Done | Outcome::Truncated => false,
        });
        // The broker may take the copy of a dead task and lose its confirm with the connection. The worker remembers how the
        // task ended, and copies it again without running it.
        if story.dead.len() > 2 * fatal {
            return Err(format!(
                "dead {} times after {fatal} last attempts; {}",
                story.dead.len(),
                told(story)
            ));
        }
        if done > 0 && !story.dead.is_empty() {
            return Err(format!("both done and dead; {}", told(story)));
        }
        Ok(())
    }
}

fn told(story: &Story<'_>) -> String {
    let confirmed = story.confirmed.map(|c| format!("confirmed {} by {}", c.at, c.session));
    let runs = story.runs.iter().map(ToString::to_string);
    let dead = story.dead.iter().map(|left| format!("dead at attempt {}", left.attempt));
    let queued = story.queued.iter().map(|left| format!("queued for attempt {}", left.attempt));
    confirmed.into_iter().chain(runs).chain(dead).chain(queued).collect::<Vec<_>>().join("; ")
}

impl Account {
    fn count(&mut self, story: &Story<'_>) {
        let done = story.count(|run| run.outcome == Outcome::Done);
        self.done_twice += usize::from(done > 1);
        if story.confirmed.is_none() {
            self.unconfirmed += 1;
            return;
        }
        self.confirmed += 1;
        // Each once: what is done counts as done, though a copy of it may still wait.
        match (done, story.dead.len(), story.queued.len()) {
            (1.., _, _) => self.done += 1,
            (_, 1.., _) => self.dead += 1,
            (_, _, 1..) => self.queued += 1,
            (0, 0, 0) => {}
        }
    }

    pub(crate) fn explained(&self) -> impl Iterator<Item = &Cause> {
        self.repeats.iter().filter_map(|repeat| repeat.cause.as_ref())
    }
}
