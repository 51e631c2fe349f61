//! A queue's arguments: those to declare it with, and what the broker says about those of a queue that is there.

use std::collections::BTreeMap;
use std::fmt;

use amiquip::{AmqpValue, FieldTable};

pub(super) const QUEUE_TYPE: &str = "x-queue-type";

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
    /// The broker says that there is one, and not which; or it is of a kind that taskq never declares.
    Unknown,
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// From the broker's words for the value and its type.
    fn of_type(value: &str, kind: &str) -> Self {
        match kind {
            "longstr" => Self::text(value),
            "bool" => value.parse().map_or(Self::Unknown, Self::Flag),
            "byte" | "short" | "signedint" | "long" | "unsignedbyte" | "unsignedshort" | "unsignedint" => {
                value.parse().map_or(Self::Unknown, Self::Number)
            }
            _ => Self::Unknown,
        }
    }

    /// From the broker's words for a value that differs from this one and is of its type.
    fn instead(&self, value: &str) -> Self {
        match self {
            Self::Text(_) => Self::text(value),
            Self::Number(_) => value.parse().map_or(Self::Unknown, Self::Number),
            Self::Flag(_) => value.parse().map_or(Self::Unknown, Self::Flag),
            Self::Unknown => Self::Unknown,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Unknown => f.write_str("set"),
        }
    }
}

/// The arguments of one queue, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments(BTreeMap<String, Value>);

impl Arguments {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// The text of an argument that is one.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        if let Some(Value::Text(text)) = self.get(name) { Some(text) } else { None }
    }

    /// Makes this argument what the broker says it is.
    pub(super) fn learn(&mut self, difference: &Difference) {
        match &difference.current {
            Some(value) => self.set(&difference.name, value.clone()),
            None => drop(self.0.remove(&difference.name)),
        }
    }

    pub(super) fn table(&self) -> FieldTable {
        let amqp = |value: &Value| match value {
            Value::Text(text) => AmqpValue::LongString(text.clone()),
            Value::Number(number) => AmqpValue::LongLongInt(*number),
            Value::Flag(flag) => AmqpValue::Boolean(*flag),
            Value::Unknown => AmqpValue::Void,
        };
        self.0.iter().map(|(name, value)| (name.clone(), amqp(value))).collect()
    }

    /// What is different in `other`, for messages.
    pub(super) fn changes(&self, other: &Self) -> String {
        let set = other.0.iter().filter(|(name, value)| self.get(name) != Some(value));
        let set = set.map(|(name, value)| format!("{name}: {value}"));
        let missing = self.0.keys().filter(|name| other.get(name).is_none());
        set.chain(missing.map(|name| format!("no {name}"))).collect::<Vec<_>>().join(", ")
    }
}

/// What differs between a queue and its declaration. The broker names one thing at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// An argument, or one of AMQP's own properties of a queue.
    pub(super) name: String,
    /// What it is on the queue; `None` where the queue has none.
    pub(super) current: Option<Value>,
}

impl Difference {
    /// From the broker's words about a queue that was declared with these arguments. They may be cut off, as those about
    /// a queue with a long name are, after 255 bytes.
    pub(super) fn told(words: &str, declared: &Arguments) -> Option<Self> {
        let name = differing_property(words)?.to_owned();
        let told = words.rsplit_once("but current is ").map_or("", |(_, told)| told);
        let quoted =
            |text: &str, before: &str| Some(text.strip_prefix(before)?.strip_suffix('\'')?.to_owned());
        let current = if told == "none" {
            None
        } else if let Some(value) = quoted(told, "the value '") {
            let value = value.split_once("' of type '").map(|(value, kind)| Value::of_type(value, kind));
            Some(value.unwrap_or(Value::Unknown))
        } else if let Some(value) = quoted(told, "'") {
            Some(declared.get(&name).map_or(Value::Unknown, |declared| declared.instead(&value)))
        } else {
            Some(Value::Unknown)
        };
        // The type may have been told in place of the vhost's default, which was not declared.
        let current = match (name.as_str(), current, quoted(told, "'")) {
            (QUEUE_TYPE, Some(Value::Unknown), Some(value)) => Some(Value::Text(value)),
            (QUEUE_TYPE, None, _) => Some(Value::text("classic")),
            (_, current, _) => current,
        };
        Some(Self { name, current })
    }
}

