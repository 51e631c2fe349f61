//! The check of a round's history: every confirmed task is done, dead or still queued, and a fault explains every extra
//! run.

use super::explain::{Explainer, Explanation};
use super::fault::Fault;
use super::record::{Action, Confirmed, Outcome, Remaining, Run, Session};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All that was recorded in a round.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) sessions: Vec<Session>,
    pub(crate) confirmed: Vec<Confirmed>,
    pub(crate) runs: Vec<Run>,
    pub(crate) dead: Vec<Remaining>,
    pub(crate) queued: Vec<Remaining>,
    pub(crate) faults: Vec<Fault>,
    /// The workers' `--attempts`.
    pub(crate) attempts: u32,
}

/// A run beyond those that were due, and the fault that explains it.
pub(crate) struct ExtraRun {
    pub(crate) run: Run,
    /// None when no fault in the history explains it.
    pub(crate) explanation: Option<Explanation>,
}

#[derive(Default)]
pub(crate) struct CheckResult {
    pub(crate) confirmed: usize,
    pub(crate) done: usize,
    pub(crate) dead: usize,
    pub(crate) queued: usize,
    /// Tasks that arrived although their sender did not print their id: it was killed, or gave up.
    pub(crate) unconfirmed: usize,
    pub(crate) done_twice: usize,
    pub(crate) extra_runs: Vec<ExtraRun>,
    /// The rules that were broken, a line each, the task's id first.
    pub(crate) violations: Vec<String>,
}

/// All that was recorded about one task.
#[derive(Default)]
struct TaskHistory<'b> {
    confirmed: Option<&'b Confirmed>,
    runs: Vec<&'b Run>,
    dead: Vec<&'b Remaining>,
    queued: Vec<&'b Remaining>,
}

impl TaskHistory<'_> {
    fn session(&self) -> Option<&str> {
        let run = self.runs.iter().map(|run| &run.body);
        let remaining = self.dead.iter().chain(&self.queued).map(|remaining| &remaining.body);
        run.chain(remaining).next().map(|body| body.session.as_str())
    }

    fn count(&self, wanted: impl Fn(&Run) -> bool) -> usize {
        self.runs.iter().filter(|run| wanted(run)).count()
    }
}

impl History {
    pub(crate) fn check(&self) -> CheckResult {
        let sessions: HashMap<&str, &Session> =
            self.sessions.iter().map(|session| (session.name.as_str(), session)).collect();
        let mut result = CheckResult::default();
        for (id, task) in self.tasks() {
            result.count(&task);
            let session = task.session().and_then(|name| sessions.get(name).copied());
            let explainer = Explainer {
                runs: &task.runs,
                confirmed: task.confirmed.map(|confirmed| confirmed.at),
                delayed: session.is_some_and(|session| session.delayed),
                faults: &self.faults,
            };
            if let Err(what) = self.check_task(&task, session, &explainer) {
                result.violations.push(format!("{id}: {what}"));
            }
            for run in explainer.extra_runs() {
                let explanation = explainer.explain(run);
                if explanation.is_none() {
                    result.violations.push(format!("{id}: no fault explains this run: {run}"));
                }
                result.extra_runs.push(ExtraRun { run: run.clone(), explanation });
            }
        }
        result
    }

