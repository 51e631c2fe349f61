//! One file per behaviour, in the order of a task's life. In a folder of their own, so that cargo builds one test
//! program and not one of each.

mod connect;
mod credentials;
mod hostile;
#[cfg(not(feature = "tls"))]
mod no_tls;
#[cfg(feature = "tls")]
mod tls;

mod bad_input;
mod bulk;
mod bulk_outage;
mod pace;
mod properties;
mod redeclare;
mod send;
mod send_refused;

mod acknowledgement_timeout;
mod soak;
mod staying_up;
mod stop;
mod stop_in_trouble;
mod work;
mod work_limits;

mod interop;