/// The property that differs, from "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'x' in vhost '/':
/// received 'true' but current is 'false'".
fn differing_property(message: &str) -> Option<&str> {
    message.split_once("inequivalent arg '")?.1.split_once('\'').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_differing_property_is_found() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'hello' in vhost '/': received 'true' \
                    but current is 'false'";
        assert_eq!(differing_property(text), Some("durable"));
        assert_eq!(differing_property("PRECONDITION_FAILED"), None);
    }

    fn told(name: &str, end: &str, declared: &Arguments) -> Option<Value> {
        let words =
            format!("PRECONDITION_FAILED - inequivalent arg '{name}' for queue 'q' in vhost '/': {end}");
        let difference = Difference::told(&words, declared).unwrap();
        assert_eq!(difference.name, name);
        difference.current
    }

    #[test]
    fn the_broker_tells_what_an_argument_is() {
        let none = Arguments::default();
        let is = |kind: &str, value: &str| {
            told("x-a", &format!("received none but current is the value '{value}' of type '{kind}'"), &none)
        };
        assert_eq!(is("longstr", "it's"), Some(Value::text("it's")));
        assert_eq!(is("signedint", "10"), Some(Value::Number(10)));
        assert_eq!(is("long", "3600000"), Some(Value::Number(3_600_000)));
        assert_eq!(is("bool", "true"), Some(Value::Flag(true)));
        assert_eq!(is("table", "[]"), Some(Value::Unknown));
        let mut declared = Arguments::default();
        declared.set("x-a", Value::Number(1));
        let received = "received the value '1' of type 'long' but current is none";
        assert_eq!(told("x-a", received, &declared), None);
        assert_eq!(told("x-a", "received '1' but current is '2'", &declared), Some(Value::Number(2)));
        declared.set("x-a", Value::text("1"));
        assert_eq!(told("x-a", "received '1' but current is '2'", &declared), Some(Value::text("2")));
    }

    #[test]
    fn the_broker_tells_what_type_a_queue_has() {
        let mut declared = Arguments::default();
        let none = "received none but current is the value 'quorum' of type 'longstr'";
        assert_eq!(told(QUEUE_TYPE, none, &declared), Some(Value::text("quorum")));
        // Not declared, and so the vhost's default.
        let default = "received 'classic' but current is 'stream'";
        assert_eq!(told(QUEUE_TYPE, default, &declared), Some(Value::text("stream")));
        declared.set(QUEUE_TYPE, Value::text("quorum"));
        let classic = "received the value 'quorum' of type 'longstr' but current is none";
        assert_eq!(told(QUEUE_TYPE, classic, &declared), Some(Value::text("classic")));
        assert_eq!(told(QUEUE_TYPE, "received 'quor...", &declared), Some(Value::Unknown));
    }

    #[test]
    fn what_is_cut_off_is_not_known() {
        let mut declared = Arguments::default();
        declared.set("x-a", Value::Number(1));
        for cut in [
            "",
            "received none but curr...",
            "received none but current is the value '1...",
            "received '1' but current is '1...",
        ] {
            assert_eq!(told("x-a", cut, &declared), Some(Value::Unknown), "{cut}");
        }
        assert_eq!(Difference::told("PRECONDITION_FAILED - something new", &declared), None);
    }

    #[test]
    fn what_was_learned_is_declared_and_shown() {
        let mut wanted = Arguments::default();
        wanted.set("x-a", Value::Number(1));
        wanted.set("x-b", Value::text("b"));
        let mut found = wanted.clone();
        found.learn(&Difference { name: "x-a".to_owned(), current: None });
        found.learn(&Difference { name: "x-c".to_owned(), current: Some(Value::Flag(true)) });
        assert_eq!(found.table().len(), 2);
        assert_eq!(wanted.changes(&found), "x-c: true, no x-a");
        assert_eq!(wanted.changes(&wanted.clone()), "");
    }
}