    fn tasks(&self) -> BTreeMap<&str, TaskHistory<'_>> {
        let mut tasks = BTreeMap::<&str, TaskHistory<'_>>::new();
        for confirmed in &self.confirmed {
            tasks.entry(&confirmed.task).or_default().confirmed = Some(confirmed);
        }
        // A truncated run does not know its task.
        for run in self.runs.iter().filter(|run| run.outcome != Outcome::Truncated) {
            tasks.entry(&run.task).or_default().runs.push(run);
        }
        for remaining in &self.dead {
            tasks.entry(&remaining.task).or_default().dead.push(remaining);
        }
        for remaining in &self.queued {
            tasks.entry(&remaining.task).or_default().queued.push(remaining);
        }
        for task in tasks.values_mut() {
            task.runs.sort_by_key(|run| (run.start, run.end));
        }
        tasks
    }

    /// Checks everything about a task except its extra runs.
    fn check_task(
        &self,
        task: &TaskHistory<'_>,
        session: Option<&Session>,
        explainer: &Explainer<'_>,
    ) -> Result<(), String> {
        let done = task.count(|run| run.outcome == Outcome::Done);
        if task.confirmed.is_some() && done + task.dead.len() + task.queued.len() == 0 {
            return Err(format!("lost: confirmed, and neither done nor dead nor queued; {}", describe(task)));
        }
        if task.confirmed.is_none() && session.is_none_or(|session| session.succeeded) {
            return Err(format!("its id was not printed, and its sender exited with 0; {}", describe(task)));
        }
        let bodies: BTreeSet<String> = task.runs.iter().map(|run| run.body.to_string()).collect();
        if bodies.len() > 1 {
            return Err(format!("came with different bodies: {bodies:?}"));
        }
        self.check_end(task, done, explainer)
    }

    /// Checks that a task has ended as its action says: done, or dead after its last attempt.
    fn check_end(
        &self,
        task: &TaskHistory<'_>,
        done: usize,
        explainer: &Explainer<'_>,
    ) -> Result<(), String> {
        let may_be_dead =
            |remaining: &&Remaining| matches!(remaining.body.action(), Action::Fail | Action::Refuse);
        if let Some(remaining) = task.dead.iter().find(|remaining| !may_be_dead(remaining)) {
            return Err(format!("dead, and should not be: {}; {}", remaining.body, describe(task)));
        }
        let is_last = |run: &Run| match run.outcome {
            Outcome::Refused => true,
            Outcome::Failed | Outcome::Hung => run.attempt >= self.attempts,
            Outcome::Done | Outcome::Truncated => false,
        };
        let last_attempts = task.count(is_last);
        let maybe_copied_twice = task.count(|run| is_last(run) && explainer.may_be_copied_twice(run));
        if task.dead.len() > last_attempts + maybe_copied_twice {
            return Err(format!(
                "dead {} times after {last_attempts} last attempts, {maybe_copied_twice} of them with a later fault; {}",
                task.dead.len(),
                describe(task)
            ));
        }
        if done > 0 && !task.dead.is_empty() {
            return Err(format!("both done and dead; {}", describe(task)));
        }
        Ok(())
    }
}

fn describe(task: &TaskHistory<'_>) -> String {
    let confirmed = task.confirmed.map(|c| format!("confirmed {} by {}", c.at, c.session));
    let runs = task.runs.iter().map(ToString::to_string);
    let dead = task.dead.iter().map(|remaining| format!("dead at attempt {}", remaining.attempt));
    let queued = task.queued.iter().map(|remaining| format!("queued for attempt {}", remaining.attempt));
    confirmed.into_iter().chain(runs).chain(dead).chain(queued).collect::<Vec<_>>().join("; ")
}

impl CheckResult {
    fn count(&mut self, task: &TaskHistory<'_>) {
        let done = task.count(|run| run.outcome == Outcome::Done);
        self.done_twice += usize::from(done > 1);
        if task.confirmed.is_none() {
            self.unconfirmed += 1;
            return;
        }
        self.confirmed += 1;
        // Each once: what is done counts as done, though a copy of it may still wait.
        match (done, task.dead.len(), task.queued.len()) {
            (1.., _, _) => self.done += 1,
            (_, 1.., _) => self.dead += 1,
            (_, _, 1..) => self.queued += 1,
            (0, 0, 0) => {}
        }
    }

    pub(crate) fn explained(&self) -> impl Iterator<Item = &Explanation> {
        self.extra_runs.iter().filter_map(|extra| extra.explanation.as_ref())
    }
}
