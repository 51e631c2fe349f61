//! taskq as its users see it: the real binary against a real RabbitMQ, one file per behaviour.

// A test that cannot go on has failed: it may say so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod acknowledgement_timeout;
mod bad_input;
mod bulk;
mod bulk_outage;
mod connect;
mod credentials;
mod hostile;
mod interop;
mod pace;
mod properties;
mod redeclare;
mod send;
mod send_refused;
mod soak;
mod staying_up;
mod stop;
mod stop_in_trouble;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
mod no_tls;
mod work;
mod work_limits;
