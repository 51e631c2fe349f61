//! What the tests are made of, one file per job.

pub(crate) mod amqp;
pub(crate) mod broker;
pub(crate) mod cluster;
pub(crate) mod handler;
pub(crate) mod node;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod rng;
pub(crate) mod sandbox;
pub(crate) mod script;
pub(crate) mod user;

pub(crate) use broker::Broker;
pub(crate) use cluster::Cluster;
pub(crate) use node::Node;
pub(crate) use poll::until;
pub(crate) use process::{Finished, Invocation, Process};
pub(crate) use proxy::{Direction, Proxy};
pub(crate) use rng::Rng;
pub(crate) use sandbox::Sandbox;
pub(crate) use user::User;
