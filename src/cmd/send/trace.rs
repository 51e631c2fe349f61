//! The trace that `send` is a part of, as its environment has it: it travels in the headers of W3C's Trace Context.
//!
//! Tracing must not fail what it traces: what cannot be a part of a trace is left out, with a warning.

use std::ffi::OsString;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// In bytes. It has 55 today; later versions may be longer.
const PARENT_MAX: usize = 255;
/// In bytes: what everybody who takes part has to pass on.
const STATE_MAX: usize = 512;

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trace {
    parent: Option<String>,
    /// Means nothing without its parent.
    state: Option<String>,
    /// What was left out, and why.
    pub(super) complaints: Vec<String>,
}

impl Trace {
    pub(super) fn of_the_environment() -> Self {
        Self::of(std::env::var_os("TRACEPARENT"), std::env::var_os("TRACESTATE"))
    }

    /// An empty variable is as good as none, as for whoever reads a trace.
    fn of(parent: Option<OsString>, state: Option<OsString>) -> Self {
        let mut complaints = Vec::new();
        let mut usable = |name: &str, value: Option<OsString>, max: usize| {
            let value = value.filter(|value| !value.is_empty())?;
            fit(value, max).map_err(|why| complaints.push(format!("{name} is not sent: it {why}"))).ok()
        };
        let parent = usable("TRACEPARENT", parent, PARENT_MAX);
        // Without one there is nothing that it could be the state of.
        let state = parent.as_ref().and_then(|_| usable("TRACESTATE", state, STATE_MAX));
        Self { parent, state, complaints }
    }

    /// Adds the headers, unless they are given. Those of two traces are not mixed.
    pub(super) fn add_to(self, headers: &mut Vec<(String, String)>) {
        let has = |headers: &[(String, String)], name: &str| {
            headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name))
        };
        let Some(parent) = self.parent.filter(|_| !has(headers, PARENT)) else { return };
        headers.push((PARENT.to_owned(), parent));
        if let Some(state) = self.state.filter(|_| !has(headers, STATE)) {
            headers.push((STATE.to_owned(), state));
        }
    }
}

fn fit(value: OsString, max: usize) -> Result<String, String> {
    if value.len() > max {
        return Err(format!("has {} bytes, more than {max}", value.len()));
    }
    let value = value.into_string().map_err(|_| "is not UTF-8".to_owned())?;
    if value.contains(char::is_control) {
        return Err("holds a line break or another control character".to_owned());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    fn headers(parent: Option<&str>, state: Option<&str>, given: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut headers = given.iter().map(owned).collect();
        Trace::of(parent.map(OsString::from), state.map(OsString::from)).add_to(&mut headers);
        headers
    }

    #[test]
    fn a_trace_is_passed_on_unless_another_one_is_given() {
        let own = |headers: Vec<(String, String)>| {
            headers.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let both = (Some("p"), Some("s"));
        assert_eq!(own(headers(both.0, both.1, &[])), ["traceparent=p", "tracestate=s"]);
        assert_eq!(own(headers(both.0, None, &[])), ["traceparent=p"]);
        assert_eq!(own(headers(both.0, both.1, &[("TraceParent", "x")])), ["TraceParent=x"]);
        assert_eq!(own(headers(both.0, both.1, &[("tracestate", "x")])), ["tracestate=x", "traceparent=p"]);
        for parent in [None, Some("")] {
            assert!(headers(parent, both.1, &[]).is_empty());
        }
    }

    #[test]
    fn what_cannot_be_one_is_left_out_with_a_reason() {
        let complaints = |parent: &[u8], state: &str| {
            let trace = Trace::of(Some(OsString::from_vec(parent.to_vec())), Some(state.into()));
            (trace.parent.is_some(), trace.state.is_some(), trace.complaints)
        };
        assert_eq!(complaints(&[b'p'; 255], &"s".repeat(512)), (true, true, Vec::new()));
        for (parent, why) in
            [(&[b'p'; 256][..], "has 256 bytes"), (b"a\nb", "line break"), (b"\xff", "not UTF-8")]
        {
            let (has_parent, has_state, complaints) = complaints(parent, "s");
            assert!(!has_parent && !has_state);
            assert!(complaints.len() == 1 && complaints[0].contains(why), "{complaints:?}");
        }
        let (has_parent, has_state, complaints) = complaints(b"p", &"s".repeat(513));
        assert!(has_parent && !has_state && complaints[0].starts_with("TRACESTATE"), "{complaints:?}");
    }
}
