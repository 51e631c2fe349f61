//! What a broker says it is, and what follows from that.

use amiquip::{AmqpValue, FieldTable};

use crate::output;

/// How much of a broker's product name, and of its version, is shown.
const MAX_CHARS: usize = 30;

/// A broker's own words about itself. It may say anything.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// Such as `RabbitMQ 4.0.5`.
    pub(super) name: String,
    pub(super) ack_timeout: AckTimeout,
}

impl Server {
    pub(super) fn told_by(properties: &FieldTable) -> Self {
        let text = |key: &str| match properties.get(key) {
            Some(AmqpValue::LongString(text)) => {
                output::foreign(text.chars().take(MAX_CHARS).collect::<String>())
            }
            _ => String::new(),
        };
        let (product, version) = (text("product"), text("version"));
        let (product, version) = (product.trim(), version.trim());
        Self {
            name: match product {
                "" => "a broker that does not say which".to_owned(),
                product => format!("{product} {version}").trim_end().to_owned(),
            },
            ack_timeout: AckTimeout::of(product, version),
        }
    }
}

/// How a broker takes back a task that is not acknowledged in time: after 30 minutes, unless it is told otherwise. Where
/// it can be told that has changed with RabbitMQ's versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckTimeout {
    /// In its configuration. It closes the channel then. RabbitMQ before 3.12, and brokers that we know nothing of.
    Configured,
    /// Also for one queue, by a policy or by the queue's argument. RabbitMQ 3.12 to 4.2.
    PerQueue,
    /// By each consumer, which goes before all else; and of quorum queues only. It cancels the consumer then. RabbitMQ
    /// from 4.3 on.
    PerConsumer,
}

impl AckTimeout {
    fn of(product: &str, version: &str) -> Self {
        let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
        match (product, numbers.next().zip(numbers.next())) {
            ("RabbitMQ", Some((4, 3..) | (5.., _))) => Self::PerConsumer,
            ("RabbitMQ", Some((4, _) | (3, 12..))) => Self::PerQueue,
            _ => Self::Configured,
        }
    }

    /// What makes it longer.
    #[must_use]
    pub fn cure(self) -> &'static str {
        match self {
            Self::Configured => "raise consumer_timeout in rabbitmq.conf",
            Self::PerQueue => {
                "raise consumer_timeout in rabbitmq.conf, or for this queue alone by a policy with consumer-timeout"
            }
            Self::PerConsumer => {
                "give the worker a --timeout, and the broker waits for as long as that allows; or raise consumer_timeout \
                 in rabbitmq.conf, or for this queue alone by a policy with consumer-timeout"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(product: Option<&str>, version: Option<&str>) -> Server {
        let pairs = [("product", product), ("version", version)];
        let given = pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())));
        Server::told_by(&given.map(|(key, value)| (key, AmqpValue::LongString(value))).collect())
    }

    #[test]
    fn a_broker_is_what_it_says_in_short_and_harmlessly() {
        let name = |product: Option<&str>, version: Option<&str>| server(product, version).name;
        assert_eq!(name(Some("RabbitMQ"), Some("4.0.5")), "RabbitMQ 4.0.5");
        assert_eq!(name(Some("LavinMQ"), None), "LavinMQ");
        assert_eq!(name(None, Some("1")), "a broker that does not say which");
        assert_eq!(name(Some(" "), None), name(None, None));
        assert_eq!(name(Some("\x1b[2J\n"), Some("1")), "\\x1b[2J\\n 1");
        assert!(name(Some(&"x".repeat(70_000)), Some(&"9".repeat(70_000))).len() <= 2 * MAX_CHARS + 1);
        let other: FieldTable = [("product".to_owned(), AmqpValue::LongInt(7))].into_iter().collect();
        assert_eq!(Server::told_by(&other).name, name(None, None));
    }

    #[test]
    fn how_tasks_are_taken_back_follows_from_the_version() {
        let of = |product, version| server(Some(product), Some(version)).ack_timeout;
        for version in ["3.8.9", "3.10.8", "3.11.28"] {
            assert_eq!(of("RabbitMQ", version), AckTimeout::Configured, "{version}");
        }
        for version in ["3.12.0", "3.13.7", "4.0.5", "4.2.6"] {
            assert_eq!(of("RabbitMQ", version), AckTimeout::PerQueue, "{version}");
        }
        for version in ["4.3.0", "4.3.6", "4.3.0-rc.1", "4.4.0+1.gabcdef", "4.10", "5.0.0"] {
            assert_eq!(of("RabbitMQ", version), AckTimeout::PerConsumer, "{version}");
        }
        for (product, version) in
            [("LavinMQ", "4.3.6"), ("RabbitMQ", ""), ("RabbitMQ", "4"), ("RabbitMQ", "new.4.3")]
        {
            assert_eq!(of(product, version), AckTimeout::Configured, "{product} {version}");
        }
    }
}
