//! One file per behaviour, in the order of a task's life. In a folder of their own, so that cargo builds one test
//! program and not one of each.

mod brokers;
mod connect;
mod credentials;
mod foreign_headers;
mod hostile;
mod hostile_floods;
mod hostile_words;
#[cfg(not(feature = "tls"))]
mod no_tls;
mod peek;
mod permissions;
#[cfg(feature = "tls")]
mod tls;

mod alarms;
mod bad_input;
mod broker_version;
mod bulk;
mod bulk_outage;
mod pace;
mod properties;
mod redeclare;
mod redeclare_bulk;
mod redeclare_midway;
mod send;
mod send_access_revoked;
mod send_refused;
mod unanswered;
mod unsent;
mod unsent_shared;
mod vanished;

mod acknowledgement_timeout;
mod cluster;
mod network;
mod network_slow;
mod shortage;
mod soak;
mod staying_up;
mod stop;
mod stop_in_trouble;
mod stuck_output;
mod until_done;
mod work;
mod work_limits;

mod command;
mod command_exit;
mod command_output;
mod command_output_lost;
mod command_stop;
mod example_handlers;
mod output_files;
mod output_tag;
mod persistent;

mod copies_refused;
mod copy_forms;
mod dead;
mod dead_filters;
mod dead_lettered;
mod dead_names;
mod dead_quorum;
mod dead_rate;
mod delay;
mod delivery_limit;
mod poison;
mod retry;
mod retry_flags;
mod retry_soak;
mod status;

mod inherited;
mod interop;
mod json_lines;
mod limits;
mod log_format;
mod messages;

mod makefile;
mod readme;

mod chaos_checker;
