//! Everything that talks to RabbitMQ. Nothing outside this folder calls amiquip, and in here its hazards are
//! contained: it has no deadlines of its own (`watchdog`), trusts whatever the peer sends (`frames`), and ends a
//! whole connection over a consumer dropped at the wrong moment (`channel`). docs/amiquip.md lists them all.

mod accounts;
mod channel;
mod confirms;
mod consumer;
mod contents;
mod count;
mod dead_lettering;
mod deliveries;
mod dial;
mod fault;
mod frames;
mod handover;
mod headers;
mod line;
mod link;
mod message;
mod methods;
mod outgoing;
mod publisher;
mod sanitize;
mod server;
mod session;
mod socket;
#[cfg(test)]
pub mod testing;
mod tls;
mod topology;
mod url;
mod url_list;
mod violation;
mod watch;
mod watchdog;

pub use channel::Channel;
pub use confirms::Settlement;
pub use consumer::Consumer;
pub use count::{Count, count_answered, count_messages, is_a_stream, is_seen, purge};
pub use dead_lettering::DeadLettering;
pub use deliveries::{ConsumeOptions, Deliveries, Delivery, DeliveryChannel, Message, Next, Watch, ack_all};
pub use fault::{Fault, FaultKind, Scope};
pub use headers::Record;
pub use link::{Link, on_a_thread};
pub use message::{Body, CopyForm, MAX_NAME_BYTES, Properties};
pub use publisher::{Opener, Publisher, Publishing, Wake};
pub use server::AckTimeout;
pub use session::{ConnectionPurpose, Session, SessionOptions, host_name};
pub use tls::TlsFiles;
pub use topology::{MAX_DELAY, QueueSpec, QueueType, Role, ensure_queue, find_again, kind_of};
pub use url::BrokerUrl;
pub use url_list::UrlList;
pub use watch::DelayWatch;
