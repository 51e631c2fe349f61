//! The flags that name the queue and say what it should be.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{environment, positive_duration};
use crate::broker::{MAX_DELAY, MAX_NAME_BYTES, QueueSpec, QueueType, Role};
use crate::error::{Error, Result};
use crate::report;

/// The queue of RabbitMQ's tutorial.
const DEFAULT_QUEUE: &str = "task_queue";

/// How long failed tasks wait, unless told otherwise.
pub(super) const DEFAULT_BACKOFF: &str = "5s,30s,2m,10m,1h";

/// Which queue.
#[derive(Args)]
pub(super) struct QueueNameArgs {
    /// The queue's name [env: TASKQ_QUEUE] [default: task_queue]
    #[arg(short, long, value_name = "NAME")]
    queue: Option<String>,
}

impl QueueNameArgs {
    fn into_name(self) -> Result<String> {
        let name = self.queue.map_or_else(default_name, Ok)?;
        check_name_of_tasks(&name)?;
        report::about(&name);
        Ok(name)
    }

    /// The queue as it is, whatever it is.
    pub(super) fn into_existing(self) -> Result<QueueSpec> {
        Ok(existing(self.into_name()?))
    }
}

/// Which queues.
#[derive(Args)]
pub(super) struct QueueNamesArgs {
    /// The queue's name; may be repeated [env: TASKQ_QUEUE] [default: task_queue]
    #[arg(short, long, value_name = "NAME")]
    queue: Vec<String>,
}

impl QueueNamesArgs {
    /// The queues as they are, each once.
    pub(super) fn into_existing(self) -> Result<Vec<QueueSpec>> {
        let names = if self.queue.is_empty() { vec![default_name()?] } else { self.queue };
        let mut queues: Vec<QueueSpec> = Vec::with_capacity(names.len());
        for name in names {
            check_name_of_tasks(&name)?;
            if queues.iter().all(|queue| queue.name != name) {
                queues.push(existing(name));
            }
        }
        if let [queue] = queues.as_slice() {
            report::about(&queue.name);
        }
        Ok(queues)
    }
}

fn default_name() -> Result<String> {
    Ok(environment("TASKQ_QUEUE")?.unwrap_or_else(|| DEFAULT_QUEUE.to_owned()))
}

fn existing(name: String) -> QueueSpec {
    QueueSpec { name, role: Role::Tasks, kind: QueueType::Classic, declare: false }
}

fn check_name_of_tasks(name: &str) -> Result<()> {
    // An empty name would make the broker invent one.
    if name.is_empty() {
        return Err(Error::usage("the queue's name is empty"));
    }
    check_name("the queue's name", name)?;
    // RabbitMQ leaves them out where it declares a queue, and not where it routes: what is sent would find no queue.
    if name.contains(['\r', '\n']) {
        return Err(Error::bad_data(
            "the queue's name holds a line break, which RabbitMQ leaves out of the names of queues",
        ));
    }
    Ok(())
}

/// Which queue, and what it should be.
#[derive(Args)]
pub(super) struct QueueArgs {
    #[command(flatten)]
    name: QueueNameArgs,
    /// What to declare the queue as; one that exists is used as it is
    #[arg(long, value_name = "TYPE", value_enum, default_value = "classic")]
    queue_type: KindArg,
    /// Declare nothing: use the queue as it is, without the permission to configure it
    #[arg(long)]
    no_declare: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    Classic,
    Quorum,
}

impl QueueArgs {
    pub(super) fn into_spec(self) -> Result<QueueSpec> {
        let name = self.name.into_name()?;
        let kind = match self.queue_type {
            KindArg::Classic => QueueType::Classic,
            KindArg::Quorum => QueueType::Quorum,
        };
        Ok(QueueSpec { name, role: Role::Tasks, kind, declare: !self.no_declare })
    }
}

/// Names are AMQP short strings; a longer one would cost the connection.
pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::bad_data(format!(
            "{what} has {} bytes; AMQP allows {MAX_NAME_BYTES}",
            name.len()
        )));
    }
    if name.contains('\0') {
        return Err(Error::bad_data(format!("{what} holds a NUL")));
    }
    Ok(())
}

/// For clap: how long a task may wait in a delay queue.
pub(super) fn delay(text: &str) -> std::result::Result<Duration, String> {
    let delay = positive_duration(text.trim())?;
    if delay > MAX_DELAY {
        let days = MAX_DELAY.as_secs() / (24 * 60 * 60);
        return Err(format!("longer than {days} days, which is what the broker's timers leave room for"));
    }
    Ok(delay)
}
